// oneDNN's primitives without our wrapper around them: what its own users would write.
#include <algorithm>
#include <cmath>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "sluice/engine/kernel/gemm_rows.h"
#include "sluice/engine/kernel/threads.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

using dnnl::memory;
using tag = memory::format_tag;
using type = memory::data_type;
using Arguments = std::unordered_map<int, memory>;

constexpr const char* kQuantizedBefore = "activations quantized beforehand, one scale";
constexpr const char* kRounded = "activations rounded in the timed call, one scale";

struct State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::primitive primitive;
  memory src, dst;
  Buffer src_bytes, dst_bytes, scales;
  struct Copy {
    Buffer bytes;
    Arguments arguments;
  };
  std::optional<Rotation<Copy>> weights;
};

type type_of(Precision precision) {
  return precision == Precision::f32    ? type::f32
         : precision == Precision::bf16 ? type::bf16
                                        : type::s8;
}

const char* type_name(Precision precision) {
  return precision == Precision::f32 ? "f32" : precision == Precision::bf16 ? "bf16" : "int8";
}

float largest(std::span<const float> values) {
  float most = 0;
  for (const float v : values) {
    most = std::max(most, std::abs(v));
  }
  return most;
}

/// Values as int8 with a scale for every run of `run` of them.
std::vector<int8_t> quantize(std::span<const float> values, size_t run,
                             std::vector<float>& scales) {
  std::vector<int8_t> codes(values.size());
  scales.clear();
  for (size_t begin = 0; begin < values.size(); begin += run) {
    const std::span<const float> part = values.subspan(begin, run);
    const float scale = std::max(largest(part) / 127.0f, 1e-30f);
    for (size_t i = 0; i < part.size(); ++i) {
      codes[begin + i] = static_cast<int8_t>(std::lrint(part[i] / scale));
    }
    scales.push_back(scale);
  }
  return codes;
}

/// A memory of `to`, filled with `values`, which lie as `plain` says: f32, or int8 codes.
template <class T>
void fill(State& state, std::span<const T> values, const memory::desc& plain, memory& to) {
  memory from(plain, state.engine, const_cast<T*>(values.data()));
  dnnl::reorder(from, to).execute(state.stream, from, to);
  state.stream.wait();
}

dnnl::primitive_attr output_scales([[maybe_unused]] const std::vector<float>& scales, int mask) {
  dnnl::primitive_attr attr;
#if DNNL_VERSION_MAJOR >= 3
  attr.set_scales_mask(DNNL_ARG_WEIGHTS, mask);
#else
  attr.set_output_scales(mask, scales);
#endif
  return attr;
}

/// Fills source and weights and makes the arguments. `pd` knows the formats it likes; codes and
/// scales are empty unless int8.
template <class Descriptor>
void prepare(State& state, const Descriptor& pd, const memory::desc& plain_src,
             const memory::desc& plain_weights, std::span<const float> x,
             std::span<const float> weight, const std::vector<int8_t>& x_codes,
             const std::vector<int8_t>& codes, [[maybe_unused]] const std::vector<float>& scales,
             int64_t cold) {
  const auto bytes = [](const memory::desc& desc) { return static_cast<int64_t>(desc.get_size()); };
  state.src_bytes = Buffer(bytes(pd.src_desc()));
  state.dst_bytes = Buffer(bytes(pd.dst_desc()));
  state.src = memory(pd.src_desc(), state.engine, state.src_bytes.data());
  state.dst = memory(pd.dst_desc(), state.engine, state.dst_bytes.data());
  memory scale_memory;
#if DNNL_VERSION_MAJOR >= 3
  if (!scales.empty()) {
    state.scales = Buffer(static_cast<int64_t>(scales.size() * sizeof(float)));
    std::copy(scales.begin(), scales.end(), state.scales.floats());
    scale_memory = memory({{static_cast<int64_t>(scales.size())}, type::f32, tag::x}, state.engine,
                          state.scales.data());
  }
#endif
  const bool quantized = !codes.empty();
  if (quantized) {
    fill(state, std::span<const int8_t>(x_codes), plain_src, state.src);
  } else {
    fill(state, x, plain_src, state.src);
  }
  state.weights.emplace(cold, bytes(pd.weights_desc()), [&](int64_t) {
    State::Copy copy;
    copy.bytes = Buffer(bytes(pd.weights_desc()));
    memory packed(pd.weights_desc(), state.engine, copy.bytes.data());
    if (quantized) {
      fill(state, std::span<const int8_t>(codes), plain_weights, packed);
    } else {
      fill(state, weight, plain_weights, packed);
    }
    copy.arguments = {
        {DNNL_ARG_SRC, state.src}, {DNNL_ARG_WEIGHTS, packed}, {DNNL_ARG_DST, state.dst}};
#if DNNL_VERSION_MAJOR >= 3
    if (!scales.empty()) {
      copy.arguments[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS] = scale_memory;
    }
#endif
    return copy;
  });
}

