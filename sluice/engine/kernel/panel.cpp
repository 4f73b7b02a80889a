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

/// Weights of later, which a tile asks for with every k: two lines from `from`, which moves on by
/// `step` bytes.
struct Ahead {
  const char* from = nullptr;
  int64_t step = 0;
};

template <int kPixels, int kGroups, int kVectors>
void Tile(const PanelCall& call, const Place* places, const float* const* x, float* out,
          Ahead ahead) {
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
        __builtin_prefetch(ahead.from, 0, 2);
        if (hn::MaxLanes(D()) == 16) __builtin_prefetch(ahead.from + 64, 0, 2);
        ahead.from += ahead.step;
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

using TileFunction = void (*)(const PanelCall&, const Place*, const float* const*, float*, Ahead);

/// `bytes` from `from` on, to be asked for by `parts` groups of tiles, of which this is `part`.
struct Asked {
  const char* from = nullptr;
  int64_t bytes = 0, part = 0, parts = 1;
};

template <int kGroups, int kVectors, size_t... kCounts>
TileFunction TileFor(int64_t pixels, std::index_sequence<kCounts...>) {
  static constexpr TileFunction tiles[] = {&Tile<kCounts + 1, kGroups, kVectors>...};
  return tiles[pixels - 1];
}

/// All pixels, in tiles of as equal a size as possible, at most kMost.
template <int kMost, int kGroups, int kVectors>
void Pixels(const PanelCall& call, const Place* places, const Asked& asked = {}) {
  const int64_t tiles = (call.pixels + kMost - 1) / kMost, shares = tiles * asked.parts;
  const int64_t share = (asked.bytes + shares - 1) / shares;
  Ahead ahead;
  if (asked.bytes > 0) ahead.step = (kPanel * 4 + shares - 1) / shares;
  for (int64_t t = 0, p = 0; t < tiles; ++t) {
    const int64_t count = (call.pixels - p) / (tiles - t);
    ahead.from = asked.bytes > 0 ? asked.from + (asked.part * tiles + t) * share
                                 : reinterpret_cast<const char*>(places[0].weight);
    if (call.accumulate) {  // the next tile's sums so far: rows of `out` may lie far apart
      const int64_t behind = std::min(p + count + kMost, call.pixels);
      for (int64_t i = p + count; i < behind; ++i)
        __builtin_prefetch(call.out + i * call.out_stride + places[0].first, 1);
    }
    TileFor<kGroups, kVectors>(count, std::make_index_sequence<kMost>())(
        call, places, call.x + p, call.out + p * call.out_stride, ahead);
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
  int64_t depth = 0;
  for (const PanelRun& run : call.runs) depth += run.count;
  for (; o < call.outputs; o += group) {
    const Place one = place(o);
    // All tiles of a panel together ask for the next one, so that memory never rests while they
    // multiply (measured: less time for cold weights; more for hot ones of few pixels, where
    // reading them is the work and the processor is ahead already).
    const int64_t panel = o / kPanel;
    const float* then = (panel + 1) * kPanel < call.outputs
                            ? call.weight + (panel + 1) * call.panel_stride
                            : call.next;
    Asked asked;
    if (call.pixels >= 8 && then) {
      asked.from = reinterpret_cast<const char*>(then);
      asked.bytes = depth * kPanel * 4;
      asked.part = o % kPanel / group;
      asked.parts = (std::min(kPanel, call.outputs - panel * kPanel) + group - 1) / group;
    }
    if (one.count > lanes) {
      Pixels<kMostPixels, 1, 2>(call, &one, asked);
    } else {
      Pixels<kMostPixels, 1, 1>(call, &one, asked);
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
