#include "sluice/engine/kernel/onednn.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <string_view>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine::onednn {
namespace {

using dnnl::memory;
using tag = memory::format_tag;
constexpr auto kF32 = memory::data_type::f32;

thread_local bool t_inside = false;

dnnl::engine& cpu() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& stream() {
  // One per thread: oneDNN does not promise that a stream may be used by several threads at once.
  thread_local dnnl::stream stream(cpu());
  return stream;
}

memory::desc any_desc(const memory::dims& dims) { return {dims, kF32, tag::any}; }

memory::desc image(int64_t n, int64_t c, int64_t h, int64_t w, Layout layout,
                   memory::data_type type = kF32) {
  return {{n, c, h, w}, type, layout == Layout::plain ? tag::nchw : tag::nhwc};
}

void append_eltwise(dnnl::post_ops& ops, dnnl::algorithm kind, float alpha, float beta) {
#if DNNL_VERSION_MAJOR >= 3
  ops.append_eltwise(kind, alpha, beta);
#else
  ops.append_eltwise(1.0f, kind, alpha, beta);
#endif
}

void append_activation(dnnl::post_ops& ops, Activation activation) {
  dnnl::algorithm kind{};
  float alpha = 0, beta = 0;
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      kind = dnnl::algorithm::eltwise_relu;
      break;
    case Activation::gelu:
      kind = dnnl::algorithm::eltwise_gelu_erf;
      break;
    case Activation::silu:
      kind = dnnl::algorithm::eltwise_swish;
      alpha = 1;
      break;
    case Activation::sigmoid:
      kind = dnnl::algorithm::eltwise_logistic;
      break;
    case Activation::tanh:
      kind = dnnl::algorithm::eltwise_tanh;
      break;
    case Activation::hard_swish:
      kind = dnnl::algorithm::eltwise_hardswish;
      alpha = 1.0f / 6;  // ignored by 2.x, whose hardswish has no parameters
      beta = 0.5f;
      break;
    case Activation::gelu_tanh:
      kind = dnnl::algorithm::eltwise_gelu_tanh;
      break;
  }
  append_eltwise(ops, kind, alpha, beta);
}

void append_tail(dnnl::post_ops& ops, const Tail& tail, const memory::desc& other) {
  if (tail.add == Tail::Add::accumulate) ops.append_sum(1.0f);
  if (tail.add == Tail::Add::operand) ops.append_binary(dnnl::algorithm::binary_add, other);
  append_activation(ops, tail.activation);
  if (tail.factor != 1 || tail.offset != 0)
    append_eltwise(ops, dnnl::algorithm::eltwise_linear, tail.factor, tail.offset);
}

dnnl::primitive_attr attributes(const Tail& tail, const memory::desc& other) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops ops;
  append_tail(ops, tail, other);
  attr.set_post_ops(ops);
  return attr;
}

std::string desc_key(const memory::desc& desc) {
#if DNNL_VERSION_MAJOR >= 3
  const auto blob = const_cast<memory::desc&>(desc).get_blob();
  return std::string(reinterpret_cast<const char*>(blob.data()), blob.size());
#else
  return std::string(reinterpret_cast<const char*>(&desc.data), sizeof desc.data);
#endif
}

/// A primitive, its constant operands and its descriptors; immutable, shared by all lanes.
struct Compiled {
  dnnl::primitive primitive;
  memory::desc src, dst, scratch;
  std::shared_ptr<Buffer> weights;
  Buffer bias, scales;
  memory weights_memory, bias_memory, scales_memory;
  Tail tail;
};

/// One lane's argument table; execute() of the C++ interface would build a vector on every call.
struct Call {
  std::shared_ptr<const Compiled> compiled;
  std::array<memory, 5> memories;
  std::array<dnnl_exec_arg_t, 8> args;
  int count = 0;

  void add(int id, const memory& m) { args[static_cast<size_t>(count++)] = {id, m.get()}; }
  void run() const {
    dnnl_stream_t s = stream().get();
    t_inside = true;
    const dnnl_status_t status =
        dnnl_primitive_execute(compiled->primitive.get(), s, count, args.data());
    t_inside = false;
    if (status != dnnl_success)
      fail(Code::internal, "oneDNN: execution failed with status {}", int(status));
  }
};

