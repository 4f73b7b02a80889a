#include "sluice/engine/kernel/gemm_panels.h"

#include <algorithm>
#include <cstring>

#include "sluice/base/shape.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/gemm_rows.h"
#include "sluice/engine/kernel/panel.h"
#include "sluice/engine/kernel/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/gemm_panels.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using bundle::Format;
using bundle::PackedMatrix;
using Four = hn::CappedTag<float, 4>;

template <Format kFormat>
HWY_INLINE hn::Vec<Four> four_weights(const std::byte* codes, int64_t column) {
  const Four d;
  if (kFormat == Format::f32) return hn::LoadU(d, reinterpret_cast<const float*>(codes) + column);
  const hn::RebindToUnsigned<Four> du;
  const hn::Rebind<uint16_t, Four> d16;
  const auto* from = reinterpret_cast<const uint16_t*>(codes) + column;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, from))));
}

template <Format kFormat>
HWY_INLINE float one_weight(const std::byte* codes, int64_t column) {
  if (kFormat == Format::f32) {
    float value;
    std::memcpy(&value, codes + 4 * column, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, codes + 2 * column, 2);
  return bundle::bf16_to_f32(half);
}

/// Columns [first, first + depth) of up to 32 rows from `row` on -> out [depth][32].
template <Format kFormat>
HWY_INLINE void pack_panel(const PackedMatrix& m, int64_t row, int64_t first, int64_t depth,
                           float* HWY_RESTRICT out) {
  const int64_t rows = std::min(kPanel, m.rows - row);
  const auto codes = [&](int64_t r) { return m.codes + (row + r) * m.code_stride; };
  if (rows < kPanel) std::fill_n(out, depth * kPanel, 0.0f);
  int64_t r = 0;
#if HWY_TARGET != HWY_SCALAR
  const Four d;
  if (hn::Lanes(d) == 4) {
    for (; r + 4 <= rows; r += 4) {
      const std::byte *c0 = codes(r), *c1 = codes(r + 1), *c2 = codes(r + 2), *c3 = codes(r + 3);
      int64_t k = 0;
      for (; k + 4 <= depth; k += 4) {
        const auto a = four_weights<kFormat>(c0, first + k),
                   b = four_weights<kFormat>(c1, first + k),
                   c = four_weights<kFormat>(c2, first + k),
                   e = four_weights<kFormat>(c3, first + k);
        const auto ac = hn::InterleaveLower(d, a, c), be = hn::InterleaveLower(d, b, e),
                   ac2 = hn::InterleaveUpper(d, a, c), be2 = hn::InterleaveUpper(d, b, e);
        float* to = out + k * kPanel + r;
        hn::StoreU(hn::InterleaveLower(d, ac, be), d, to);
        hn::StoreU(hn::InterleaveUpper(d, ac, be), d, to + kPanel);
        hn::StoreU(hn::InterleaveLower(d, ac2, be2), d, to + 2 * kPanel);
        hn::StoreU(hn::InterleaveUpper(d, ac2, be2), d, to + 3 * kPanel);
      }
      for (; k < depth; ++k) {
        for (int64_t i = 0; i < 4; ++i)
          out[k * kPanel + r + i] = one_weight<kFormat>(codes(r + i), first + k);
      }
    }
  }
#endif
  for (; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k)
      out[k * kPanel + r] = one_weight<kFormat>(codes(r), first + k);
  }
}

void PackPanel(const PackedMatrix& m, int64_t row, int64_t first, int64_t depth, float* out) {
  if (m.format == Format::f32) {
    pack_panel<Format::f32>(m, row, first, depth, out);
  } else {
    pack_panel<Format::bf16>(m, row, first, depth, out);
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(PackPanel);

namespace {

using bundle::Format;
using bundle::PackedMatrix;

// A panel of 1024 inputs (128 KB) stays in the second-level cache beside a strip of 112 rows of x,
// whole tiles of every vector width. 512 rows of 4096 x 4096 with AVX2: half the depth takes 6%
// more time, because sums so far are read and written twice as often, four panels together 2 to 10%
// more.
constexpr int64_t kGemmDepth = 1024, kGemmStrip = 112;
constexpr int64_t kGemmFloat = static_cast<int64_t>(sizeof(float));

int64_t gemm_blocks(const PackedMatrix& w) { return (w.columns + kGemmDepth - 1) / kGemmDepth; }
int64_t gemm_depth(const PackedMatrix& w) { return std::min(kGemmDepth, w.columns); }
/// Rows of x lie in blocks of kGemmDepth inputs, not a power of two apart.
int64_t gemm_stride(const PackedMatrix& w) { return (gemm_depth(w) + 31) / 16 * 16; }

}  // namespace

bool panels_apply(const PackedMatrix& w, DotKind kind) {
  return kind != DotKind::i8 && (w.format == Format::f32 || w.format == Format::bf16);
}

int64_t panels_scratch_bytes(const PackedMatrix& w, int64_t rows, int threads) {
  const int64_t x = checked_mul(checked_mul(rows, gemm_blocks(w), "activations"),
                                gemm_stride(w) * kGemmFloat, "activations");
  return checked_add(x, checked_mul(threads, kPanel * gemm_depth(w) * kGemmFloat, "scratch"),
                     "scratch");
}

void multiply_panels(const PackedMatrix& w, DotKind kind, const float* x, int64_t rows, float* y,
                     std::byte* scratch, int threads) {
  if (rows == 0) return;
  const int64_t blocks = gemm_blocks(w), panels = (w.rows + kPanel - 1) / kPanel;
  const int64_t stride = gemm_stride(w);
  const auto depth = [&](int64_t b) { return std::min(kGemmDepth, w.columns - b * kGemmDepth); };
  float* const rounded = reinterpret_cast<float*>(scratch);
  float* const weights = rounded + rows * blocks * stride;
  const auto round_blocks = [&](int64_t r) {
    for (int64_t b = 0; b < blocks; ++b)
      round_row(kind, x + r * w.columns + b * kGemmDepth, depth(b),
                rounded + (b * rows + r) * stride);
  };
  for_each_of(rows, threads, round_blocks);
  const auto pack = HWY_DYNAMIC_DISPATCH(PackPanel);
  const auto run_panel = [&](int64_t panel, float* block) {
    const int64_t first = panel * kPanel;
    const float* corners[kGemmStrip];
    PanelCall call;
    call.weight = block;
    call.outputs = std::min(kPanel, w.rows - first);
    call.x = corners;
    call.out_stride = w.rows;
    for (int64_t b = 0; b < blocks; ++b) {
      const PanelRun run{0, depth(b)};
      call.panel_stride = run.count * kPanel;
      call.runs = {&run, 1};
      call.accumulate = b > 0;
      pack(w, first, b * kGemmDepth, run.count, block);
      for (int64_t r = 0; r < rows; r += kGemmStrip) {
        call.pixels = std::min(kGemmStrip, rows - r);
        for (int64_t i = 0; i < call.pixels; ++i)
          corners[i] = rounded + (b * rows + r + i) * stride;
        call.out = y + r * w.rows + first;
        panel_products(call);
      }
    }
  };
  for_each_of(threads, threads, [&](int64_t lane) {
    for (int64_t p = panels * lane / threads; p < panels * (lane + 1) / threads; ++p)
      run_panel(p, weights + lane * kPanel * gemm_depth(w));
  });
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