Contender contender_of(std::shared_ptr<State> state, std::string name, Precision precision,
                       int64_t weights, double operations) {
  Contender contender;
  contender.name = "oneDNN " + std::move(name) + " " + type_name(precision);
  contender.role = Role::rival;
  contender.bytes = static_cast<double>(weights) * (precision == Precision::f32    ? 4
                                                    : precision == Precision::bf16 ? 2
                                                                                   : 1);
  contender.operations = operations;
  contender.tolerance = precision == Precision::f32 ? 1e-4 : 3e-2;
  if (precision == Precision::int8) {
    contender.note = kQuantizedBefore;
  }
  contender.run = [state] {
    state->primitive.execute(state->stream, state->weights->next().arguments);
    state->stream.wait();
  };
  contender.output = [state] {
    return std::span<const float>(state->dst_bytes.floats(),
                                  static_cast<size_t>(state->dst_bytes.bytes()) / sizeof(float));
  };
  return contender;
}

bool is_reference(std::string_view name) {
  return name.starts_with("ref") || name.starts_with("simple") || name.starts_with("gemm:ref");
}

/// Codes and scales of both operands; empty codes unless int8. The scales carry that of x as well.
struct Quantized {
  std::vector<int8_t> x, weight;
  std::vector<float> scales;
};

Quantized quantized(std::span<const float> x, std::span<const float> weight, int64_t outputs,
                    Precision precision) {
  Quantized q;
  if (precision != Precision::int8) {
    return q;
  }
  std::vector<float> x_scale;
  q.x = quantize(x, x.size(), x_scale);
  q.weight = quantize(weight, weight.size() / static_cast<size_t>(outputs), q.scales);
  for (float& scale : q.scales) {
    scale *= x_scale[0];
  }
  return q;
}

/// Activations arrive as floats: rounding them is part of every call, row by row over the threads,
/// into memory beside the codes, whose single scale was fixed when the primitive was made.
Contender rounding(Contender contender, std::shared_ptr<State> state, Precision precision,
                   const LinearProblem& problem) {
  if (precision == Precision::f32) {
    return contender;
  }
  contender.note = kRounded;
  contender.run = [state, precision, rows = problem.rows, in = problem.in,
                   threads = problem.threads,
                   x = std::vector<float>(problem.x.begin(), problem.x.end()),
                   codes = std::make_shared<Buffer>(problem.rows * problem.in * 2)] {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; ++r) {
      if (precision == Precision::int8) {
        quantize_row(x.data() + r * in, in, reinterpret_cast<int8_t*>(codes->data()) + r * in);
      } else {
        bf16_row(x.data() + r * in, in, reinterpret_cast<uint16_t*>(codes->data()) + r * in);
      }
    }
    state->primitive.execute(state->stream, state->weights->next().arguments);
    state->stream.wait();
  };
  return contender;
}

/// What oneDNN cannot do here, or not right, is a rival that is not there, not an error.
template <class Body>
std::optional<Contender> attempted(Precision precision, Body body) {
  if (precision == Precision::int8 && !onednn::product_usable(onednn::ProductType::i8))
    return std::nullopt;
  try {
    return body();
  } catch (const dnnl::error&) {
    return std::nullopt;
  }
}

type plain_type(Precision precision) { return precision == Precision::int8 ? type::s8 : type::f32; }

}  // namespace

std::optional<Contender> onednn_matmul(const LinearProblem& p, Precision precision) {
  return attempted(precision, [&]() -> std::optional<Contender> {
    const ThreadScope threads(p.threads);
    auto state = std::make_shared<State>();
    const Quantized q = quantized(p.x, p.weight, p.out, precision);
    const memory::desc src({p.rows, p.in}, type_of(precision), tag::ab);
    const memory::desc weights({p.in, p.out}, type_of(precision), tag::any);
    const memory::desc dst({p.rows, p.out}, type::f32, tag::ab);
    const dnnl::primitive_attr attr =
        q.scales.empty() ? dnnl::primitive_attr() : output_scales(q.scales, 1 << 1);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc pd(state->engine, src, weights, dst, attr);
#else
    const dnnl::matmul::primitive_desc pd({src, weights, dst}, attr, state->engine);
#endif
    if (is_reference(pd.impl_info_str())) {
      return std::nullopt;
    }
    state->primitive = dnnl::matmul(pd);
    prepare(*state, pd, {{p.rows, p.in}, plain_type(precision), tag::ab},
            {{p.in, p.out}, plain_type(precision), tag::ba}, p.x, p.weight, q.x, q.weight, q.scales,
            p.cold);
    return rounding(contender_of(state, "matmul", precision, p.in * p.out, p.operations()), state,
                    precision, p);
  });
}