Kernel kernel_of(std::shared_ptr<const Compiled> compiled, const std::string& name,
                 bool has_weights) {
  Kernel kernel;
  kernel.name = "onednn " + name;
  kernel.scratch_bytes = static_cast<int64_t>(compiled->scratch.get_size());
  if (compiled->tail.add == Tail::Add::accumulate) {
    kernel.in_place = 1;
    kernel.must_share = true;
  }
  kernel.bind = [compiled, has_weights](const Binding& b) -> std::function<void()> {
    auto call = std::make_shared<Call>();
    call->compiled = compiled;
    call->memories[0] = memory(compiled->src, cpu(), b.inputs[0]);
    call->memories[1] = memory(compiled->dst, cpu(), b.output);
    call->memories[2] = memory(compiled->scratch, cpu(), b.scratch);
    call->add(DNNL_ARG_SRC, call->memories[0]);
    call->add(DNNL_ARG_DST, call->memories[1]);
    call->add(DNNL_ARG_SCRATCHPAD, call->memories[2]);
    if (has_weights) {
      call->add(DNNL_ARG_WEIGHTS, compiled->weights_memory);
      if (compiled->bias.bytes() > 0) call->add(DNNL_ARG_BIAS, compiled->bias_memory);
    }
    if (compiled->tail.add == Tail::Add::operand) {
      call->memories[3] = memory(compiled->dst, cpu(), b.inputs[1]);
      call->add(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, call->memories[3]);
    }
    return [call] { call->run(); };
  };
  return kernel;
}

}  // namespace

/// A product of one shape, without its weights: layers alike share it. Making the description of
/// one costs oneDNN a quarter of a millisecond, and an encoder has one for every layer and number
/// of rows.
struct ShapedProduct {
  dnnl::primitive primitive;
  memory::desc src, dst, weights, scratch;
  std::string name;
  memory::desc plain, bias;  ///< how the file's weights and bias lie
};

struct PackCache::State {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<Buffer>> packed;
  std::map<std::string, std::shared_ptr<const ShapedProduct>> products;
};

PackCache::PackCache() : state_(std::make_unique<State>()) {}
PackCache::~PackCache() = default;

