#include "sluice/engine/kernel/packed_tiles.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "sluice/base/amx.h"
#include "sluice/base/error.h"
#include "sluice/base/shape.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/gemm_rows.h"
#include "sluice/engine/kernel/packed_tiles_products.h"

namespace sluice::engine {

using bundle::Format;
using bundle::PackedMatrix;

bool tiles_apply(const PackedMatrix& w) {
  constexpr int64_t kMostColumns = 1 << 16;  // of products up to 127 x 127, in 32 bits
  return w.format != Format::f32 && w.format != Format::bf16 && w.columns <= kMostColumns;
}

#if defined(__x86_64__) && defined(__GNUC__)

namespace tiles {
namespace {

/// One product of codes of one kind: binary-2 and mixed are the sum of two.
struct Pass {
  Codes codes;
  int64_t columns;
  int64_t from = 0;       ///< columns of the prepared x
  int64_t codes_at = 0;   ///< bytes within a row's codes
  int64_t scales_at = 0;  ///< bytes within a row's scales
};

struct Layout {
  bool grouped = false, minima = false;
  int passes = 1;
  Pass pass[2];
  int64_t x_columns = 0;  ///< of the prepared x

  explicit Layout(const PackedMatrix& w) {
    const int64_t padded = vnni::round_up(w.columns, kColumnStep);
    x_columns = padded;
    pass[0] = {Codes::bytes, padded};
    switch (w.format) {
      case Format::i8_group:
        grouped = true;
        break;
      case Format::i4_group:
        grouped = true;
        pass[0].codes = Codes::nibbles;
        break;
      case Format::i4_group_min:
        grouped = minima = true;
        pass[0].codes = Codes::nibbles_from_0;
        break;
      case Format::ternary:
        pass[0].codes = Codes::pairs;
        break;
      case Format::binary:
        pass[0].codes = Codes::bits;
        break;
      case Format::binary2:
        passes = 2;
        pass[0].codes = Codes::bits;
        pass[1] = {Codes::bits, padded, 0, bit_plane_bytes(w.columns), 4};
        break;
      case Format::mixed: {
        const int64_t salient = vnni::round_up(bundle::salient_columns(w.columns), kColumnStep);
        passes = 2;
        pass[0] = {Codes::bits, padded, 0, 0, 4};
        pass[1] = {Codes::bytes, salient, padded, bit_plane_bytes(w.columns), 0};
        x_columns += salient;
        break;
      }
      default:
        break;
    }
  }
  int64_t groups() const { return x_columns / bundle::kGroup; }
};

/// Places in the scratch.
struct Places {
  int64_t scales = 0, x = 0, sums = 0, lanes = 0, lane_bytes = 0, end = 0;
  // Of a lane: unpacked codes, their scales and minima, edges of the codes, sums, what tiles hold.
  int64_t edge, factors, minima, integers, results, tile;

  Places(const Layout& layout, int64_t rows, int threads) {
    const int64_t padded = vnni::round_up(rows, kRows);
    x = align_up(padded * 4);
    sums = x + checked_mul(padded, layout.x_columns, "activations");
    lanes = sums + (layout.minima ? checked_mul(padded, layout.groups() * 4, "activations") : 0);
    edge = 2 * kHalf;
    factors = edge + kLanes * kBlock;
    minima = factors + 2 * kGroups * kLanes * 4;
    integers = minima + 2 * kGroups * kLanes * 4;
    results = integers + kRowChunk * kStrip * 4;
    tile = results + kRowChunk * kStrip * 4;
    lane_bytes = std::max(tile + 4 * 1024, align_up(layout.x_columns));
    end = checked_add(lanes, checked_mul(lane_bytes, threads, "scratch"), "scratch");
  }
};

class Run {
 public:
  Run(const PackedMatrix& w, const float* x, int64_t rows, float* y, std::byte* scratch,
      int threads)
      : w_(w),
        layout_(w),
        at_(layout_, rows, threads),
        x_(x),
        rows_(rows),
        padded_(vnni::round_up(rows, kRows)),
        y_(y),
        scratch_(scratch) {}

