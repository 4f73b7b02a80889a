#include "sluice/engine/kernel/xnor.h"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/xnor_layer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/xnor.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR
void XnorCount(const XnorLayer& layer, int64_t block, const uint64_t* const* corners,
               int64_t pixels, uint32_t* counts) {
  for (int64_t p = 0; p < pixels; ++p, counts += kXnorBlock) {
    std::fill(counts, counts + kXnorBlock, 0u);
    const uint64_t* weight =
        reinterpret_cast<const uint64_t*>(layer.bits.data()) + block * layer.depth * kXnorBlock;
    for (const XnorRun& run : layer.runs) {
      for (int64_t i = run.offset; i < run.offset + run.words; ++i, weight += kXnorBlock) {
        for (int64_t o = 0; o < kXnorBlock; ++o)
          counts[o] += static_cast<uint32_t>(std::popcount(corners[p][i] ^ weight[o]));
      }
    }
  }
}
#else
// Bits are counted per byte, in bytes, which hold 31 words' worth before they have to be added up.
template <int kPixels>
void XnorTile(const XnorLayer& layer, const uint64_t* block, const uint64_t* const* corners,
              uint32_t* counts) {
  const hn::CappedTag<uint64_t, 8> d;
  const hn::Repartition<uint8_t, decltype(d)> d8;
  using V = hn::Vec<decltype(d)>;
  using V8 = hn::Vec<decltype(d8)>;
  constexpr int64_t kFull = 31;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t o = 0; o < kXnorBlock; o += lanes) {
    V sums[kPixels];
    V8 bytes[kPixels];
    for (int p = 0; p < kPixels; ++p) sums[p] = hn::Zero(d), bytes[p] = hn::Zero(d8);
    const uint64_t* weight = block + o;
    int64_t held = 0;
    for (const XnorRun& run : layer.runs) {
      for (int64_t i = run.offset; i < run.offset + run.words; ++i, weight += kXnorBlock) {
        if (held == kFull) {
          for (int p = 0; p < kPixels; ++p) {
            sums[p] = hn::Add(sums[p], hn::SumsOf8(bytes[p]));
            bytes[p] = hn::Zero(d8);
          }
          held = 0;
        }
        ++held;
        const V w = hn::Load(d, weight);
        for (int p = 0; p < kPixels; ++p) {
          const V differing = hn::Xor(w, hn::Set(d, corners[p][i]));
          bytes[p] = hn::Add(bytes[p], hn::PopulationCount(hn::BitCast(d8, differing)));
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      HWY_ALIGN uint64_t all[8];
      hn::Store(hn::Add(sums[p], hn::SumsOf8(bytes[p])), d, all);
      for (int64_t i = 0; i < lanes; ++i)
        counts[p * kXnorBlock + o + i] = static_cast<uint32_t>(all[i]);
    }
  }
}

void XnorCount(const XnorLayer& layer, int64_t block, const uint64_t* const* corners,
               int64_t pixels, uint32_t* counts) {
  const uint64_t* weight =
      reinterpret_cast<const uint64_t*>(layer.bits.data()) + block * layer.depth * kXnorBlock;
  int64_t p = 0;
  for (; p + 4 <= pixels; p += 4) XnorTile<4>(layer, weight, corners + p, counts + p * kXnorBlock);
  for (; p < pixels; ++p) XnorTile<1>(layer, weight, corners + p, counts + p * kXnorBlock);
}
#endif

void XnorPack(const float* x, int64_t channels, uint64_t* words) {
  const hn::CappedTag<float, 16> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  for (int64_t first = 0; first < channels; first += 64) {
    const int64_t count = std::min<int64_t>(64, channels - first);
    uint64_t word = 0;
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      uint8_t bits[8] = {};
      hn::StoreMaskBits(d, hn::Ge(hn::LoadU(d, x + first + i), zero), bits);
      uint16_t value;
      std::memcpy(&value, bits, sizeof value);
      word |= static_cast<uint64_t>(value) << i;
    }
    for (; i < count; ++i) word |= static_cast<uint64_t>(x[first + i] >= 0) << i;
    *words++ = word;
  }
}

/// Sum of |x|.
float XnorSum(const float* x, int64_t count) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    a = hn::Add(a, hn::Abs(hn::LoadU(d, x + i)));
    b = hn::Add(b, hn::Abs(hn::LoadU(d, x + i + lanes)));
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(a, b)));
  for (; i < count; ++i) sum += std::abs(x[i]);
  return sum;
}

