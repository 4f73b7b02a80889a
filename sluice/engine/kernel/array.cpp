#include "sluice/engine/kernel/array.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/engine/kernel/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/array.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include "sluice/engine/kernel/activation-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

/// `step` 0 repeats the first element of an operand.
template <class F>
HWY_INLINE void map2(const float* a, size_t step_a, const float* b, size_t step_b, float* out,
                     size_t count, F f) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const V first_a = hn::Set(d, a[0]), first_b = hn::Set(d, b[0]);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(f(step_a ? hn::LoadU(d, a + i) : first_a, step_b ? hn::LoadU(d, b + i) : first_b), d,
               out + i);
  if (i == count) return;
  HWY_ALIGN float rest_a[hn::MaxLanes(d)] = {};
  HWY_ALIGN float rest_b[hn::MaxLanes(d)] = {};
  for (size_t k = i; k < count; ++k) {
    rest_a[k - i] = a[k * step_a];
    rest_b[k - i] = b[k * step_b];
  }
  hn::Store(f(hn::Load(d, rest_a), hn::Load(d, rest_b)), d, rest_a);
  std::memcpy(out + i, rest_a, (count - i) * sizeof(float));
}

bool BinaryRow(bundle::Binary kind, const float* a, size_t step_a, const float* b, size_t step_b,
               float* out, size_t count) {
  using bundle::Binary;
  switch (kind) {
    case Binary::add:
      map2(a, step_a, b, step_b, out, count, [](V x, V y) HWY_ATTR { return hn::Add(x, y); });
      return true;
    case Binary::sub:
      map2(a, step_a, b, step_b, out, count, [](V x, V y) HWY_ATTR { return hn::Sub(x, y); });
      return true;
    case Binary::mul:
      map2(a, step_a, b, step_b, out, count, [](V x, V y) HWY_ATTR { return hn::Mul(x, y); });
      return true;
    case Binary::div:
      map2(a, step_a, b, step_b, out, count, [](V x, V y) HWY_ATTR { return hn::Div(x, y); });
      return true;
    default:
      return false;
  }
}

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

