#include "sluice/lab/inspect/recorder.h"

#include <algorithm>

#include "sluice/base/path_pattern.h"

namespace sluice::lab {

void Recorder::after(const std::string& path, const Brick&, const at::Tensor& x, at::Tensor& y) {
  const auto [known, fresh] = wanted_.try_emplace(path, false);
  if (fresh) {
    known->second = std::any_of(patterns_.begin(), patterns_.end(),
                                [&](const std::string& each) { return path_matches(each, path); });
  }
  if (known->second) records_[path] = what_ == What::outputs ? y : x;
}

}  // namespace sluice::lab