/// One pixel's block: y = (base - 2 count) * scale * factor + bias, activation relu or none.
void XnorFinish(const XnorLayer& layer, const uint32_t* counts, const int32_t* base, float factor,
                int64_t first, float* y) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t count = std::min(kXnorBlock, layer.shape.out_channels - first);
  const float* scale = layer.scale.floats() + first;
  const float* bias = layer.bias.floats() + first;
  const auto f = hn::Set(d, factor);
  const bool relu = layer.activation == Activation::relu;
  float last[kXnorBlock];
  float* to = count == kXnorBlock ? y : last;
  for (int64_t i = 0; i < count; i += lanes) {
    const auto differing = hn::LoadU(di, reinterpret_cast<const int32_t*>(counts + i));
    const auto sum = hn::Sub(hn::LoadU(di, base + first + i), hn::Add(differing, differing));
    auto result = hn::MulAdd(hn::ConvertTo(d, sum), hn::Mul(hn::LoadU(d, scale + i), f),
                             hn::LoadU(d, bias + i));
    if (relu) result = hn::Max(result, hn::Zero(d));
    hn::StoreU(result, d, to + i);
  }
  if (to == last) std::copy(last, last + count, y);
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(XnorCount);
HWY_EXPORT(XnorPack);
HWY_EXPORT(XnorSum);
HWY_EXPORT(XnorFinish);

namespace {

/// Row `row` of the padded picture, in bits; its sum of |x| to `sum`.
void pack_row(const XnorLayer& layer, const float* picture, int64_t row, uint64_t* bits,
              float* sum) {
  const onednn::ConvShape& s = layer.shape;
  uint64_t* to = bits + row * layer.padded_width * layer.words;
  uint64_t* const end = to + layer.padded_width * layer.words;
  const int64_t y = row - s.padding[0];
  if (y < 0 || y >= s.in_height) return std::fill(to, end, uint64_t{0});
  const int64_t left = std::min(s.padding[1], layer.padded_width);
  std::fill(to, to + left * layer.words, uint64_t{0});
  to += left * layer.words;
  const float* x = picture + y * s.in_width * s.in_channels;
  if (layer.mean_scale) *sum = HWY_DYNAMIC_DISPATCH(XnorSum)(x, s.in_width * s.in_channels);
  for (int64_t i = 0; i < s.in_width; ++i, x += s.in_channels, to += layer.words) {
    if (layer.popcnt) {
      xnor_pack_popcnt(x, s.in_channels, to);
    } else {
      HWY_DYNAMIC_DISPATCH(XnorPack)(x, s.in_channels, to);
    }
  }
  std::fill(to, end, uint64_t{0});
}

void run_strip(const XnorLayer& layer, const uint64_t* bits, int64_t first, int64_t count,
               const float* row_sums, float factor, float* out) {
  const onednn::ConvShape& s = layer.shape;
  const uint64_t* corners[kXnorStrip];
  const int32_t* bases[kXnorStrip];
  float factors[kXnorStrip];
  alignas(64) uint32_t counts[kXnorStrip * kXnorBlock];
  for (int64_t p = 0; p < count; ++p) {
    const int64_t i = (first + p) / s.out_width, j = (first + p) % s.out_width;
    corners[p] = bits + (i * s.stride[0] * layer.padded_width + j * s.stride[1]) * layer.words;
    const int64_t kind = int64_t{layer.row_class[static_cast<size_t>(i)]} * layer.column_classes +
                         layer.column_class[static_cast<size_t>(j)];
    bases[p] = layer.base.data() + kind * layer.blocks * kXnorBlock;
    factors[p] = layer.scale_by_row && layer.mean_scale
                     ? layer.factor * row_sums[i] / static_cast<float>(s.in_channels)
                     : factor;
  }
  for (int64_t block = 0; block < layer.blocks; ++block) {
    if (layer.popcnt) {
      xnor_count_popcnt(layer, block, corners, count, counts);
    } else {
      HWY_DYNAMIC_DISPATCH(XnorCount)(layer, block, corners, count, counts);
    }
    const auto finish = HWY_DYNAMIC_DISPATCH(XnorFinish);
    for (int64_t p = 0; p < count; ++p) {
      finish(layer, counts + p * kXnorBlock, bases[p], factors[p], block * kXnorBlock,
             out + (first + p) * s.out_channels + block * kXnorBlock);
    }
  }
}

void run_xnor(const XnorLayer& layer, const float* in, float* out, std::byte* scratch) {
  const onednn::ConvShape& s = layer.shape;
  uint64_t* bits = reinterpret_cast<uint64_t*>(scratch);
  float* sums =
      reinterpret_cast<float*>(bits + layer.padded_height * layer.padded_width * layer.words);
  const int64_t pixels = s.out_height * s.out_width,
                in_each = s.in_height * s.in_width * s.in_channels;
  const int64_t strips = (pixels + kXnorStrip - 1) / kXnorStrip;
#pragma omp parallel num_threads(layer.threads) if (layer.threads > 1)
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    const float* picture = in + sample * in_each;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < layer.padded_height; ++row)
      pack_row(layer, picture, row, bits, sums + std::max<int64_t>(0, row - s.padding[0]));
    float factor = layer.factor;
    if (layer.mean_scale && !layer.scale_by_row) {
      double sum = 0;
      for (int64_t row = 0; row < s.in_height; ++row) sum += sums[row];
      factor *= static_cast<float>(sum / static_cast<double>(in_each));
    }
#pragma omp for schedule(static)
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t first = strip * kXnorStrip;
      run_strip(layer, bits, first, std::min(kXnorStrip, pixels - first), sums, factor,
                out + sample * pixels * s.out_channels);
    }
  }
  if (layer.activation != Activation::none && layer.activation != Activation::relu) {
    activate(layer.activation, out, out, static_cast<size_t>(s.samples * pixels * s.out_channels));
  }
}

