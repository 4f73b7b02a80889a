#include "sluice/engine/kernel/block_sparse.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/sparse.h"
#include "sluice/engine/kernel/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/block_sparse.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr int kVectors = static_cast<int>(kBlock / hn::MaxLanes(D()));  // of a block
// Sums in registers: rows of x times vectors of a block.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
constexpr int kMostRows = 12;
#else
constexpr int kMostRows = kVectors <= 2 ? 6 : 3;
#endif

/// sums[r] += block k * x[r][its column]. Three multiples of the stride reach four rows of x from
/// one register; a pointer for each row would not fit into registers.
template <int kRows>
HWY_INLINE void AddTall(const BlockWeights& w, int64_t k, const float* x,
                        V (&sums)[kRows][kVectors]) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), in = w.in;
  V block[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v)
    block[v] = hn::Load(d, w.value.floats() + k * kBlock + v * lanes);
  const float* at = x + w.column[static_cast<size_t>(k)];
  const float* const quads[3] = {at, at + 4 * in, at + 8 * in};
  const int64_t steps[4] = {0, in, 2 * in, 3 * in};
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const V one = hn::Set(d, quads[r / 4][steps[r % 4]]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(one, block[v], sums[r][v]);
  }
}

/// sums[r] += block k * x[r] from its column on, lane by lane.
template <int kRows>
HWY_INLINE void AddWide(const BlockWeights& w, int64_t k, const float* x, V (&sums)[kRows]) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* from = x + w.column[static_cast<size_t>(k)];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const V block = hn::Load(d, w.value.floats() + k * kBlock + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      sums[r] = hn::MulAdd(block, hn::LoadU(d, from + r * w.in + v * lanes), sums[r]);
  }
}

// A lone row alternates between kSums sums, because each waits four cycles for the one before.
template <int kRows, int kSums>
void TallTile(const BlockWeights& w, int64_t first, const float* x, const float* bias, float* y) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V sums[kSums][kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[s][r][v] = hn::Zero(d);
    }
  }
  int64_t k = w.start[static_cast<size_t>(first)];
  const int64_t end = w.start[static_cast<size_t>(first) + 1];
  for (; k + kSums <= end; k += kSums) {
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) AddTall<kRows>(w, k + s, x, sums[s]);
  }
  for (; k < end; ++k) AddTall<kRows>(w, k, x, sums[0]);
  const int64_t o = first * kBlock, count = std::min(kBlock, w.out - o);
  for (int r = 0; r < kRows; ++r) {
    HWY_ALIGN float all[kBlock];
    for (int v = 0; v < kVectors; ++v) {
      V sum = sums[0][r][v];
#pragma GCC unroll 16
      for (int s = 1; s < kSums; ++s) sum = hn::Add(sum, sums[s][r][v]);
      hn::Store(sum, d, all + v * lanes);
    }
    float* to = y + r * w.out + o;
    if (bias) {
      for (int64_t i = 0; i < count; ++i) to[i] = all[i] + bias[o + i];
    } else {
      std::copy(all, all + count, to);
    }
  }
}

template <int kRows, int kSums>
void WideTile(const BlockWeights& w, int64_t o, const float* x, const float* bias, float* y) {
  const D d;
  const float* value = w.value.floats();
  V sums[kSums][kRows];
#pragma GCC unroll 16
  for (int s = 0; s < kSums; ++s) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[s][r] = hn::Zero(d);
  }
  int64_t k = w.start[static_cast<size_t>(o)];
  int64_t end = w.start[static_cast<size_t>(o) + 1];
  // The last block of a row may reach past the end of x: it comes last.
  const bool partial = end > k && w.column[static_cast<size_t>(end - 1)] + kBlock > w.in;
  if (partial) --end;
  for (; k + kSums <= end; k += kSums) {
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) AddWide<kRows>(w, k + s, x, sums[s]);
  }
  for (; k < end; ++k) AddWide<kRows>(w, k, x, sums[0]);
  for (int r = 0; r < kRows; ++r) {
    V sum = sums[0][r];
#pragma GCC unroll 16
    for (int s = 1; s < kSums; ++s) sum = hn::Add(sum, sums[s][r]);
    float total = hn::GetLane(hn::SumOfLanes(d, sum));
    if (partial) {
      for (int64_t i = w.column[static_cast<size_t>(k)], j = 0; i < w.in; ++i, ++j)
        total += value[k * kBlock + j] * x[r * w.in + i];
    }
    y[r * w.out + o] = total + (bias ? bias[o] : 0.0f);
  }
}

