// The AVX2 path of packed_dot.h: activations as its products want them, and which of these run.
#include "sluice/engine/kernel/packed_dot_avx2.h"

#include <array>
#include <span>
#include <utility>

#include "sluice/engine/kernel/gemm_rows.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine {
namespace avx2 {
namespace {

// Which of `size` columns comes at each place, where codes unpack in another order than theirs. For
// int8: field f of byte p is place 32 f + p. For floats: field f of word l is place 8 f + l.
struct Order {
  std::array<uint8_t, 256> column{};
  int64_t size = 0;  ///< 0: columns stay as they are
};

/// The column of field f, of `bits` bits, of byte p of 32.
constexpr int column_of(int bits, int p, int f) {
  // Codes of 4 and 2 bits lie in blocks of 16 bytes, field after field; bits lie in order.
  return bits == 1 ? 8 * p + f : 16 * (8 / bits) * (p / 16) + 16 * f + p % 16;
}

constexpr Order order_of_fields(int bits, bool words) {
  Order order;
  order.size = 256 / bits;
  const int fields = 8 / bits;
  for (int p = 0; p < 32; ++p) {
    for (int f = 0; f < fields; ++f) {
      const int place = words ? 8 * (p % 4 * fields + f) + p / 4 : 32 * f + p;
      order.column[static_cast<size_t>(place)] = static_cast<uint8_t>(column_of(bits, p, f));
    }
  }
  return order;
}

constexpr Order order_of_halves() {
  Order order;
  order.size = 16;
  for (size_t i = 0; i < 16; ++i)
    order.column[i] = static_cast<uint8_t>(i < 8 ? 2 * i : 2 * (i - 8) + 1);
  return order;
}

const Order& order_for(Format format, bool codes) {
  static constexpr Order kNone, kHalves = order_of_halves();
  static constexpr Order kCodes[] = {order_of_fields(4, false), order_of_fields(2, false),
                                     order_of_fields(1, false)};
  static constexpr Order kFloats[] = {order_of_fields(4, true), order_of_fields(2, true),
                                      order_of_fields(1, true)};
  const Order* by_bits = codes ? kCodes : kFloats;
  switch (format) {
    case Format::bf16:
      return kHalves;
    case Format::i4_group:
    case Format::i4_group_min:
      return by_bits[0];
    case Format::ternary:
      return by_bits[1];
    case Format::binary:
    case Format::binary2:
    case Format::mixed:
      return by_bits[2];
    default:
      return kNone;
  }
}

template <class T>
void permute(const Order& order, T* values, int64_t padded) {
  T part[256];
  const auto size = static_cast<size_t>(order.size);
  for (T* to = values; size > 0 && to < values + padded; to += size) {
    std::memcpy(part, to, size * sizeof(T));
    for (size_t i = 0; i < size; ++i) to[i] = part[order.column[i]];
  }
}

/// Of permuted codes that meet 4-bit ones: -8 x what is added up in each 16-bit sum.
SLUICE_AVX2 void starting_sums(const int8_t* codes, int64_t padded, int16_t* out) {
  const __m256i eights = _mm256_set1_epi8(8);
  for (int64_t i = 0; i < padded; i += 64, out += 16) {
    const __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(eights, load(codes + i)),
                                         _mm256_maddubs_epi16(eights, load(codes + i + 32)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm256_sub_epi16(_mm256_setzero_si256(), sum));
  }
}

void group_sums(const int8_t* codes, int64_t padded, float* out) {
  for (int64_t g = 0; g < padded / 32; ++g) {
    int32_t sum = 0;
    for (int64_t i = 32 * g; i < 32 * g + 32; ++i) sum += codes[i];
    out[g] = static_cast<float>(sum);
  }
}

template <class T>
void take_salient(const PackedMatrix& w, T* values, T* salient) {
  for (size_t k = 0; k < w.salient.size(); ++k)
    salient[k] = std::exchange(values[w.salient[k]], T{0});
}

int64_t stride(Format format, DotKind kind, int64_t columns) {
  return places(format, kind, columns).end;
}

}  // namespace

void prepare(const PackedMatrix& w, DotKind kind, const float* x, std::byte* out) {
  const Places p = places(w.format, kind, w.columns);
  const auto columns = static_cast<size_t>(w.columns);
  const bool codes = kind == DotKind::i8 && !is_float(w.format);
  const Order& order = order_for(w.format, codes);
  const bool sums_bits = w.format == Format::ternary || w.format == Format::binary ||
                         w.format == Format::binary2 || w.format == Format::mixed;
  DotHeader header;
  std::memset(out + p.extra, 0, static_cast<size_t>(p.end - p.extra));
  if (codes) {
    auto* q = at<int8_t>(out, p.values);
    header.scale = quantize_row(x, w.columns, q);
    std::memset(q + columns, 0, static_cast<size_t>(p.padded) - columns);
    take_salient(w, q, at<int8_t>(out, p.extra));
    if (sums_bits) {
      for (int64_t first = 0; first < p.padded; first += 512) {
        int32_t sum = 0;
        for (int64_t i = first; i < first + 512; ++i) sum += q[i];
        header.code_sum += sum;
      }
    }
    if (w.format == Format::i4_group_min) group_sums(q, p.padded, at<float>(out, p.extra));
    permute(order, q, p.padded);
    if (w.format == Format::i4_group) starting_sums(q, p.padded, at<int16_t>(out, p.extra));
  } else {
    auto* f = at<float>(out, p.values);
    header.scale = round_row(kind, x, w.columns, f);
    std::memset(f + columns, 0, (static_cast<size_t>(p.padded) - columns) * sizeof(float));
    take_salient(w, f, at<float>(out, p.extra));
    if (sums_bits) {
      float sums[16] = {};
      for (int64_t i = 0; i < p.padded; ++i) sums[i % 16] += f[i];
      for (const float sum : sums) header.sum += sum;
    }
    permute(order, f, p.padded);
  }
  std::memcpy(out, &header, sizeof header);
}

}  // namespace avx2

namespace avx2 {
namespace {
void run(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
         int64_t y_stride) {
  if (takes_codes(w, x) && x.batch == 1) return run_streams(w, x, rows, y);
  run_strips(w, x, rows, y, y_stride);
}
}  // namespace
}  // namespace avx2

const DotPath& avx2_dot() {
  static constexpr DotPath path{avx2::stride, avx2::prepare, avx2::run};
  return path;
}

}  // namespace sluice::engine

#else

namespace sluice::engine {
const DotPath& avx2_dot() { return portable_dot(); }
}  // namespace sluice::engine

#endif