bool UnaryRow(bundle::Unary kind, float alpha, float beta, const float* in, float* out,
              size_t count) {
  using bundle::Unary;
  const D d;
  const V a = hn::Set(d, alpha), b = hn::Set(d, beta), zero = hn::Zero(d), one = hn::Set(d, 1.0f);
  switch (kind) {
    case Unary::linear:
      map1(in, out, count, [=](V x) HWY_ATTR { return hn::MulAdd(x, a, b); });
      return true;
    case Unary::clip:
      map1(in, out, count, [=](V x) HWY_ATTR { return hn::Min(b, hn::Max(a, x)); });
      return true;
    case Unary::leaky_relu:
      map1(in, out, count,
           [=](V x) HWY_ATTR { return hn::IfThenElse(hn::Ge(x, zero), x, hn::Mul(x, a)); });
      return true;
    case Unary::hard_sigmoid:
      map1(in, out, count,
           [=](V x) HWY_ATTR { return hn::Max(zero, hn::Min(one, hn::MulAdd(x, a, b))); });
      return true;
    case Unary::abs:
      map1(in, out, count, [](V x) HWY_ATTR { return hn::Abs(x); });
      return true;
    case Unary::neg:
      map1(in, out, count, [](V x) HWY_ATTR { return hn::Neg(x); });
      return true;
    case Unary::square:
      map1(in, out, count, [](V x) HWY_ATTR { return hn::Mul(x, x); });
      return true;
    case Unary::sqrt:
      map1(in, out, count, [](V x) HWY_ATTR { return hn::Sqrt(x); });
      return true;
    case Unary::reciprocal:
      map1(in, out, count, [=](V x) HWY_ATTR { return hn::Div(one, x); });
      return true;
    default:
      return false;
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {
namespace {

using bundle::Binary;
using bundle::Reduce;
using bundle::Unary;

/// Calls row(offsets of the operands, offset of the output) for each run of the innermost loop.
template <class F>
void for_rows(const Loops& loops, F row) {
  const size_t outer = loops.sizes.size() - 1;
  std::array<size_t, 16> index{};
  std::array<size_t, 3> at{};
  const size_t inner = loops.sizes[outer];
  size_t total = 1;
  for (size_t i = 0; i < outer; ++i) total *= loops.sizes[i];
  for (size_t n = 0; n < total; ++n) {
    row(at, n * inner);
    for (size_t i = outer; i-- > 0;) {
      for (size_t k = 0; k < 3; ++k) at[k] += loops.strides[k][i];
      if (++index[i] < loops.sizes[i]) break;
      for (size_t k = 0; k < 3; ++k) at[k] -= loops.strides[k][i] * loops.sizes[i];
      index[i] = 0;
    }
  }
}

/// The two innermost loops of a copy, where the outer one walks along the input: a transpose.
bool turns(const Loops& loops) {
  const size_t n = loops.sizes.size();
  return n >= 2 && loops.strides[0][n - 2] == 1 && loops.strides[0][n - 1] >= loops.sizes[n - 2];
}

}  // namespace

HWY_EXPORT(BinaryRow);
HWY_EXPORT(UnaryRow);

std::vector<size_t> broadcast_strides(const Shape& shape, const Shape& out) {
  std::vector<size_t> strides(out.size(), 0);
  size_t step = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    const size_t size = static_cast<size_t>(shape[shape.size() - 1 - i]);
    if (size > 1) strides[out.size() - 1 - i] = step;
    step *= size;
  }
  return strides;
}

Loops merge_loops(const Shape& out, std::span<const std::vector<size_t>> operands) {
  Loops loops;
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t size = static_cast<size_t>(out[i]);
    if (size == 1) continue;
    bool joins = !loops.sizes.empty();
    for (size_t k = 0; joins && k < operands.size(); ++k)
      joins = loops.strides[k].back() == operands[k][i] * size;
    if (joins) {
      loops.sizes.back() *= size;
    } else {
      loops.sizes.push_back(size);
    }
    for (size_t k = 0; k < 3; ++k) {
      const size_t stride = k < operands.size() ? operands[k][i] : 0;
      if (joins) {
        loops.strides[k].back() = stride;
      } else {
        loops.strides[k].push_back(stride);
      }
    }
  }
  if (loops.sizes.empty()) {
    loops.sizes.push_back(1);
    for (auto& strides : loops.strides) strides.push_back(0);
  }
  return loops;
}

void copy_array(const Loops& loops, const float* in, float* out) {
  const size_t last = loops.sizes.size() - 1, size = loops.sizes[last],
               step = loops.strides[0][last];
  if (turns(loops)) {
    Loops outer = loops;
    const size_t columns = loops.sizes[last - 1];
    outer.sizes.resize(last);
    outer.sizes[last - 1] = 1;
    for (auto& strides : outer.strides) strides.resize(last);
    for_rows(outer, [&](const std::array<size_t, 3>& at, size_t n) {
      transpose_strided(in + at[0], out + n * columns * size, size, columns, step, size);
    });
    return;
  }
  for_rows(loops, [&](const std::array<size_t, 3>& at, size_t to) {
    const float* from = in + at[0];
    if (step == 1) {
      std::memcpy(out + to, from, size * sizeof(float));
    } else {
      for (size_t i = 0; i < size; ++i) out[to + i] = from[i * step];
    }
  });
}

void binary_array(Binary kind, const Loops& loops, const float* a, const float* b, float* out) {
  const size_t last = loops.sizes.size() - 1, size = loops.sizes[last],
               step_a = loops.strides[0][last], step_b = loops.strides[1][last];
  const bool simple = step_a <= 1 && step_b <= 1;
  for_rows(loops, [&](const std::array<size_t, 3>& at, size_t to) {
    const float *x = a + at[0], *y = b + at[1];
    float* z = out + to;
    if (simple && HWY_DYNAMIC_DISPATCH(BinaryRow)(kind, x, step_a, y, step_b, z, size)) return;
    for (size_t i = 0; i < size; ++i)
      z[i] = static_cast<float>(bundle::binary_value(kind, x[i * step_a], y[i * step_b]));
  });
}

void where_array(const Loops& loops, const float* condition, const float* a, const float* b,
                 float* out) {
  const size_t last = loops.sizes.size() - 1, size = loops.sizes[last];
  const std::array<size_t, 3> step{loops.strides[0][last], loops.strides[1][last],
                                   loops.strides[2][last]};
  for_rows(loops, [&](const std::array<size_t, 3>& at, size_t to) {
    const float *c = condition + at[0], *x = a + at[1], *y = b + at[2];
    for (size_t i = 0; i < size; ++i)
      out[to + i] = c[i * step[0]] != 0 ? x[i * step[1]] : y[i * step[2]];
  });
}

void unary_array(Unary kind, float alpha, float beta, const float* in, float* out, size_t count) {
  if (HWY_DYNAMIC_DISPATCH(UnaryRow)(kind, alpha, beta, in, out, count)) return;
  for (size_t i = 0; i < count; ++i)
    out[i] = static_cast<float>(bundle::unary_value(kind, in[i], alpha, beta));
}

void reduce_middle(Reduce kind, const float* in, float* out, size_t outer, size_t reduced,
                   size_t inner) {
  const bool position = kind == Reduce::argmax || kind == Reduce::argmin;
  for (size_t o = 0; o < outer; ++o, in += reduced * inner, out += inner) {
    if (kind == Reduce::mean && inner == 1) {
      average_plain(in, out, 1, 1, reduced);
      continue;
    }
    for (size_t i = 0; i < inner; ++i) {
      double value = position || kind == Reduce::max || kind == Reduce::min
                         ? in[i]
                         : (kind == Reduce::prod ? 1.0 : 0.0);
      size_t best = 0;
      for (size_t r = 0; r < reduced; ++r) {
        const double x = in[r * inner + i];
        switch (kind) {
          case Reduce::sum:
          case Reduce::mean:
            value += x;
            break;
          case Reduce::prod:
            value *= x;
            break;
          case Reduce::max:
            value = bundle::binary_value(Binary::max, value, x);
            break;
          case Reduce::min:
            value = bundle::binary_value(Binary::min, value, x);
            break;
          case Reduce::argmax:
          case Reduce::argmin:
            if (kind == Reduce::argmax ? x > value : x < value) {
              value = x;
              best = r;
            }
            break;
        }
      }
      if (kind == Reduce::mean) value /= static_cast<double>(reduced);
      out[i] = position ? static_cast<float>(best) : static_cast<float>(value);
    }
  }
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