namespace {

/// Fewer faults when memory is filled for the first time; only a wish.
void want_large_pages(const Buffer& buffer) {
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<uintptr_t>(buffer.data());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  last = (begin + static_cast<uintptr_t>(buffer.bytes())) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

std::shared_ptr<Buffer> pack(const void* values, const memory::desc& from, const memory::desc& to,
                             PackCache& cache, const std::string& key) {
  PackCache::State& state = *cache.state();
  std::lock_guard lock(state.mutex);
  std::weak_ptr<Buffer>& slot = state.packed[key + '\n' + desc_key(to)];
  if (auto packed = slot.lock()) return packed;
  // The reorder writes everything, padding too. On one thread: it waits for memory, and threads
  // that are new or have lost their core would make a load wait for them.
  const ThreadScope scope(1);
  auto packed = std::make_shared<Buffer>(static_cast<int64_t>(to.get_size()), /*zeroed=*/false);
  want_large_pages(*packed);
  memory source(from, cpu(), const_cast<void*>(values));
  memory target(to, cpu(), packed->data());
  dnnl::reorder(source, target).execute(stream(), source, target);
  stream().wait();
  slot = packed;
  return packed;
}

void set_constants(Compiled& compiled, std::span<const float> weight, const memory::desc& plain,
                   const memory::desc& packed, std::span<const float> bias,
                   const memory::desc& bias_desc, PackCache& cache, const std::string& key,
                   bool weight_stays = false) {
  if (weight_stays && packed == plain) {
    compiled.weights_memory = memory(plain, cpu(), const_cast<float*>(weight.data()));
  } else {
    compiled.weights = pack(weight.data(), plain, packed, cache, key);
    compiled.weights_memory = memory(packed, cpu(), compiled.weights->data());
  }
  if (bias.empty()) return;
  compiled.bias = Buffer(static_cast<int64_t>(bias.size_bytes()));
  std::memcpy(compiled.bias.data(), bias.data(), bias.size_bytes());
  compiled.bias_memory = memory(bias_desc, cpu(), compiled.bias.data());
}

/// oneDNN's own exceptions become Errors here and get no further.
template <class Body>
auto translated(const char* what, const ConvShape& s, Body body) {
  try {
    return body();
  } catch (const dnnl::error& e) {
    fail(Code::unsupported, "oneDNN {} refuses a {} of {} x {} x {} x {} -> {} channels: {}",
         version(), what, s.samples, s.in_channels, s.in_height, s.in_width, s.out_channels,
         e.what());
  }
}

/// `make` is called for the first layer of its kind.
template <class Make>
std::shared_ptr<const ShapedProduct> product(PackCache& cache, const std::string& kind, Make make) {
  PackCache::State& state = *cache.state();
  {
    std::lock_guard lock(state.mutex);
    const auto found = state.products.find(kind);
    if (found != state.products.end()) return found->second;
  }
  auto made = std::make_shared<const ShapedProduct>(make());
  std::lock_guard lock(state.mutex);
  return state.products.try_emplace(kind, std::move(made)).first->second;
}

template <class Forward>
ShapedProduct product_of(const typename Forward::primitive_desc& pd, const memory::desc& plain,
                         const memory::desc& bias = {}) {
  return {Forward(pd),          pd.src_desc(),      pd.dst_desc(), pd.weights_desc(),
          pd.scratchpad_desc(), pd.impl_info_str(), plain,         bias};
}

std::shared_ptr<Compiled> compiled_of(const ShapedProduct& product) {
  auto compiled = std::make_shared<Compiled>();
  compiled->primitive = product.primitive;
  compiled->src = product.src;
  compiled->dst = product.dst;
  compiled->scratch = product.scratch;
  return compiled;
}

/// Whether the elements lie in blocks, not in rows or columns.
bool blocked(const memory::desc& desc) {
#if DNNL_VERSION_MAJOR >= 3
  return desc.get_inner_nblks() > 0;
#else
  return desc.data.format_desc.blocking.inner_nblks > 0;
#endif
}

bool is_reference(std::string_view name) {
  return name.starts_with("ref") || name.starts_with("simple");
}

bool has(dnnl::cpu_isa isa) {
  // The values are sets of bits, each holding those of what it extends.
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & static_cast<unsigned>(isa)) ==
         static_cast<unsigned>(isa);
}

/// x W^T as a general product, weights [in][out] of any order; nothing where oneDNN would leave
/// them in rows or columns. Unlike its inner products, which share out the inputs among threads, it
/// adds up in one order for any number of threads, and is 0 to 5% faster from 64 rows on (Zen 4,
/// 4096 x 4096, f32 and bf16; one row 13% less to 10% more time).
std::optional<ShapedProduct> general_product(memory::data_type type, const memory::desc& src,
                                             int64_t in, int64_t out, bool has_bias,
                                             const memory::desc& dst,
                                             const dnnl::primitive_attr& attr) {
  const memory::desc weights({in, out}, type, tag::any), plain({in, out}, type, tag::ba),
      bias = has_bias ? memory::desc({1, out}, kF32, tag::ab) : memory::desc();
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc pd(cpu(), src, weights, bias, dst, attr, true);
#else
  const dnnl::matmul::desc desc = has_bias ? dnnl::matmul::desc(src, weights, bias, dst)
                                           : dnnl::matmul::desc(src, weights, dst);
  const dnnl::matmul::primitive_desc pd(desc, attr, cpu(), true);
#endif
  if (!pd || !blocked(pd.weights_desc())) return std::nullopt;
  return product_of<dnnl::matmul>(pd, plain, bias);
}

}  // namespace