std::optional<Contender> onednn_inner_product(const LinearProblem& p, Precision precision) {
  return attempted(precision, [&]() -> std::optional<Contender> {
    const ThreadScope threads(p.threads);
    auto state = std::make_shared<State>();
    const Quantized q = quantized(p.x, p.weight, p.out, precision);
    const memory::desc src({p.rows, p.in}, type_of(precision), tag::ab);
    const memory::desc weights({p.out, p.in}, type_of(precision), tag::any);
    const memory::desc dst({p.rows, p.out}, type::f32, tag::ab);
    using Forward = dnnl::inner_product_forward;
    constexpr auto kInference = dnnl::prop_kind::forward_inference;
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::primitive_attr attr =
        q.scales.empty() ? dnnl::primitive_attr() : output_scales(q.scales, 1 << 0);
    const Forward::primitive_desc pd(state->engine, kInference, src, weights, dst, attr);
#else
    const dnnl::primitive_attr attr =
        q.scales.empty() ? dnnl::primitive_attr() : output_scales(q.scales, 1 << 1);
    const Forward::primitive_desc pd({kInference, src, weights, dst}, attr, state->engine);
#endif
    if (is_reference(pd.impl_info_str())) {
      return std::nullopt;
    }
    state->primitive = Forward(pd);
    prepare(*state, pd, {{p.rows, p.in}, plain_type(precision), tag::ab},
            {{p.out, p.in}, plain_type(precision), tag::ab}, p.x, p.weight, q.x, q.weight, q.scales,
            p.cold);
    return rounding(contender_of(state, "inner product", precision, p.in * p.out, p.operations()),
                    state, precision, p);
  });
}

std::optional<Contender> onednn_conv(const ConvProblem& p, Precision precision) {
  return attempted(precision, [&]() -> std::optional<Contender> {
    const ThreadScope threads(p.threads);
    const onednn::ConvShape& s = p.shape;
    auto state = std::make_shared<State>();
    const Quantized q = quantized(p.x, p.weight, s.out_channels, precision);
    const memory::dims image{s.samples, s.in_channels, s.in_height, s.in_width},
        result{s.samples, s.out_channels, s.out_height, s.out_width},
        kernel{s.out_channels, s.in_channels, s.kernel[0], s.kernel[1]};
    const memory::desc src(image, type_of(precision), tag::nhwc);
    const memory::desc weights(kernel, type_of(precision), tag::any);
    const memory::desc dst(result, type::f32, tag::nhwc);
    const memory::dims strides{s.stride[0], s.stride[1]},
        dilates{s.dilation[0] - 1, s.dilation[1] - 1}, padding{s.padding[0], s.padding[1]};
    const memory::dims padding_end{
        std::max<int64_t>(0, (s.out_height - 1) * s.stride[0] + (s.kernel[0] - 1) * s.dilation[0] +
                                 1 - s.in_height - s.padding[0]),
        std::max<int64_t>(0, (s.out_width - 1) * s.stride[1] + (s.kernel[1] - 1) * s.dilation[1] +
                                 1 - s.in_width - s.padding[1])};
    using Forward = dnnl::convolution_forward;
    constexpr auto kInference = dnnl::prop_kind::forward_inference;
    constexpr auto kDirect = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::primitive_attr attr =
        q.scales.empty() ? dnnl::primitive_attr() : output_scales(q.scales, 1 << 0);
    const Forward::primitive_desc pd(state->engine, kInference, kDirect, src, weights, dst, strides,
                                     dilates, padding, padding_end, attr);
#else
    const dnnl::primitive_attr attr =
        q.scales.empty() ? dnnl::primitive_attr() : output_scales(q.scales, 1 << 1);
    const Forward::primitive_desc pd(
        {kInference, kDirect, src, weights, dst, strides, dilates, padding, padding_end}, attr,
        state->engine);
#endif
    if (is_reference(pd.impl_info_str())) {
      return std::nullopt;
    }
    state->primitive = Forward(pd);
    prepare(*state, pd, {image, plain_type(precision), tag::nhwc},
            {kernel, plain_type(precision), tag::oihw}, p.x, p.weight, q.x, q.weight, q.scales,
            p.cold);
    return contender_of(state, "convolution", precision, static_cast<int64_t>(p.weight.size()),
                        p.operations());
  });
}

}  // namespace sluice::engine::measure