/// First and last tap + 1 that lie in the picture, and with them the class of an output row.
std::vector<uint32_t> classes(const onednn::ConvShape& s, int axis,
                              std::vector<std::pair<int64_t, int64_t>>& ranges) {
  const int64_t made = axis == 0 ? s.out_height : s.out_width,
                size = axis == 0 ? s.in_height : s.in_width;
  std::map<std::pair<int64_t, int64_t>, uint32_t> known;
  std::vector<uint32_t> result;
  for (int64_t i = 0; i < made; ++i) {
    const int64_t origin = i * s.stride[axis] - s.padding[axis], step = s.dilation[axis];
    const auto at_least = [&](int64_t bound) {  // the first tap at or past `bound`
      return std::clamp<int64_t>(bound <= origin ? 0 : (bound - origin + step - 1) / step, 0,
                                 s.kernel[axis]);
    };
    const std::pair<int64_t, int64_t> range{at_least(0), at_least(size)};
    const auto [found, added] = known.emplace(range, static_cast<uint32_t>(ranges.size()));
    if (added) ranges.push_back(range);
    result.push_back(found->second);
  }
  return result;
}

/// Bits, scale and set bits per tap of output `o`.
void set_row(XnorLayer& layer, int64_t o, std::span<const float> row, const std::string& what,
             std::span<uint32_t> ones) {
  const int64_t channels = layer.shape.in_channels,
                taps = layer.shape.kernel[0] * layer.shape.kernel[1];
  const float scale = std::abs(row[0]);
  uint64_t* bits = reinterpret_cast<uint64_t*>(layer.bits.data()) +
                   o / kXnorBlock * layer.depth * kXnorBlock + o % kXnorBlock;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float value = row[static_cast<size_t>(c * taps + tap)];
      if (!(std::abs(value) == scale)) {
        fail(Code::format,
             "{}: row {} holds {} and {}; a binary layer needs one magnitude per row. Store the "
             "weight in format binary",
             what, o, row[0], value);
      }
      if (std::signbit(value)) continue;
      bits[(tap * layer.words + c / 64) * kXnorBlock] |= uint64_t{1} << (c % 64);
      ++ones[static_cast<size_t>(tap)];
    }
  }
  layer.scale.floats()[o] = scale;
}