namespace {

/// A convolution's sizes as oneDNN has them.
struct ConvDims {
  memory::dims weight, strides, dilates, padding, padding_end;
  tag weight_tag = tag::oihw;
  explicit ConvDims(const ConvShape& s)
      : weight{s.out_channels, s.in_channels / s.groups, s.kernel[0], s.kernel[1]},
        strides{s.stride[0], s.stride[1]},
        dilates{s.dilation[0] - 1, s.dilation[1] - 1},
        padding{s.padding[0], s.padding[1]} {
    if (s.groups > 1) {
      weight = {s.groups, s.out_channels / s.groups, s.in_channels / s.groups, s.kernel[0],
                s.kernel[1]};
      weight_tag = tag::goihw;
    }
    // What the stride leaves over at the far edge is not padding.
    const int64_t in[2] = {s.in_height, s.in_width}, out[2] = {s.out_height, s.out_width};
    for (size_t i = 0; i < 2; ++i) {
      padding_end.push_back(std::max<int64_t>(0, (out[i] - 1) * s.stride[i] +
                                                     (s.kernel[i] - 1) * s.dilation[i] + 1 - in[i] -
                                                     s.padding[i]));
    }
  }
};

/// Whether some outputs see padding alone: for those brgconv of oneDNN 2.6 applies what follows the
/// sum without having loaded its constants, and crashes.
bool sees_padding_alone(const ConvShape& s, const ConvDims& dims) {
  for (size_t i = 0; i < 2; ++i) {
    const int64_t extent = (s.kernel[i] - 1) * s.dilation[i] + 1;
    if (std::max(dims.padding[i], dims.padding_end[i]) >= extent) return true;
  }
  return false;
}

/// May be empty: oneDNN has nothing for it.
dnnl::convolution_forward::primitive_desc conv_description(
    const ConvDims& d, const memory::desc& src, const memory::desc& weights,
    const memory::desc& bias, const memory::desc& dst, const dnnl::primitive_attr& attr) {
  using Forward = dnnl::convolution_forward;
  constexpr auto kInference = dnnl::prop_kind::forward_inference;
  constexpr auto kDirect = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
  return Forward::primitive_desc(cpu(), kInference, kDirect, src, weights, bias, dst, d.strides,
                                 d.dilates, d.padding, d.padding_end, attr, true);
#else
  const Forward::desc desc = bias == memory::desc()
                                 ? Forward::desc(kInference, kDirect, src, weights, dst, d.strides,
                                                 d.dilates, d.padding, d.padding_end)
                                 : Forward::desc(kInference, kDirect, src, weights, bias, dst,
                                                 d.strides, d.dilates, d.padding, d.padding_end);
  return Forward::primitive_desc(desc, attr, cpu(), true);
#endif
}

}  // namespace

std::optional<Kernel> make_conv(const ConvShape& s, Layout layout, const Tail& tail,
                                std::span<const float> weight, std::span<const float> bias,
                                int threads, PackCache& cache, const std::string& key,
                                bool accept_reference) {
  return translated("convolution", s, [&]() -> std::optional<Kernel> {
    const ThreadScope scope(threads);
    const memory::desc src = image(s.samples, s.in_channels, s.in_height, s.in_width, layout);
    const memory::desc dst = image(s.samples, s.out_channels, s.out_height, s.out_width, layout);
    const ConvDims dims(s);
    const memory::desc bias_desc =
        bias.empty() ? memory::desc() : memory::desc({s.out_channels}, kF32, tag::x);
    const auto pd =
        conv_description(dims, src, any_desc(dims.weight), bias_desc, dst, attributes(tail, dst));
    if (!pd) return std::nullopt;
    const std::string name = pd.impl_info_str();
    if (is_reference(name) && !accept_reference) return std::nullopt;
    auto compiled = std::make_shared<Compiled>();
    compiled->primitive = dnnl::convolution_forward(pd);
    compiled->src = src;
    compiled->dst = dst;
    compiled->scratch = pd.scratchpad_desc();
    compiled->tail = tail;
    set_constants(*compiled, weight, memory::desc(dims.weight, kF32, dims.weight_tag),
                  pd.weights_desc(), bias, bias_desc, cache, key);
    return kernel_of(compiled, name, true);
  });
}

