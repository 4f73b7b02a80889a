// Activations on vectors, for inclusion by Highway files (once per target, hence the toggled
// guard).
#if defined(SLUICE_ENGINE_KERNEL_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_ENGINE_KERNEL_ACTIVATION_INL_H_
#undef SLUICE_ENGINE_KERNEL_ACTIVATION_INL_H_
#else
#define SLUICE_ENGINE_KERNEL_ACTIVATION_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "sluice/engine/kernel/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// exp() is exact to a few ulp; the argument is clamped where the result saturates in f32 anyway.
template <class V>
HWY_INLINE V sigmoid(V x) {
  const hn::DFromV<V> d;
  const V one = hn::Set(d, 1.0f);
  const V e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)));
  return hn::Div(one, hn::Add(one, e));
}

// Abramowitz & Stegun 7.1.26: |error| <= 1.5e-7.
template <class V>
HWY_INLINE V erf(V x) {
  const hn::DFromV<V> d;
  const V one = hn::Set(d, 1.0f), magnitude = hn::Abs(x);
  const V t = hn::Div(one, hn::MulAdd(hn::Set(d, 0.3275911f), magnitude, one));
  V p = hn::Set(d, 1.061405429f);
  p = hn::MulAdd(p, t, hn::Set(d, -1.453152027f));
  p = hn::MulAdd(p, t, hn::Set(d, 1.421413741f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.284496736f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.254829592f));
  const V squared = hn::Min(hn::Mul(magnitude, magnitude), hn::Set(d, 88.0f));
  const V value = hn::NegMulAdd(hn::Mul(p, t), hn::Exp(d, hn::Neg(squared)), one);
  return hn::CopySign(value, x);
}

struct NoneOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    return x;
  }
};
struct ReluOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    return hn::Max(x, hn::Zero(hn::DFromV<V>()));
  }
};
struct GeluOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    const hn::DFromV<V> d;
    const V half = hn::Mul(x, hn::Set(d, 0.5f));
    return hn::MulAdd(half, HWY_NAMESPACE::erf(hn::Mul(x, hn::Set(d, 0.70710678f))), half);
  }
};
struct SiluOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    return hn::Mul(x, HWY_NAMESPACE::sigmoid(x));
  }
};
struct SigmoidOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    return HWY_NAMESPACE::sigmoid(x);
  }
};
struct TanhOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    const hn::DFromV<V> d;  // saturated in f32 beyond 10; hwy's Tanh overflows far outside
    return hn::Tanh(d, hn::Max(hn::Min(x, hn::Set(d, 10.0f)), hn::Set(d, -10.0f)));
  }
};
struct HardSwishOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    const hn::DFromV<V> d;
    const V ramp = hn::Min(hn::Max(hn::Add(x, hn::Set(d, 3.0f)), hn::Zero(d)), hn::Set(d, 6.0f));
    return hn::Mul(x, hn::Mul(ramp, hn::Set(d, 1.0f / 6)));
  }
};

// x/2 (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluTanhOp {
  template <class V>
  HWY_INLINE V operator()(V x) const {
    const hn::DFromV<V> d;
    const V cubic = hn::MulAdd(hn::Mul(hn::Mul(x, x), x), hn::Set(d, 0.044715f), x);
    return hn::Mul(x, HWY_NAMESPACE::sigmoid(hn::Mul(cubic, hn::Set(d, 1.5957691216f))));
  }
};

/// Calls body(operation) with the operation of `kind`, so that the choice stays outside the loop.
template <class Body>
HWY_INLINE void with_activation(Activation kind, Body body) {
  switch (kind) {
    case Activation::none:
      return body(NoneOp());
    case Activation::relu:
      return body(ReluOp());
    case Activation::gelu:
      return body(GeluOp());
    case Activation::silu:
      return body(SiluOp());
    case Activation::sigmoid:
      return body(SigmoidOp());
    case Activation::tanh:
      return body(TanhOp());
    case Activation::hard_swish:
      return body(HardSwishOp());
    case Activation::gelu_tanh:
      return body(GeluTanhOp());
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // guard
