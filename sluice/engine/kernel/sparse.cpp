#include "sluice/engine/kernel/sparse.h"

#include <algorithm>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/sparse.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#ifndef SLUICE_ENGINE_KERNEL_SPARSE_ONCE_
#define SLUICE_ENGINE_KERNEL_SPARSE_ONCE_
namespace sluice::engine {
inline constexpr size_t kPanel = 16;     // samples side by side: x of one column is one cache line
inline constexpr size_t kPanelFrom = 2;  // fewer samples take the kernel with gathers
}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// One row of x: gathers. Eight and more non-zeros per step, the rest with the last lanes masked to
// zero.
void SparseVector(const float* x, const SparseWeights& w, float* y) {
  const D d;
  const hn::RebindToSigned<D> di;
  const size_t lanes = hn::Lanes(d);
  const int32_t* column = reinterpret_cast<const int32_t*>(w.column.data());
  for (size_t o = 0; o < static_cast<size_t>(w.out); ++o) {
    size_t k = w.start[o];
    const size_t end = w.start[o + 1];
    V even = hn::Zero(d), odd = hn::Zero(d);
    for (; k + 2 * lanes <= end; k += 2 * lanes) {
      even = hn::MulAdd(hn::LoadU(d, w.value.data() + k),
                        hn::GatherIndex(d, x, hn::LoadU(di, column + k)), even);
      odd = hn::MulAdd(hn::LoadU(d, w.value.data() + k + lanes),
                       hn::GatherIndex(d, x, hn::LoadU(di, column + k + lanes)), odd);
    }
    for (; k < end; k += lanes) {
      // Past the end are the next row's entries (or the padding): valid columns, weights masked
      // away.
      const V value = hn::IfThenElseZero(hn::FirstN(d, end - k), hn::LoadU(d, w.value.data() + k));
      even = hn::MulAdd(value, hn::GatherIndex(d, x, hn::LoadU(di, column + k)), even);
    }
    y[o] = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  }
}

// x [in][kPanel], y [out][kPanel]: every non-zero is one broadcast and one cache line of x. Four
// sums hide the latency.
void SparsePanel(const float* x, const SparseWeights& w, float* y) {
  const D d;
  const size_t lanes = std::min(hn::Lanes(d), kPanel);
  const uint32_t* column = w.column.data();
  const float* value = w.value.data();
  for (size_t v = 0; v < kPanel; v += lanes) {
    for (size_t o = 0; o < static_cast<size_t>(w.out); ++o) {
      V sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      size_t k = w.start[o];
      const size_t end = w.start[o + 1];
      for (; k + 4 <= end; k += 4) {
        for (size_t j = 0; j < 4; ++j) {
          sums[j] = hn::MulAdd(hn::Set(d, value[k + j]),
                               hn::LoadU(d, x + column[k + j] * kPanel + v), sums[j]);
        }
      }
      for (; k < end; ++k) {
        sums[0] =
            hn::MulAdd(hn::Set(d, value[k]), hn::LoadU(d, x + column[k] * kPanel + v), sums[0]);
      }
      hn::StoreU(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3])), d,
                 y + o * kPanel + v);
    }
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {
namespace {

void finish_rows(const float* bias, Activation activation, float* y, size_t rows, size_t out) {
  if (bias) {
    for (size_t r = 0; r < rows; ++r) add(y + r * out, bias, activation, y + r * out, out);
  } else if (activation != Activation::none) {
    activate(activation, y, y, rows * out);
  }
}

}  // namespace

HWY_EXPORT(SparseVector);
HWY_EXPORT(SparsePanel);

double density_of(std::span<const float> weight) {
  const auto zeros = std::count(weight.begin(), weight.end(), 0.0f);
  return weight.empty() ? 1.0 : 1.0 - double(zeros) / double(weight.size());
}

SparseWeights compress(std::span<const float> weight, int64_t out, int64_t in) {
  SLUICE_CHECK(static_cast<int64_t>(weight.size()) == out * in);
  if (weight.size() > std::numeric_limits<uint32_t>::max() ||
      in > std::numeric_limits<int32_t>::max()) {
    fail(Code::limit, "sparse weights: {} x {} is too large", out, in);
  }
  SparseWeights result;
  result.out = out;
  result.in = in;
  result.start.push_back(0);
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const float w = weight[static_cast<size_t>(o * in + i)];
      if (w == 0.0f) continue;
      result.column.push_back(static_cast<uint32_t>(i));
      result.value.push_back(w);
    }
    result.start.push_back(static_cast<uint32_t>(result.value.size()));
  }
  result.column.resize(result.column.size() + SparseWeights::kPad, 0);
  result.value.resize(result.value.size() + SparseWeights::kPad, 0.0f);
  return result;
}

// Where linear_sparse meets oneDNN's dense product for 784 -> 300 (Zen 5, AVX-512, one thread,
// medians): kept 0.10 at 1 row, 0.07 at 2, 0.09 at 4, 0.15 at 8, 0.25 at 16, 0.22 at 64. At kept
// 0.04 it takes 0.43, 0.71, 0.69, 0.41, 0.23 and 0.19 of the dense time.
bool sparse_pays(double density, int64_t rows) {
  return density < (rows < 8 ? 0.07 : rows < 16 ? 0.15 : 0.20);
}

size_t sparse_scratch(const SparseWeights& weights, size_t rows) {
  return rows < kPanelFrom ? 0 : static_cast<size_t>(weights.in + weights.out) * kPanel;
}

void linear_sparse(const float* x, const SparseWeights& w, const float* bias, Activation activation,
                   float* y, size_t rows, float* scratch) {
  const size_t in = static_cast<size_t>(w.in), out = static_cast<size_t>(w.out);
  if (rows < kPanelFrom) {
    for (size_t r = 0; r < rows; ++r)
      HWY_DYNAMIC_DISPATCH(SparseVector)(x + r * in, w, y + r * out);
    return finish_rows(bias, activation, y, rows, out);
  }
  float* columns = scratch;
  float* results = scratch + in * kPanel;
  for (size_t first = 0; first < rows; first += kPanel) {
    const size_t count = std::min(kPanel, rows - first);
    if (count < kPanel) std::fill(columns, columns + in * kPanel, 0.0f);
    transpose_strided(x + first * in, columns, count, in, in, kPanel);
    HWY_DYNAMIC_DISPATCH(SparsePanel)(columns, w, results);
    transpose_strided(results, y + first * out, out, count, kPanel, out);
  }
  finish_rows(bias, activation, y, rows, out);
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
