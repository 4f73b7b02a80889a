// The quantizers behind pack(): for every row (or group) the codes and the scale that lose little.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/bundle/packed.h"

namespace sluice::bundle {
namespace {

using Values = std::span<const float>;

template <class T>
void store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

float largest(Values w) {
  float top = 0;
  for (float v : w) top = std::max(top, std::fabs(v));
  return top;
}

int nearest(float value, float scale, int low, int high) {
  if (scale == 0) return std::clamp(0, low, high);
  const float q = std::nearbyint(value / scale);
  return static_cast<int>(std::clamp(q, static_cast<float>(low), static_cast<float>(high)));
}

uint16_t f16_or_fail(double scale, std::string_view format) {
  const uint16_t bits = f32_to_f16(static_cast<float>(scale));
  if ((bits & 0x7C00) == 0x7C00)
    fail(Code::limit, "format {}: a scale of {} does not fit 16 bits; the largest is 65504", format,
         scale);
  return bits;
}

float f32_or_fail(double scale, std::string_view format) {
  const float value = static_cast<float>(scale);
  if (!std::isfinite(value))
    fail(Code::limit, "format {}: a scale of {} does not fit an f32", format, scale);
  return value;
}

void set_bit(std::byte* row, size_t i) { row[i / 8] |= std::byte{1} << (i % 8); }

void pack_i8(Values w, std::byte* codes, float scale) {
  for (size_t i = 0; i < w.size(); ++i)
    codes[i] = static_cast<std::byte>(nearest(w[i], scale, -127, 127));
}

// Symmetric 4 bits: the range ends at -8 on one side only, so both signs of the scale are tried, in
// steps from a clipped to a generous range; each candidate's codes get their least-squares scale,
// and the smallest squared error wins.
float best_i4_scale(Values w) {
  const float top = largest(w);
  if (top == 0) return 0;
  double best_gain = -1, best = 0;
  for (const float sign : {-1.0f, 1.0f}) {
    for (int step = -6; step <= 6; ++step) {
      const float scale = sign * top / (7.6f + 0.15f * static_cast<float>(step));
      if (scale == 0) continue;
      double wq = 0, qq = 0;
      for (float v : w) {
        const int q = nearest(v, scale, -8, 7);
        wq += static_cast<double>(v) * q;
        qq += static_cast<double>(q) * q;
      }
      const double gain = qq > 0 ? wq * wq / qq : 0;
      if (gain <= best_gain) continue;
      best_gain = gain;
      best = qq > 0 ? wq / qq : 0;
    }
  }
  return static_cast<float>(best);
}

struct Affine {
  float scale, minimum;
};

// Codes of 4 bits between a scale and a minimum, both rounded to f16: alternates between the codes
// and the least-squares line through them, from several starting ranges.
Affine best_i4_affine(Values w, std::string_view format) {
  const auto [low, high] = std::minmax_element(w.begin(), w.end());
  const double range = static_cast<double>(*high) - *low;
  Affine best{0, f16_to_f32(f16_or_fail(*low, format))};
  double best_error = -1;
  for (const double shrink : {1.0, 0.95, 0.9, 0.85, 0.8}) {
    double scale = range * shrink / 15, minimum = *low + range * (1 - shrink) / 2;
    for (int round = 0; round < 3; ++round) {
      const Affine now{f16_to_f32(f16_or_fail(scale, format)),
                       f16_to_f32(f16_or_fail(minimum, format))};
      double error = 0, q1 = 0, q2 = 0, w1 = 0, wq = 0;
      for (float v : w) {
        const int q = nearest(v - now.minimum, now.scale, 0, 15);
        const double off = static_cast<double>(now.scale) * q + now.minimum - v;
        error += off * off;
        q1 += q;
        q2 += q * q;
        w1 += v;
        wq += static_cast<double>(v) * q;
      }
      if (best_error < 0 || error < best_error) {
        best_error = error;
        best = now;
      }
      const double n = static_cast<double>(w.size()), determinant = n * q2 - q1 * q1;
      if (determinant <= 0) break;
      scale = (n * wq - q1 * w1) / determinant;
      minimum = (w1 - scale * q1) / n;
      if (!(scale > 0)) break;
    }
  }
  return best;
}

void put_nibble(std::byte* group, size_t i, int code) {
  group[i % 16] |= static_cast<std::byte>(i < 16 ? code : code << 4);
}

void pack_groups(Format format, Values w, std::byte* codes, std::byte* scales) {
  const std::string_view name = format_name(format);
  const size_t groups = (w.size() + kGroup - 1) / kGroup;
  for (size_t g = 0; g < groups; ++g) {
    const size_t first = g * kGroup;
    const Values part = w.subspan(first, std::min<size_t>(kGroup, w.size() - first));
    uint16_t bits = 0;
    if (format == Format::i8_group) {
      bits = f16_or_fail(largest(part) / 127.0f, name);
      pack_i8(part, codes + first, f16_to_f32(bits));
    } else if (format == Format::i4_group) {
      bits = f16_or_fail(best_i4_scale(part), name);
      for (size_t i = 0; i < static_cast<size_t>(kGroup); ++i)
        put_nibble(codes + first / 2, i,
                   i < part.size() ? nearest(part[i], f16_to_f32(bits), -8, 7) + 8 : 0);
    } else {
      const Affine line = best_i4_affine(part, name);
      bits = f32_to_f16(line.scale);
      store(scales + 2 * (groups + g), f32_to_f16(line.minimum));
      for (size_t i = 0; i < part.size(); ++i)
        put_nibble(codes + first / 2, i, nearest(part[i] - line.minimum, line.scale, 0, 15));
    }
    store(scales + 2 * g, bits);
  }
}

// The best k weights of the row keep their sign: with their mean as scale the squared error is
// sum w^2 - (sum of the k largest |w|)^2 / k, minimal at the best k.
void pack_ternary(Values w, std::byte* codes, std::byte* scales, std::vector<float>& sorted) {
  sorted.resize(w.size());
  std::transform(w.begin(), w.end(), sorted.begin(), [](float v) { return std::fabs(v); });
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double sum = 0, best_gain = 0, scale = 0;
  float limit = 0;
  for (size_t k = 0; k < sorted.size() && sorted[k] > 0; ++k) {
    sum += sorted[k];
    const double count = static_cast<double>(k + 1), gain = sum * sum / count;
    // Equal magnitudes stay together.
    if (gain <= best_gain || (k + 1 < sorted.size() && sorted[k + 1] == sorted[k])) continue;
    best_gain = gain;
    scale = sum / count;
    limit = sorted[k];
  }
  store(scales, f32_or_fail(scale, "ternary"));
  for (size_t i = 0; i < w.size(); ++i) {
    const int code = scale == 0 || std::fabs(w[i]) < limit ? 1 : w[i] > 0 ? 2 : 0;
    codes[i / 64 * 16 + i % 16] |= static_cast<std::byte>(code << (2 * (i % 64 / 16)));
  }
}

double mean_magnitude(Values w) {
  double sum = 0;
  for (float v : w) sum += std::fabs(v);
  return w.empty() ? 0 : sum / static_cast<double>(w.size());
}

// Two bases: greedy at first (the second has the signs of what the first leaves over), then
// alternating between the nearest of the four levels and the least-squares scales.
void pack_binary2(Values w, std::byte* codes, std::byte* scales) {
  const size_t plane =
      static_cast<size_t>(code_stride(Format::binary, static_cast<int64_t>(w.size())));
  double a = mean_magnitude(w), b = 0;
  for (float v : w) b += std::fabs(std::fabs(v) - a);
  b /= static_cast<double>(w.size());
  double best_error = -1, best_a = 0, best_b = 0;
  for (int round = 0; round < 8; ++round) {
    // With m = |w|: the level is a + b above a, else a - b, and the error is (m - level)^2.
    double error = 0, sum = 0, high = 0, count = 0;
    for (float v : w) {
      const double m = std::fabs(v), level = m >= a ? a + b : a - b;
      error += (m - level) * (m - level);
      sum += m;
      if (m >= a) {
        high += m;
        ++count;
      }
    }
    if (best_error >= 0 && error >= best_error) break;
    best_error = error;
    best_a = a;
    best_b = b;
    const double rest = static_cast<double>(w.size()) - count;
    if (count == 0 || rest == 0) break;
    const double upper = high / count, lower = (sum - high) / rest;
    a = (upper + lower) / 2;
    b = (upper - lower) / 2;
  }
  store(scales, f32_or_fail(best_a, "binary-2"));
  store(scales + 4, f32_or_fail(best_b, "binary-2"));
  for (size_t i = 0; i < w.size(); ++i) {
    const bool positive = w[i] >= 0, outer = std::fabs(w[i]) >= best_a;
    if (positive) set_bit(codes, i);
    if (positive == outer) set_bit(codes + plane, i);
  }
}

std::vector<uint32_t> choose_salient(Values values, int64_t columns, const PackOptions& options) {
  std::vector<double> saliency(static_cast<size_t>(columns));
  if (!options.saliency.empty()) {
    if (static_cast<int64_t>(options.saliency.size()) != columns)
      fail(Code::shape, "format mixed: saliency of {} columns for a matrix of {}",
           options.saliency.size(), columns);
    for (size_t i = 0; i < saliency.size(); ++i) {
      if (!std::isfinite(options.saliency[i]))
        fail(Code::numeric, "format mixed: saliency {} is {}", i, options.saliency[i]);
      saliency[i] = options.saliency[i];
    }
  } else {
    for (size_t i = 0; i < values.size(); ++i)
      saliency[i % saliency.size()] += static_cast<double>(values[i]) * values[i];
  }
  std::vector<uint32_t> order(saliency.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return saliency[a] > saliency[b]; });
  order.resize(static_cast<size_t>(salient_columns(columns)));
  std::sort(order.begin(), order.end());
  return order;
}

void pack_mixed(Values w, std::span<const uint32_t> salient, std::byte* codes, std::byte* scales,
                std::vector<float>& part) {
  part.clear();
  for (uint32_t column : salient) part.push_back(w[column]);
  const float eight = largest(part) / 127.0f;
  std::byte* bytes = codes + code_stride(Format::binary, static_cast<int64_t>(w.size()));
  pack_i8(part, bytes, eight);
  part.clear();
  size_t next = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    if (next < salient.size() && salient[next] == i) {
      ++next;
      continue;
    }
    part.push_back(w[i]);
    if (w[i] >= 0) set_bit(codes, i);
  }
  store(scales, eight);
  store(scales + 4, f32_or_fail(mean_magnitude(part), "mixed"));
}

}  // namespace