std::optional<Kernel> make_conv_i8(const ConvShape& s, const Tail& tail, const std::byte* weight,
                                   std::span<const float> scales, std::span<const float> bias,
                                   int threads, PackCache& cache, const std::string& key) {
  if (!product_usable(ProductType::i8)) return std::nullopt;
  SLUICE_CHECK(s.samples == 1 && tail.add != Tail::Add::accumulate);
  return translated("convolution in int8", s, [&]() -> std::optional<Kernel> {
    const ThreadScope scope(threads);
    constexpr auto kS8 = memory::data_type::s8;
    const memory::desc src =
        image(1, s.in_channels, s.in_height, s.in_width, Layout::channels_last, kS8);
    const memory::desc dst =
        image(1, s.out_channels, s.out_height, s.out_width, Layout::channels_last);
    const memory::desc channels({1, s.out_channels, 1, 1}, kF32, tag::nhwc),
        one({1, 1, 1, 1}, kF32, tag::nhwc);
    const ConvDims dims(s);
    if (sees_padding_alone(s, dims)) return std::nullopt;
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    dnnl::post_ops ops;
#if DNNL_VERSION_MAJOR >= 3
    ops.append_binary(dnnl::algorithm::binary_mul, channels);
#else
    // Half the time of a factor per channel behind the sums.
    attr.set_output_scales(2, {scales.begin(), scales.end()});
#endif
    // What changes with every sample, oneDNN's own scales of a convolution cannot.
    ops.append_binary(dnnl::algorithm::binary_mul, one);
    if (!bias.empty()) ops.append_binary(dnnl::algorithm::binary_add, channels);
    append_tail(ops, tail, dst);
    attr.set_post_ops(ops);
    const auto pd = conv_description(dims, src, memory::desc(dims.weight, kS8, tag::any),
                                     memory::desc(), dst, attr);
    // Of oneDNN 2.6 the way through a general product is slow and, of groups of odd sizes, wrong;
    // older code cannot be generated for some groups, after which the cache of primitives points to
    // freed memory. What is refused here multiplies values.
    const bool depthwise = s.groups == s.in_channels && s.groups == s.out_channels;
    const auto usable = [&](std::string_view name) {
      return name.starts_with("brgconv") || name.starts_with("brdgmm") ||
             (name.starts_with("jit") && (s.groups == 1 || depthwise));
    };
    if (!pd || !usable(pd.impl_info_str())) return std::nullopt;
    const std::string name = pd.impl_info_str();
    auto compiled = std::make_shared<Compiled>();
    compiled->primitive = dnnl::convolution_forward(pd);
    compiled->src = src;
    compiled->dst = dst;
    compiled->scratch = pd.scratchpad_desc();
    compiled->weights = pack(weight, memory::desc(dims.weight, kS8, dims.weight_tag),
                             pd.weights_desc(), cache, key);
    compiled->weights_memory = memory(pd.weights_desc(), cpu(), compiled->weights->data());
    const auto constant = [](std::span<const float> values) {
      Buffer buffer(static_cast<int64_t>(values.size_bytes()));
      if (!values.empty()) std::memcpy(buffer.data(), values.data(), values.size_bytes());
      return buffer;
    };
    compiled->bias = constant(bias);
    compiled->bias_memory = memory(channels, cpu(), compiled->bias.data());
#if DNNL_VERSION_MAJOR >= 3
    compiled->scales = constant(scales);
    compiled->scales_memory = memory(channels, cpu(), compiled->scales.data());
#endif
    Kernel kernel;
    kernel.name = fmt::format("onednn {} s8", name);
    kernel.scratch_bytes = static_cast<int64_t>(compiled->scratch.get_size());
    kernel.bind = [compiled, one,
                   adds = tail.add != Tail::Add::none](const Binding& b) -> std::function<void()> {
      auto call = std::make_shared<Call>();
      call->compiled = compiled;
      const auto bound = [&](size_t index, const memory::desc& desc, void* data) -> memory& {
        return call->memories[index] = memory(desc, cpu(), data);
      };
      call->add(DNNL_ARG_SRC, bound(0, compiled->src, b.inputs[0]));
      call->add(DNNL_ARG_DST, bound(1, compiled->dst, b.output));
      call->add(DNNL_ARG_SCRATCHPAD, bound(2, compiled->scratch, b.scratch));
      call->add(DNNL_ARG_WEIGHTS, compiled->weights_memory);
      int op = 0;
      const auto operand = [&](const memory& m) {
        call->add(DNNL_ARG_ATTR_MULTIPLE_POST_OP(op++) | DNNL_ARG_SRC_1, m);
      };
      if (compiled->scales.bytes() > 0) operand(compiled->scales_memory);
      operand(bound(3, one, b.inputs[1]));
      if (compiled->bias.bytes() > 0) operand(compiled->bias_memory);
      if (adds) operand(bound(4, compiled->dst, b.inputs[2]));
      return [call] { call->run(); };
    };
    return kernel;
  });
}

