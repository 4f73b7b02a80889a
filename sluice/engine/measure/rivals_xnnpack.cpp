// XNNPACK, if the machine has it: loaded when it is wanted, so that nothing depends on it. Debian
// 12 has it as a dependency of LibTorch.
#include <dlfcn.h>

#include <limits>
#include <memory>

#include "sluice/base/machine.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

// The C interface of 2022-02-16, as in Debian 12; later ones have other parameters under the same
// names, and functions by which they are known.
using Operator = void*;
using Threads = void*;
using Initialize = int (*)(const void* allocator);
using CreateLinear = int (*)(size_t in, size_t out, size_t in_stride, size_t out_stride,
                             const float* kernel, const float* bias, float least, float most,
                             uint32_t flags, Operator* made);
using SetupLinear = int (*)(Operator, size_t rows, const float* x, float* y, Threads);
using CreateConv = int (*)(uint32_t top, uint32_t right, uint32_t bottom, uint32_t left,
                           uint32_t kernel_height, uint32_t kernel_width, uint32_t stride_height,
                           uint32_t stride_width, uint32_t dilation_height, uint32_t dilation_width,
                           uint32_t groups, size_t group_in, size_t group_out, size_t in_stride,
                           size_t out_stride, const float* kernel, const float* bias, float least,
                           float most, uint32_t flags, Operator* made);
using SetupConv = int (*)(Operator, size_t samples, size_t height, size_t width, const float* x,
                          float* y, Threads);
using Run = int (*)(Operator, Threads);
using Delete = int (*)(Operator);

struct Xnnpack {
  CreateLinear create_linear = nullptr;
  SetupLinear setup_linear = nullptr;
  CreateConv create_conv = nullptr;
  SetupConv setup_conv = nullptr;
  Run run = nullptr;
  Delete destroy = nullptr;
  bool usable = false;
};

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

Xnnpack load() {
  Xnnpack x;
  if (machine_limited_to_avx2()) {
    return x;  // it asks the processor itself
  }
  void* library = ::dlopen("libXNNPACK.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr || ::dlsym(library, "xnn_init_code_cache") != nullptr ||
      ::dlsym(library, "xnn_reshape_fully_connected_nc_f32") != nullptr) {
    return x;
  }
  Initialize initialize = nullptr;
  x.usable = find(library, "xnn_initialize", initialize) &&
             find(library, "xnn_create_fully_connected_nc_f32", x.create_linear) &&
             find(library, "xnn_setup_fully_connected_nc_f32", x.setup_linear) &&
             find(library, "xnn_create_convolution2d_nhwc_f32", x.create_conv) &&
             find(library, "xnn_setup_convolution2d_nhwc_f32", x.setup_conv) &&
             find(library, "xnn_run_operator", x.run) &&
             find(library, "xnn_delete_operator", x.destroy) && initialize(nullptr) == 0;
  return x;
}

const Xnnpack& xnnpack() {
  static const Xnnpack loaded = load();
  return loaded;
}

constexpr float kMost = std::numeric_limits<float>::infinity();

/// Owns what `destroy` frees.
using Owned = std::unique_ptr<void, void (*)(void*)>;
Owned owned_operator(Operator made) {
  return {made, [](void* p) { xnnpack().destroy(p); }};
}

struct State {
  std::vector<float> x, y;
  std::unique_ptr<Rotation<Owned>> operators;  // each with weights of its own, packed

  State(std::span<const float> input, size_t outputs) : x(input.begin(), input.end()), y(outputs) {
    x.resize(x.size() + 16);  // it reads up to 16 bytes behind the input
  }
};

Contender contender_of(std::shared_ptr<State> state, std::span<const float> weight,
                       double operations, const char* name) {
  Contender contender;
  contender.name = name;
  contender.role = Role::rival;
  contender.bytes = static_cast<double>(weight.size_bytes());
  contender.operations = operations;
  contender.output = [state] { return std::span<const float>(state->y); };
  return contender;
}

}  // namespace

std::optional<Contender> xnnpack_linear(const LinearProblem& p) {
  const auto in = static_cast<size_t>(p.in), out = static_cast<size_t>(p.out);
  if (p.threads != 1 || !xnnpack().usable) {
    return std::nullopt;
  }
  auto state = std::make_shared<State>(p.x, static_cast<size_t>(p.rows) * out);
  bool made = true;
  state->operators = std::make_unique<Rotation<Owned>>(
      p.cold, static_cast<int64_t>(p.weight.size_bytes()), [&](int64_t) {
        Operator op = nullptr;
        made = made && xnnpack().create_linear(in, out, in, out, p.weight.data(), nullptr, -kMost,
                                               kMost, 0, &op) == 0;
        return owned_operator(op);
      });
  if (!made) {
    return std::nullopt;
  }
  Contender contender = contender_of(state, p.weight, p.operations(), "XNNPACK f32");
  contender.run = [state, rows = static_cast<size_t>(p.rows)] {
    void* op = state->operators->next().get();
    xnnpack().setup_linear(op, rows, state->x.data(), state->y.data(), nullptr);
    xnnpack().run(op, nullptr);
  };
  return contender;
}

std::optional<Contender> xnnpack_conv(const ConvProblem& p) {
  if (p.threads != 1 || !xnnpack().usable) {
    return std::nullopt;
  }
  const onednn::ConvShape& s = p.shape;
  const auto u = [](int64_t n) { return static_cast<uint32_t>(n); };
  const auto in = static_cast<size_t>(s.in_channels), out = static_cast<size_t>(s.out_channels),
             taps = static_cast<size_t>(s.kernel[0] * s.kernel[1]);
  std::vector<float> kernel(p.weight.size());  // [O][kh][kw][C]
  for (size_t o = 0; o < out; ++o)
    for (size_t c = 0; c < in; ++c)
      for (size_t t = 0; t < taps; ++t)
        kernel[(o * taps + t) * in + c] = p.weight[(o * in + c) * taps + t];
  auto state = std::make_shared<State>(
      p.x, static_cast<size_t>(s.samples * s.out_height * s.out_width) * out);
  bool made = true;
  state->operators = std::make_unique<Rotation<Owned>>(
      p.cold, static_cast<int64_t>(p.weight.size_bytes()), [&](int64_t) {
        Operator op = nullptr;
        const uint32_t height = u(s.padding[0]), width = u(s.padding[1]);
        made = made && xnnpack().create_conv(
                           height, width, height, width, u(s.kernel[0]), u(s.kernel[1]),
                           u(s.stride[0]), u(s.stride[1]), u(s.dilation[0]), u(s.dilation[1]), 1,
                           in, out, in, out, kernel.data(), nullptr, -kMost, kMost, 0, &op) == 0;
        return owned_operator(op);
      });
  if (!made) {
    return std::nullopt;
  }
  Contender contender = contender_of(state, p.weight, p.operations(), "XNNPACK convolution f32");
  contender.run = [state, s] {
    void* op = state->operators->next().get();
    xnnpack().setup_conv(op, static_cast<size_t>(s.samples), static_cast<size_t>(s.in_height),
                         static_cast<size_t>(s.in_width), state->x.data(), state->y.data(),
                         nullptr);
    xnnpack().run(op, nullptr);
  };
  return contender;
}

}  // namespace sluice::engine::measure