std::vector<std::byte> pack(Format format, Values values, int64_t rows, int64_t columns,
                            const PackOptions& options) {
  const int64_t size = stored_bytes(format, {rows, columns});
  if (rows < 1 || columns < 1 ||
      static_cast<int64_t>(values.size()) != checked_mul(rows, columns, "values"))
    fail(Code::shape, "format {}: {} values for a matrix of {} x {}", format_name(format),
         values.size(), rows, columns);
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      fail(Code::numeric, "format {}: weight {} is {}; weights must be finite", format_name(format),
           i, values[i]);
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  const int64_t stride = code_stride(format, columns), step = scale_stride(format, columns);
  std::byte* const scale_plane = bytes.data() + rows * stride;
  std::vector<uint32_t> salient;
  if (format == Format::mixed) {
    salient = choose_salient(values, columns, options);
    std::memcpy(scale_plane + rows * step, salient.data(), salient.size() * sizeof(uint32_t));
  }
  std::vector<float> buffer;
  for (int64_t r = 0; r < rows; ++r) {
    const Values w = values.subspan(static_cast<size_t>(r * columns), static_cast<size_t>(columns));
    std::byte* codes = bytes.data() + r * stride;
    std::byte* scales = scale_plane + r * step;
    switch (format) {
      case Format::f32:
        std::memcpy(codes, w.data(), w.size_bytes());
        break;
      case Format::bf16:
        for (size_t i = 0; i < w.size(); ++i) {
          const uint16_t bits = f32_to_bf16(w[i]);
          if ((bits & 0x7F80) == 0x7F80)
            fail(Code::limit, "format bf16: weight {} does not fit 16 bits", w[i]);
          store(codes + 2 * i, bits);
        }
        break;
      case Format::i8: {
        const float scale = largest(w) / 127.0f;
        store(scales, scale);
        pack_i8(w, codes, scale);
        break;
      }
      case Format::i8_group:
      case Format::i4_group:
      case Format::i4_group_min:
        pack_groups(format, w, codes, scales);
        break;
      case Format::ternary:
        pack_ternary(w, codes, scales, buffer);
        break;
      case Format::binary:
        store(scales, f32_or_fail(mean_magnitude(w), "binary"));
        for (size_t i = 0; i < w.size(); ++i)
          if (w[i] >= 0) set_bit(codes, i);
        break;
      case Format::binary2:
        pack_binary2(w, codes, scales);
        break;
      case Format::mixed:
        pack_mixed(w, salient, codes, scales, buffer);
        break;
    }
  }
  return bytes;
}

}  // namespace sluice::bundle