  /// Codes of one row of x into its tiles, and what else is known of it.
  void prepare(int64_t r, std::byte* lane) const {
    auto* codes = reinterpret_cast<int8_t*>(lane);
    const int64_t columns = w_.columns, padded = layout_.pass[0].columns;
    std::memset(lane, 0, static_cast<size_t>(layout_.x_columns));
    if (r < rows_) {
      floats(at_.scales)[r] = quantize_row(x_ + r * columns, columns, codes);
      for (size_t k = 0; k < w_.salient.size(); ++k) {
        int8_t& code = codes[w_.salient[k]];
        codes[padded + static_cast<int64_t>(k)] = code;
        code = 0;
      }
    }
    const int64_t block = r / kRows, row = r % kRows;
    std::byte* to = scratch_ + at_.x + block * kRows * layout_.x_columns + row * 64;
    for (int64_t c = 0; c < layout_.x_columns; c += 64) std::memcpy(to + c * kRows, codes + c, 64);
    if (!layout_.minima) return;
    float* sums = floats(at_.sums) + block * kRows * layout_.groups() + row;
    for (int64_t g = 0; g < layout_.groups(); ++g) {
      int sum = 0;
      for (int64_t c = 0; c < bundle::kGroup; ++c) sum += codes[g * bundle::kGroup + c];
      sums[g * kRows] = static_cast<float>(sum);
    }
  }

  int64_t padded_rows() const { return padded_; }
  int64_t strips() const { return (w_.rows + kStrip - 1) / kStrip; }
  std::byte* lane(int64_t thread) const { return scratch_ + at_.lanes + thread * at_.lane_bytes; }

  void strips_of(int64_t from, int64_t to, std::byte* lane) const {
    configure(layout_.grouped);
    for (int64_t m = 0; m < padded_; m += kRowChunk) {
      for (int64_t s = from; s < to; ++s)
        strip(s * kStrip, m, std::min(kRowChunk, padded_ - m), lane);
    }
    release();
  }

 private:
  float* floats(int64_t place) const { return reinterpret_cast<float*>(scratch_ + place); }

  /// `count` rows of the prepared x by up to 32 outputs.
  void strip(int64_t output, int64_t m, int64_t count, std::byte* lane) const {
    auto* results = reinterpret_cast<float*>(lane + at_.results);
    for (int p = 0; p < layout_.passes; ++p) {
      const Pass& pass = layout_.pass[p];
      for (int64_t c = 0; c < pass.columns; c += kBlock) {
        const int64_t columns = std::min(kBlock, pass.columns - c);
        for (int64_t h = 0; h < 2; ++h) unpack(pass, output + h * kLanes, c, columns, h, lane);
        const std::byte* x = scratch_ + at_.x + m * layout_.x_columns + (pass.from + c) * kRows;
        if (layout_.grouped) {
          by_groups(x, m, count, c, columns, lane);
        } else {
          auto* sums = reinterpret_cast<int32_t*>(lane + at_.integers);
          const int64_t stride = kRows * layout_.x_columns;
          for (int64_t r = 0; r < count; r += 2 * kRows) {
            const auto multiply = r + kRows < count ? multiply_whole<true> : multiply_whole<false>;
            multiply(x + r / kRows * stride, stride, lane, columns, c == 0, sums + r * kStrip);
          }
        }
      }
      if (!layout_.grouped) {
        auto* factors = reinterpret_cast<float*>(lane + at_.factors);
        for (int64_t n = 0; n < kStrip; ++n) {
          factors[n] = 0;
          if (output + n < w_.rows)
            std::memcpy(factors + n, w_.scales + (output + n) * w_.scale_stride + pass.scales_at,
                        4);
        }
        scale(reinterpret_cast<int32_t*>(lane + at_.integers), factors, count, p == 0, results);
      }
    }
    write_out(results, floats(at_.scales) + m, std::min(count, rows_ - m),
              std::min(kStrip, w_.rows - output), y_ + m * w_.rows + output, w_.rows);
  }

  void by_groups(const std::byte* x, int64_t m, int64_t count, int64_t c, int64_t columns,
                 std::byte* lane) const {
    const int64_t groups = columns / bundle::kGroup;
    const auto* factors = reinterpret_cast<const float*>(lane + at_.factors);
    const auto* minima = reinterpret_cast<const float*>(lane + at_.minima);
    for (int64_t r = 0; r < count; r += kRows) {
      const float* sums = layout_.minima ? floats(at_.sums) + (m + r) * layout_.groups() +
                                               c / bundle::kGroup * kRows
                                         : nullptr;
      for (int64_t h = 0; h < 2; ++h) {
        const int64_t at = h * kGroups * kLanes;
        const auto multiply = layout_.minima ? multiply_groups<true> : multiply_groups<false>;
        multiply(x + r * layout_.x_columns, lane + h * kHalf, factors + at, minima + at, sums,
                 groups, c == 0, lane + at_.tile,
                 reinterpret_cast<float*>(lane + at_.results) + r * kStrip + h * kLanes);
      }
    }
  }

