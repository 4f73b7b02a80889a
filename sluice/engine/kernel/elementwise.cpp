#include "sluice/engine/kernel/elementwise.h"

#include <cstring>

#include "sluice/base/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/elementwise.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/activation-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// The tail goes through a buffer on the stack: a masked load may still touch memory past the end on
// old targets.
template <class F>
HWY_INLINE void map1(const float* in, float* out, size_t count, F f) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(f(hn::LoadU(d, in + i)), d, out + i);
  if (i == count) return;
  HWY_ALIGN float rest[hn::MaxLanes(d)] = {};
  std::memcpy(rest, in + i, (count - i) * sizeof(float));
  hn::Store(f(hn::Load(d, rest)), d, rest);
  std::memcpy(out + i, rest, (count - i) * sizeof(float));
}

template <class F>
HWY_INLINE void map2(const float* a, const float* b, float* out, size_t count, F f) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(f(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, out + i);
  if (i == count) return;
  HWY_ALIGN float rest_a[hn::MaxLanes(d)] = {};
  HWY_ALIGN float rest_b[hn::MaxLanes(d)] = {};
  std::memcpy(rest_a, a + i, (count - i) * sizeof(float));
  std::memcpy(rest_b, b + i, (count - i) * sizeof(float));
  hn::Store(f(hn::Load(d, rest_a), hn::Load(d, rest_b)), d, rest_a);
  std::memcpy(out + i, rest_a, (count - i) * sizeof(float));
}

void Activate(Activation kind, const float* in, float* out, size_t count) {
  with_activation(
      kind, [&](auto f) HWY_ATTR { map1(in, out, count, [f](V x) HWY_ATTR { return f(x); }); });
}

void Add(const float* a, const float* b, Activation kind, float* out, size_t count) {
  with_activation(kind, [&](auto f) HWY_ATTR {
    map2(a, b, out, count, [f](V x, V y) HWY_ATTR { return f(hn::Add(x, y)); });
  });
}

void Multiply(const float* a, const float* b, float* out, size_t count) {
  map2(a, b, out, count, [](V x, V y) HWY_ATTR { return hn::Mul(x, y); });
}

void AddScaled(const float* in, float factor, float* out, size_t count) {
  const V f = hn::Set(D(), factor);
  map2(in, out, out, count, [=](V x, V y) HWY_ATTR { return hn::MulAdd(f, x, y); });
}

void Threshold(const float* in, float value, float* out, size_t count) {
  const D d;
  const V bound = hn::Set(d, value), one = hn::Set(d, 1.0f);
  map1(in, out, count, [=](V x) HWY_ATTR { return hn::IfThenElseZero(hn::Gt(x, bound), one); });
}

void ScaleAll(const float* in, float factor, float* out, size_t count) {
  const V f = hn::Set(D(), factor);
  map1(in, out, count, [=](V x) HWY_ATTR { return hn::Mul(x, f); });
}

void ScaleChannels(const float* in, const float* scale, const float* shift, float* out,
                   size_t outer, size_t channels, size_t inner) {
  const D d;
  if (inner == 1) {
    const size_t lanes = hn::Lanes(d);
    for (size_t o = 0; o < outer; ++o, in += channels, out += channels) {
      size_t c = 0;
      for (; c + lanes <= channels; c += lanes) {
        const V base = shift ? hn::LoadU(d, shift + c) : hn::Zero(d);
        hn::StoreU(hn::MulAdd(hn::LoadU(d, in + c), hn::LoadU(d, scale + c), base), d, out + c);
      }
      for (; c < channels; ++c) out[c] = in[c] * scale[c] + (shift ? shift[c] : 0.0f);
    }
    return;
  }
  for (size_t o = 0; o < outer; ++o) {
    for (size_t c = 0; c < channels; ++c, in += inner, out += inner) {
      const V factor = hn::Set(d, scale[c]), base = hn::Set(d, shift ? shift[c] : 0.0f);
      map1(in, out, inner, [=](V x) HWY_ATTR { return hn::MulAdd(x, factor, base); });
    }
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(Activate);
HWY_EXPORT(Add);
HWY_EXPORT(Multiply);
HWY_EXPORT(AddScaled);
HWY_EXPORT(Threshold);
HWY_EXPORT(ScaleAll);
HWY_EXPORT(ScaleChannels);

Activation activation_from_name(std::string_view name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "silu") return Activation::silu;
  if (name == "sigmoid") return Activation::sigmoid;
  if (name == "tanh") return Activation::tanh;
  if (name == "hard_swish") return Activation::hard_swish;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  fail(Code::unsupported,
       "activation kind '{}' has no kernel; use relu, gelu, gelu_tanh, silu, sigmoid, tanh or "
       "hard_swish",
       name);
}

void activate(Activation kind, const float* in, float* out, size_t count) {
  HWY_DYNAMIC_DISPATCH(Activate)(kind, in, out, count);
}
void add(const float* a, const float* b, Activation kind, float* out, size_t count) {
  HWY_DYNAMIC_DISPATCH(Add)(a, b, kind, out, count);
}
void multiply(const float* a, const float* b, float* out, size_t count) {
  HWY_DYNAMIC_DISPATCH(Multiply)(a, b, out, count);
}
void add_scaled(const float* in, float factor, float* out, size_t count) {
  HWY_DYNAMIC_DISPATCH(AddScaled)(in, factor, out, count);
}
void threshold(const float* in, float value, float* out, size_t count) {
  HWY_DYNAMIC_DISPATCH(Threshold)(in, value, out, count);
}
void scale_all(const float* in, float factor, float* out, size_t count) {
  HWY_DYNAMIC_DISPATCH(ScaleAll)(in, factor, out, count);
}
void scale_channels(const float* in, const float* scale, const float* shift, float* out,
                    size_t outer, size_t channels, size_t inner) {
  HWY_DYNAMIC_DISPATCH(ScaleChannels)(in, scale, shift, out, outer, channels, inner);
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