using TileFunction = void (*)(const BlockWeights&, int64_t, const float*, const float*, float*);

/// Sums side by side, so that about eight products are under way.
constexpr int TallSums(int rows) {
  return std::max(1, rows * kVectors <= 2 ? 8 / (rows * kVectors) : 1);
}
constexpr int WideSums(int rows) { return std::max(1, 8 / rows); }

template <size_t... kCounts>
TileFunction TallFor(int64_t rows, std::index_sequence<kCounts...>) {
  static constexpr TileFunction tiles[] = {&TallTile<kCounts + 1, TallSums(kCounts + 1)>...};
  return tiles[rows - 1];
}

template <size_t... kCounts>
TileFunction WideFor(int64_t rows, std::index_sequence<kCounts...>) {
  static constexpr TileFunction tiles[] = {&WideTile<kCounts + 1, WideSums(kCounts + 1)>...};
  return tiles[rows - 1];
}

/// Blocks of outputs [first, last), all rows. The rows' tiles are outside: x of a tile stays in the
/// cache while the weights pass.
void BlockProduct(const BlockWeights& w, int64_t first, int64_t last, const float* x, size_t rows,
                  const float* bias, float* y) {
  const int64_t count = static_cast<int64_t>(rows), tiles = (count + kMostRows - 1) / kMostRows;
  const auto sequence = std::make_index_sequence<kMostRows>();
  for (int64_t t = 0, r = 0; t < tiles; ++t) {
    const int64_t now = (count - r) / (tiles - t);
    const TileFunction tile =
        w.shape == BlockShape::tall ? TallFor(now, sequence) : WideFor(now, sequence);
    for (int64_t b = first; b < last; ++b) tile(w, b, x + r * w.in, bias, y + r * w.out);
    r += now;
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(BlockProduct);

namespace {

/// f(group, column, values of the block) for blocks that are not all zero, in order.
template <class F>
void for_each_block(std::span<const float> weight, int64_t out, int64_t in, BlockShape shape, F f) {
  const bool tall = shape == BlockShape::tall;
  const int64_t height = tall ? kBlock : 1, width = tall ? 1 : kBlock;
  float block[kBlock];
  for (int64_t o = 0; o < out; o += height) {
    for (int64_t i = 0; i < in; i += width) {
      std::fill(block, block + kBlock, 0.0f);
      bool any = false;
      for (int64_t k = 0; k < kBlock; ++k) {
        const int64_t row = tall ? o + k : o, column = tall ? i : i + k;
        if (row >= out || column >= in) break;
        block[k] = weight[static_cast<size_t>(row * in + column)];
        any = any || block[k] != 0;
      }
      if (any) f(o / height, i, block);
    }
  }
}

}  // namespace

double block_density(std::span<const float> weight, int64_t out, int64_t in, BlockShape shape) {
  int64_t kept = 0;
  for_each_block(weight, out, in, shape, [&](int64_t, int64_t, const float*) { ++kept; });
  const int64_t blocks = shape == BlockShape::tall ? (out + kBlock - 1) / kBlock * in
                                                   : (in + kBlock - 1) / kBlock * out;
  return static_cast<double>(kept) / static_cast<double>(blocks);
}

BlockWeights compress_blocks(std::span<const float> weight, int64_t out, int64_t in,
                             BlockShape shape) {
  SLUICE_CHECK(static_cast<int64_t>(weight.size()) == out * in);
  if (weight.size() > std::numeric_limits<uint32_t>::max() / kBlock)
    fail(Code::limit, "block-sparse weights: {} x {} is too large", out, in);
  BlockWeights result;
  result.shape = shape;
  result.out = out;
  result.in = in;
  const int64_t groups = shape == BlockShape::tall ? (out + kBlock - 1) / kBlock : out;
  result.start.assign(static_cast<size_t>(groups) + 1, 0);
  std::vector<float> values;
  for_each_block(weight, out, in, shape, [&](int64_t group, int64_t column, const float* block) {
    result.column.push_back(static_cast<uint32_t>(column));
    values.insert(values.end(), block, block + kBlock);
    ++result.start[static_cast<size_t>(group) + 1];
  });
  for (size_t g = 1; g < result.start.size(); ++g) result.start[g] += result.start[g - 1];
  result.value = Buffer(static_cast<int64_t>(values.size() * sizeof(float)));
  std::copy(values.begin(), values.end(), result.value.floats());
  return result;
}

void linear_blocks(const float* x, const BlockWeights& w, const float* bias, Activation activation,
                   float* y, size_t rows, int threads) {
  const int64_t groups = std::ssize(w.start) - 1;
  in_parts(threads, [&](int64_t part, int64_t parts) {
    HWY_DYNAMIC_DISPATCH(BlockProduct)
    (w, groups * part / parts, groups * (part + 1) / parts, x, rows, bias, y);
  });
  if (activation != Activation::none) activate(activation, y, y, rows * static_cast<size_t>(w.out));
}

namespace {

/// Time over the dense product's = base + slope * kept share.
struct Line {
  int64_t rows;  ///< from this many rows of x
  double base, slope;
};

// Fits of sparse_bench.cpp (784 -> 300) and block_sparse_bench.cpp (512 -> 512): Zen 5, AVX-512,
// one thread, medians, against oneDNN. Time over dense at 0.1, 0.5 and 0.9 of the blocks:
//   rows        1              2              4              8             16             64
//   tall  .13 .44 .99    .20 .69 1.3    .25 .85 1.5    .22 .81 1.4    .25 .87 1.5    .23 .89 1.6
//   wide  .45 .76 1.3    .63 1.1 1.7    .76 1.6 2.5    .80 1.9 2.9    .88 2.2 3.5    .96 1.9 3.3
constexpr Line kRows[] = {{1, .05, 9.5}, {2, .32, 9.7},  {4, .44, 6.2},
                          {8, .20, 5.4}, {16, .08, 3.7}, {64, .01, 4.5}};
constexpr Line kTall[] = {{1, .02, 1.07}, {2, .07, 1.30},  {4, .09, 1.55},
                          {8, .07, 1.45}, {16, .09, 1.58}, {64, .07, 1.65}};
constexpr Line kWide[] = {{1, .35, 1.0}, {2, .50, 1.2},  {4, .55, 2.1},
                          {8, .52, 2.7}, {16, .56, 3.2}, {64, .70, 2.7}};
constexpr double kMargin = 0.95;  // what has to be gained

double time_of(std::span<const Line> lines, int64_t rows, double density) {
  const Line* best = &lines[0];
  for (const Line& line : lines) {
    if (line.rows <= rows) best = &line;
  }
  return best->base + best->slope * density;
}

}  // namespace

SparseChoice choose_sparse(std::span<const float> weight, int64_t out, int64_t in, int64_t rows,
                           double density) {
  if (density < 0) density = density_of(weight);
  // Blocks are at least as dense as their weights; few networks get past this line.
  if (time_of(kTall, rows, density) >= kMargin && !sparse_pays(density, rows))
    return SparseChoice::dense;
  SparseChoice choice = SparseChoice::dense;
  double best = kMargin;
  const auto offer = [&](SparseChoice other, double time) {
    if (time < best) choice = other, best = time;
  };
  if (sparse_pays(density, rows)) offer(SparseChoice::rows, time_of(kRows, rows, density));
  offer(SparseChoice::tall, time_of(kTall, rows, block_density(weight, out, in, BlockShape::tall)));
  offer(SparseChoice::wide, time_of(kWide, rows, block_density(weight, out, in, BlockShape::wide)));
  return choice;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