  /// Codes of 16 outputs from column `c` on, and the scales of their groups.
  void unpack(const Pass& pass, int64_t output, int64_t c, int64_t columns, int64_t half,
              std::byte* lane) const {
    const int64_t bytes = code_bytes(pass.codes, columns),
                  at = pass.codes_at + code_bytes(pass.codes, c),
                  there = std::clamp<int64_t>(w_.code_stride - at, 0, bytes);
    const std::byte* from = w_.codes + output * w_.code_stride + at;
    const int64_t rows = std::clamp<int64_t>(w_.rows - output, 0, kLanes);
    int64_t stride = w_.code_stride;
    if (rows < kLanes || there < bytes) {
      std::byte* edge = lane + at_.edge;
      std::memset(edge, 0, static_cast<size_t>(kLanes * bytes));
      for (int64_t n = 0; n < rows; ++n)
        std::memcpy(edge + n * bytes, from + n * stride, static_cast<size_t>(there));
      from = edge;
      stride = bytes;
    } else if (output + 2 * kStrip <= w_.rows) {
      // What comes next: the following columns, or the first ones of the next strip.
      const bool last = c + columns >= pass.columns;
      const std::byte* next = last ? from - at + kStrip * stride : from + bytes;
      for (int64_t n = 0; n < kLanes; ++n)
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + n * stride + i, 0, 2);
    }
    decode(pass.codes, from, stride, columns, lane + half * kHalf);
    if (!layout_.grouped) return;
    unpack_scales(output, rows, c, 0, half, lane + at_.factors);
    if (layout_.minima) {
      const int64_t groups = (w_.columns + bundle::kGroup - 1) / bundle::kGroup;
      unpack_scales(output, rows, c, 2 * groups, half, lane + at_.minima);
    }
  }

  SLUICE_VNNI void unpack_scales(int64_t output, int64_t rows, int64_t c, int64_t at, int64_t half,
                                 std::byte* place) const {
    auto* out = reinterpret_cast<float*>(place) + half * kGroups * kLanes;
    const int64_t first = c / bundle::kGroup,
                  groups = (w_.columns + bundle::kGroup - 1) / bundle::kGroup - first;
    for (int64_t n = 0; n < kLanes; ++n) {
      const std::byte* from = w_.scales + (output + n) * w_.scale_stride + at + 2 * first;
      for (int64_t g = 0; g < kGroups; g += 16) {
        alignas(64) float values[16];
        _mm512_store_ps(values,
                        n < rows ? vnni::scales16(from + 2 * g, groups - g) : _mm512_setzero_ps());
        for (int64_t i = 0; i < 16; ++i) out[(g + i) * kLanes + n] = values[i];
      }
    }
  }

  const PackedMatrix& w_;
  const Layout layout_;
  const Places at_;
  const float* x_;
  const int64_t rows_, padded_;
  float* y_;
  std::byte* scratch_;
};

}  // namespace
}  // namespace tiles

bool tiles_usable() { return dot_vnni_usable() && amx_int8_usable(); }

int64_t tiles_scratch_bytes(const PackedMatrix& w, int64_t rows, int threads) {
  return tiles::Places(tiles::Layout(w), rows, threads).end;
}

void multiply_tiles(const PackedMatrix& w, const float* x, int64_t rows, float* y,
                    std::byte* scratch, int threads) {
  if (rows == 0) return;
  const tiles::Run run(w, x, rows, y, scratch, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
    std::byte* lane = run.lane(part);
    for (int64_t r = run.padded_rows() * part / parts; r < run.padded_rows() * (part + 1) / parts;
         ++r)
      run.prepare(r, lane);
#pragma omp barrier
    run.strips_of(run.strips() * part / parts, run.strips() * (part + 1) / parts, lane);
  }
}

#else

bool tiles_usable() { return false; }
int64_t tiles_scratch_bytes(const PackedMatrix&, int64_t, int) { return 0; }
void multiply_tiles(const PackedMatrix&, const float*, int64_t, float*, std::byte*, int) {
  SLUICE_CHECK(false);
}

#endif

}  // namespace sluice::engine
