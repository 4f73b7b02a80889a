#include "sluice/engine/kernel/panel.h"

#include <algorithm>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/panel.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;

// Sums of kPixels pixels x kGroups groups of kVectors vectors stay in registers: 28 of 32, or 12 of
// 16. A lone pixel takes four groups at once, because a sum waits four cycles for the one before
// it.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
constexpr int kMostPixels = 14, kMostGroups = 4;
#else
constexpr int kMostPixels = 6, kMostGroups = 2;
#endif

/// One group's place: where its weights begin, which outputs it makes and how many exist.
struct Place {
  const float* weight;
  int64_t first, count;
};

template <int kVectors>
HWY_INLINE void LoadSome(const float* from, int64_t count, V* to) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (count >= kVectors * lanes) {
    for (int v = 0; v < kVectors; ++v) to[v] = hn::LoadU(d, from + v * lanes);
    return;
  }
  HWY_ALIGN float all[kVectors * 16] = {};
  std::copy(from, from + count, all);
  for (int v = 0; v < kVectors; ++v) to[v] = hn::Load(d, all + v * lanes);
}

template <int kVectors>
HWY_INLINE void StoreSome(const V* from, int64_t count, float* to) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (count >= kVectors * lanes) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(from[v], d, to + v * lanes);
    return;
  }
  HWY_ALIGN float all[kVectors * 16];
  for (int v = 0; v < kVectors; ++v) hn::Store(from[v], d, all + v * lanes);
  std::copy(all, all + count, to);
}

/// `ahead`: floats from the first group's weights to those that come after, which are asked for
/// meanwhile; 0: none.
template <int kPixels, int kGroups, int kVectors>
void Tile(const PanelCall& call, const Place* places, const float* const* x, float* out,
          int64_t ahead) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V sums[kPixels][kGroups][kVectors];
  const float* from[kPixels];
  const float* weight[kGroups];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; ++g) {
    weight[g] = places[g].weight;
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
      if (call.accumulate) {
        LoadSome<kVectors>(out + p * call.out_stride + places[g].first, places[g].count,
                           sums[p][g]);
      } else {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          sums[p][g][v] =
              call.bias ? hn::LoadU(d, call.bias + places[g].first + v * lanes) : hn::Zero(d);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) from[p] = x[p];
  for (const PanelRun& run : call.runs) {
    const int64_t end = run.offset + run.count;
#pragma GCC unroll 2
    for (int64_t i = run.offset; i < end; ++i) {
      V w[kGroups][kVectors];
      if (kGroups == 1) {
        for (int v = 0; v < kVectors; ++v) __builtin_prefetch(weight[0] + ahead + v * lanes, 0, 2);
      }
#pragma GCC unroll 16
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) w[g][v] = hn::Load(d, weight[g] + v * lanes);
        weight[g] += kPanel;
      }
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const V value = hn::Set(d, from[p][i]);
#pragma GCC unroll 16
        for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v)
            sums[p][g][v] = hn::MulAdd(value, w[g][v], sums[p][g][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g)
      StoreSome<kVectors>(sums[p][g], places[g].count, out + p * call.out_stride + places[g].first);
  }
}

using TileFunction = void (*)(const PanelCall&, const Place*, const float* const*, float*, int64_t);

template <int kGroups, int kVectors, size_t... kCounts>
TileFunction TileFor(int64_t pixels, std::index_sequence<kCounts...>) {
  static constexpr TileFunction tiles[] = {&Tile<kCounts + 1, kGroups, kVectors>...};
  return tiles[pixels - 1];
}

/// All pixels, in tiles of as equal a size as possible, at most kMost.
template <int kMost, int kGroups, int kVectors>
void Pixels(const PanelCall& call, const Place* places, int64_t ahead = 0) {
  const int64_t tiles = (call.pixels + kMost - 1) / kMost;
  for (int64_t t = 0, p = 0; t < tiles; ++t) {
    const int64_t count = (call.pixels - p) / (tiles - t);
    TileFor<kGroups, kVectors>(count, std::make_index_sequence<kMost>())(
        call, places, call.x + p, call.out + p * call.out_stride, t + 1 == tiles ? ahead : 0);
    p += count;
  }
}

void PanelProducts(const PanelCall& call) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  // A group is two vectors, in 512 bits a whole panel.
  const int64_t group = std::min<int64_t>(2 * lanes, kPanel);
  const auto place = [&](int64_t o) {
    return Place{call.weight + o / kPanel * call.panel_stride + o % kPanel, o,
                 std::min(group, call.outputs - o)};
  };
  int64_t o = 0;
  if (call.pixels < 4) {
    for (; o + kMostGroups * group <= call.outputs; o += kMostGroups * group) {
      Place places[kMostGroups];
      for (int g = 0; g < kMostGroups; ++g) places[g] = place(o + g * group);
      Pixels<2, kMostGroups, 2>(call, places);
    }
  }
  for (; o < call.outputs; o += group) {
    const Place one = place(o);
    // The last tile asks for the next weights (17% less time for cold ones, 20% more for hot ones
    // of few pixels, where reading them is the work and the processor is ahead already).
    const bool asks = call.pixels >= 8 && o + group < call.outputs;
    const int64_t ahead = asks ? place(o + group).weight - one.weight : 0;
    if (one.count > lanes) {
      Pixels<kMostPixels, 1, 2>(call, &one, ahead);
    } else {
      Pixels<kMostPixels, 1, 1>(call, &one, ahead);
    }
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(PanelProducts);

void panel_products(const PanelCall& call) { HWY_DYNAMIC_DISPATCH(PanelProducts)(call); }

Buffer pack_panels(std::span<const float> weight, int64_t outputs, int64_t depth) {
  SLUICE_CHECK(static_cast<int64_t>(weight.size()) == outputs * depth);
  Buffer result(checked_mul(checked_mul(panel_outputs(outputs), depth, "panels"),
                            static_cast<int64_t>(sizeof(float)), "panels"));
  for (int64_t o = 0; o < outputs; ++o) {
    float* to = result.floats() + o / kPanel * depth * kPanel + o % kPanel;
    const float* from = weight.data() + o * depth;
    for (int64_t k = 0; k < depth; ++k) to[k * kPanel] = from[k];
  }
  return result;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