Kernel make_linear(int64_t rows, int64_t in, int64_t out, const Tail& tail,
                   std::span<const float> weight, std::span<const float> bias, int threads,
                   PackCache& cache, const std::string& key, bool weight_stays) {
  return translated(
      "linear layer", (ConvShape{.samples = rows, .in_channels = in, .out_channels = out}),
      [&]() -> Kernel {
        const ThreadScope scope(threads);
        const memory::desc bias_desc =
            bias.empty() ? memory::desc() : memory::desc({out}, kF32, tag::x);
        const memory::desc plain({out, in}, kF32, tag::ab);
        const std::string kind =
            fmt::format("linear {} {} {} {} {} {} {} {} {}", rows, in, out, bias.empty(),
                        int(tail.add), int(tail.activation), tail.factor, tail.offset, threads);
        const auto made = product(cache, kind, [&] {
          const memory::desc src({rows, in}, kF32, tag::ab), dst({rows, out}, kF32, tag::ab);
          const dnnl::primitive_attr attr = attributes(tail, dst);
          using Forward = dnnl::inner_product_forward;
          constexpr auto kInference = dnnl::prop_kind::forward_inference;
          const auto describe = [&](const memory::desc& weights) {
#if DNNL_VERSION_MAJOR >= 3
            return Forward::primitive_desc(cpu(), kInference, src, weights, bias_desc, dst, attr);
#else
            const Forward::desc desc =
                bias.empty() ? Forward::desc(kInference, src, weights, dst)
                             : Forward::desc(kInference, src, weights, bias_desc, dst);
            return Forward::primitive_desc(desc, attr, cpu());
#endif
          };
          const auto best = describe(any_desc({out, in}));
          // Without AVX-512 oneDNN copies what a product needs as it goes, and rows are as fast as
          // columns: as they are, the file's weights serve for every number of rows.
          if (!blocked(best.weights_desc()))
            return product_of<Forward>(describe(plain), plain, bias_desc);
          auto general = general_product(kF32, src, in, out, !bias.empty(), dst, attr);
          return general ? std::move(*general) : product_of<Forward>(best, plain, bias_desc);
        });
        auto compiled = compiled_of(*made);
        compiled->tail = tail;
        set_constants(*compiled, weight, made->plain, made->weights, bias, made->bias, cache, key,
                      weight_stays);
        return kernel_of(compiled, made->name, true);
      });
}

bool product_usable(ProductType type) {
  return has(type == ProductType::i8 ? dnnl::cpu_isa::avx512_core_vnni
                                     : dnnl::cpu_isa::avx512_core);
}