Kernel make_layer(const onednn::ConvShape& shape, bool linear, const BinaryRows& weight,
                  std::span<const float> bias, const XnorOptions& options,
                  const std::string& what) {
  SLUICE_CHECK(shape.groups == 1);
  constexpr int64_t kMost = int64_t{1} << 29;
  const int64_t taps = checked_mul(shape.kernel[0], shape.kernel[1], "window"),
                row = checked_mul(taps, shape.in_channels, "window");
  if (row > kMost) fail(Code::limit, "{}: {} weights per output; at most {}", what, row, kMost);
  auto layer = std::make_shared<XnorLayer>();
  layer->shape = shape;
  layer->words = (shape.in_channels + 63) / 64;
  layer->activation = options.activation;
  layer->mean_scale = options.mean_scale;
  layer->scale_by_row = linear;
  layer->factor = options.scale;
  layer->threads = options.threads;
  layer->popcnt = !options.plain_vectors && xnor_popcnt_here() &&
                  (hwy::SupportedTargets() & (HWY_AVX3 | HWY_AVX3_DL)) != 0;
  const auto reach = [&](int i) {
    const int64_t size = i == 0 ? shape.in_height : shape.in_width,
                  made = i == 0 ? shape.out_height : shape.out_width;
    return std::max(size + shape.padding[i],
                    (made - 1) * shape.stride[i] + (shape.kernel[i] - 1) * shape.dilation[i] + 1);
  };
  layer->padded_height = reach(0);
  layer->padded_width = reach(1);
  const int64_t bytes =
      checked_mul(checked_mul(layer->padded_height, layer->padded_width, "padded picture"),
                  layer->words * 8, "padded picture");
  if (bytes > int64_t{1} << 32) {
    fail(Code::limit, "{}: the padded picture {} x {} is too large", what, layer->padded_height,
         layer->padded_width);
  }
  for (int64_t u = 0; u < shape.kernel[0]; ++u) {
    for (int64_t v = 0; v < shape.kernel[1]; ++v) {
      const int64_t offset =
          (u * shape.dilation[0] * layer->padded_width + v * shape.dilation[1]) * layer->words;
      if (!layer->runs.empty() && layer->runs.back().offset + layer->runs.back().words == offset) {
        layer->runs.back().words += layer->words;
      } else {
        layer->runs.push_back({offset, layer->words});
      }
    }
  }
  layer->depth = taps * layer->words;
  layer->blocks = (shape.out_channels + kXnorBlock - 1) / kXnorBlock;
  const int64_t width = layer->blocks * kXnorBlock;
  layer->bits = Buffer(checked_mul(layer->depth, width * 8, "binary weights"));
  layer->scale = Buffer(width * 4);
  layer->bias = Buffer(width * 4);
  std::copy(bias.begin(), bias.end(), layer->bias.floats());

  std::vector<std::pair<int64_t, int64_t>> rows, columns;
  layer->row_class = classes(shape, 0, rows);
  layer->column_class = classes(shape, 1, columns);
  layer->column_classes = static_cast<uint32_t>(columns.size());
  layer->base.assign(rows.size() * columns.size() * static_cast<size_t>(width), 0);
  std::vector<float> values(static_cast<size_t>(row));
  std::vector<uint32_t> ones(static_cast<size_t>(taps));
  for (int64_t o = 0; o < shape.out_channels; ++o) {
    std::fill(ones.begin(), ones.end(), 0u);
    weight(o, values);
    set_row(*layer, o, values, what, ones);
    int64_t all = 0;
    for (uint32_t n : ones) all += n;
    for (size_t r = 0; r < rows.size(); ++r) {
      for (size_t c = 0; c < columns.size(); ++c) {
        int64_t inside = 0;
        for (int64_t u = rows[r].first; u < rows[r].second; ++u) {
          for (int64_t v = columns[c].first; v < columns[c].second; ++v)
            inside += ones[static_cast<size_t>(u * shape.kernel[1] + v)];
        }
        const int64_t valid = std::max<int64_t>(0, rows[r].second - rows[r].first) *
                              std::max<int64_t>(0, columns[c].second - columns[c].first);
        layer
            ->base[(r * columns.size() + c) * static_cast<size_t>(width) + static_cast<size_t>(o)] =
            static_cast<int32_t>(shape.in_channels * valid + 2 * (all - inside));
      }
    }
  }
  Kernel kernel;
  kernel.name = fmt::format("sluice xnor ({})", layer->popcnt ? "vpopcntdq" : "byte counts");
  kernel.scratch_bytes = align_up(bytes + shape.in_height * 4);
  kernel.bind = [layer](const Binding& b) -> std::function<void()> {
    const float* in = b.inputs[0];
    float* out = b.output;
    std::byte* scratch = b.scratch;
    return [layer, in, out, scratch] { run_xnor(*layer, in, out, scratch); };
  };
  return kernel;
}

}  // namespace

Kernel make_xnor_conv(const onednn::ConvShape& shape, const BinaryRows& weight,
                      std::span<const float> bias, const XnorOptions& options,
                      const std::string& what) {
  return make_layer(shape, false, weight, bias, options, what);
}

Kernel make_xnor_linear(int64_t rows, int64_t in, int64_t out, const BinaryRows& weight,
                        std::span<const float> bias, const XnorOptions& options,
                        const std::string& what) {
  onednn::ConvShape shape;
  shape.in_channels = in;
  shape.out_channels = out;
  shape.in_height = shape.out_height = rows;
  return make_layer(shape, true, weight, bias, options, what);
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
