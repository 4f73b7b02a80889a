#include "sluice/lab/train/precision.h"

#include <ATen/autocast_mode.h>
#include <torch/version.h>

namespace sluice::lab {
namespace {

// 2.4 gave the functions a device.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
bool enabled() { return at::autocast::is_autocast_enabled(at::kCUDA); }
void enable(bool on) { at::autocast::set_autocast_enabled(at::kCUDA, on); }
void use_bf16() { at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16); }
#else
bool enabled() { return at::autocast::is_enabled(); }
void enable(bool on) { at::autocast::set_enabled(on); }
void use_bf16() { at::autocast::set_autocast_gpu_dtype(at::kBFloat16); }
#endif

}  // namespace

Autocast::Autocast(bool on) : on_(on) {
  if (!on_) return;
  before_ = enabled();
  use_bf16();
  enable(true);
  at::autocast::increment_nesting();
}

Autocast::~Autocast() {
  if (!on_) return;
  // The copies of weights in bf16 belong to one forward.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  enable(before_);
}

}  // namespace sluice::lab