Kernel make_product(ProductType type, int64_t rows, int64_t in, int64_t out,
                    const std::byte* weight, int threads, PackCache& cache,
                    const std::string& key) {
  return translated(
      "product", (ConvShape{.samples = rows, .in_channels = in, .out_channels = out}),
      [&]() -> Kernel {
        const ThreadScope scope(threads);
        using type_t = memory::data_type;
        const bool integers = type == ProductType::i8;
        const type_t operand = integers ? type_t::s8 : type_t::bf16;
        const memory::desc plain({out, in}, operand, tag::ab);
        const std::string kind =
            fmt::format("product {} {} {} {} {}", integers, rows, in, out, threads);
        const auto made = product(cache, kind, [&] {
          const memory::desc src({rows, in}, operand, tag::ab),
              dst({rows, out}, integers ? type_t::s32 : type_t::f32, tag::ab),
              weights_any({out, in}, operand, tag::any);
          dnnl::primitive_attr attr;
          attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
          // Integers, and bf16 with AMX: inner products take 1 to 6% less time.
          if (!integers && !has(dnnl::cpu_isa::avx512_core_amx)) {
            if (auto general = general_product(operand, src, in, out, false, dst, attr))
              return std::move(*general);
          }
          using Forward = dnnl::inner_product_forward;
          constexpr auto kInference = dnnl::prop_kind::forward_inference;
#if DNNL_VERSION_MAJOR >= 3
          return product_of<Forward>(
              Forward::primitive_desc(cpu(), kInference, src, weights_any, dst, attr), plain);
#else
          return product_of<Forward>(
              Forward::primitive_desc(Forward::desc(kInference, src, weights_any, dst), attr,
                                      cpu()),
              plain);
#endif
        });
        auto compiled = compiled_of(*made);
        compiled->weights = pack(weight, made->plain, made->weights, cache, key);
        compiled->weights_memory = memory(made->weights, cpu(), compiled->weights->data());
        return kernel_of(compiled, made->name, true);
      });
}

namespace {

void multiply(const float* a, const float* b, int64_t rows, int64_t in, int64_t out,
              bool transposed, float scale, float* y, int64_t y_stride) {
  t_inside = true;
  const dnnl_status_t status = dnnl_sgemm('N', transposed ? 'T' : 'N', rows, out, in, scale, a, in,
                                          b, transposed ? in : out, 0.0f, y, y_stride);
  t_inside = false;
  if (status != dnnl_success)
    fail(Code::internal, "oneDNN: a product failed with status {}", int(status));
}

}  // namespace

void multiply_rows(const float* x, const float* weight, int64_t rows, int64_t in, int64_t out,
                   float* y, int64_t y_stride) {
  multiply(x, weight, rows, in, out, true, 1.0f, y, y_stride);
}

void multiply_matrices(const float* a, const float* b, int64_t rows, int64_t in, int64_t out,
                       bool transposed, float scale, float* y) {
  multiply(a, b, rows, in, out, transposed, scale, y, out);
}

Kernel make_pool(const ConvShape& s, bool maximum, int threads) {
  return translated("pool", s, [&]() -> Kernel {
    constexpr Layout layout = Layout::channels_last;
    const ThreadScope scope(threads);
    const memory::desc src = image(s.samples, s.in_channels, s.in_height, s.in_width, layout);
    const memory::desc dst = image(s.samples, s.in_channels, s.out_height, s.out_width, layout);
    const memory::dims strides{s.stride[0], s.stride[1]}, window{s.kernel[0], s.kernel[1]},
        dilation{0, 0}, padding{s.padding[0], s.padding[1]};
    memory::dims padding_end(2);
    const int64_t in[2] = {s.in_height, s.in_width}, out[2] = {s.out_height, s.out_width};
    for (size_t i = 0; i < 2; ++i) {
      padding_end[i] =
          std::max<int64_t>(0, (out[i] - 1) * s.stride[i] + s.kernel[i] - in[i] - s.padding[i]);
    }
    constexpr auto kInference = dnnl::prop_kind::forward_inference;
    const auto kind =
        maximum ? dnnl::algorithm::pooling_max : dnnl::algorithm::pooling_avg_exclude_padding;
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
    using Forward = dnnl::pooling_forward;
    const Forward::primitive_desc pd(cpu(), kInference, kind, src, dst, strides, window, dilation,
                                     padding, padding_end, attr);
#else
  using Forward = dnnl::pooling_v2_forward;
  const Forward::primitive_desc pd(
      Forward::desc(kInference, kind, src, dst, strides, window, dilation, padding, padding_end),
      attr, cpu());
#endif
    auto compiled = std::make_shared<Compiled>();
    compiled->primitive = Forward(pd);
    compiled->src = src;
    compiled->dst = dst;
    compiled->scratch = pd.scratchpad_desc();
    return kernel_of(compiled, pd.impl_info_str(), false);
  });
}

bool inside() { return t_inside; }

std::string version() {
  const dnnl::version_t* v = dnnl::version();
  return fmt::format("{}.{}.{}", v->major, v->minor, v->patch);
}

}  // namespace sluice::engine::onednn
