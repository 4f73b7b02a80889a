// LibTorch at the shapes of `sluice bench kernels`.
#if SLUICE_HAS_ENGINE
#include <ATen/ops/conv2d.h>
#include <ATen/ops/linear.h>

#include "sluice/engine/measure/rivals.h"
#include "sluice/lab/train/fast_blas.h"

namespace sluice::cli {
namespace bench_kernels_libtorch_verb {

using engine::measure::Contender;
using engine::measure::ConvProblem;
using engine::measure::LinearProblem;
using engine::measure::Role;
using engine::measure::Rotation;

at::Tensor copy_of(std::span<const float> values, at::IntArrayRef sizes) {
  return torch::from_blob(const_cast<float*>(values.data()), sizes, torch::kFloat32).clone();
}

struct State {
  at::Tensor x, y, plain;
  std::optional<Rotation<at::Tensor>> weights;
};

Contender contender_of(std::shared_ptr<State> state, std::string name, double bytes,
                       double operations, int threads,
                       std::function<at::Tensor(const at::Tensor&, const at::Tensor&)> forward,
                       std::function<at::Tensor(const at::Tensor&)> plain) {
  Contender contender;
  contender.name = std::move(name);
  contender.role = Role::rival;
  contender.bytes = bytes;
  contender.operations = operations;
  contender.tolerance = 1e-4;
  contender.run = [state, threads, forward] {
    if (at::get_num_threads() != threads) {
      at::set_num_threads(threads);
    }
    const c10::InferenceMode no_gradients;
    state->y = forward(state->x, state->weights->next());
  };
  contender.output = [state, plain] {
    const c10::InferenceMode no_gradients;
    state->plain = plain(state->y);
    return std::span<const float>(state->plain.data_ptr<float>(),
                                  static_cast<size_t>(state->plain.numel()));
  };
  return contender;
}

Contender linear(const LinearProblem& p) {
  lab::use_fast_blas();
  auto state = std::make_shared<State>();
  state->x = copy_of(p.x, {p.rows, p.in});
  state->weights.emplace(p.cold, static_cast<int64_t>(p.weight.size_bytes()), [&](int64_t) {
    return copy_of(p.weight, {p.out, p.in});
  });
  return contender_of(
      state, "LibTorch f32", static_cast<double>(p.weight.size_bytes()), p.operations(), p.threads,
      [](const at::Tensor& x, const at::Tensor& weight) { return at::linear(x, weight); },
      [](const at::Tensor& y) { return y.contiguous(); });
}

Contender conv(const ConvProblem& p) {
  const engine::onednn::ConvShape& s = p.shape;
  auto state = std::make_shared<State>();
  // Channels-last memory behind the usual order of dimensions.
  state->x =
      copy_of(p.x, {s.samples, s.in_height, s.in_width, s.in_channels}).permute({0, 3, 1, 2});
  state->weights.emplace(0, 1, [&](int64_t) {
    return copy_of(p.weight, {s.out_channels, s.in_channels, s.kernel[0], s.kernel[1]})
        .contiguous(at::MemoryFormat::ChannelsLast);
  });
  const std::vector<int64_t> stride{s.stride[0], s.stride[1]}, padding{s.padding[0], s.padding[1]},
      dilation{s.dilation[0], s.dilation[1]};
  return contender_of(
      state, "LibTorch convolution f32", static_cast<double>(p.weight.size_bytes()), p.operations(),
      p.threads,
      [stride, padding, dilation](const at::Tensor& x, const at::Tensor& weight) {
        return at::conv2d(x, weight, {}, stride, padding, dilation);
      },
      [](const at::Tensor& y) {
        return y.permute({0, 2, 3, 1}).contiguous();
      });
}

const bool registered = engine::measure::register_libtorch({linear, conv});

}  // namespace bench_kernels_libtorch_verb
}  // namespace sluice::cli
#endif
