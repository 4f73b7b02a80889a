#include "sluice/engine/kernel/narrow_conv.h"

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/narrow_conv.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#ifndef SLUICE_ENGINE_KERNEL_NARROW_CONV_ONCE_
#define SLUICE_ENGINE_KERNEL_NARROW_CONV_ONCE_
namespace sluice::engine {

inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kFour = 4;  // sums over lanes come four at a time

/// A run of output channels computed together.
struct ChannelBlock {
  int64_t first = 0, count = 0;
  const float* weight = nullptr;  ///< [tap][input vector][count][16]
};

struct NarrowConv {
  onednn::ConvShape shape;
  int64_t padded_height = 0, padded_width = 0;
  std::vector<int64_t> taps;  ///< offsets in the padded picture
  Buffer weight, bias;
  std::vector<ChannelBlock> blocks;
  Activation activation = Activation::none;
  int threads = 1;
};

}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;

/// Sums over the lanes of four vectors.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumFour(V a, V b, V c, V e) {
  const D d;
  const hn::Repartition<double, D> dd;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab2 = hn::BitCast(dd, ab), ce2 = hn::BitCast(dd, ce);
  const V all = hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, ab2, ce2)),
                        hn::BitCast(d, hn::InterleaveUpper(dd, ab2, ce2)));
  const hn::Half<D> half;
  const hn::Half<decltype(half)> quarter;
  const auto two = hn::Add(hn::LowerHalf(half, all), hn::UpperHalf(half, all));
  return hn::Add(hn::LowerHalf(quarter, two), hn::UpperHalf(quarter, two));
}

/// `corners`: where the first tap of each pixel lies in the padded picture.
template <int kChannels, int kPixels>
HWY_INLINE void Tile(const NarrowConv& conv, const ChannelBlock& block, const float* const* corners,
                     float* out) {
  const D d;
  const onednn::ConvShape& s = conv.shape;
  const int64_t vectors = s.in_channels / kLanes;
  const float* from[kPixels];
  V sums[kPixels][kChannels];
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) {
    from[p] = corners[p];
#pragma GCC unroll 8
    for (int o = 0; o < kChannels; ++o) sums[p][o] = hn::Zero(d);
  }
  const float* weight = block.weight;
  for (const int64_t offset : conv.taps) {
    for (int64_t i = offset; i < offset + vectors * kLanes;
         i += kLanes, weight += kChannels * kLanes) {
      V x[kPixels];
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p) x[p] = hn::LoadU(d, from[p] + i);
#pragma GCC unroll 8
      for (int o = 0; o < kChannels; ++o) {
        const V w = hn::Load(d, weight + o * kLanes);
#pragma GCC unroll 8
        for (int p = 0; p < kPixels; ++p) sums[p][o] = hn::MulAdd(x[p], w, sums[p][o]);
      }
    }
  }
  const hn::FixedTag<float, 4> d4;
  const V zero = hn::Zero(d);
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) {
    float* to = out + p * s.out_channels + block.first;
#pragma GCC unroll 2
    for (int o = 0; o < kChannels; o += 4) {
      auto sum = SumFour(sums[p][o], o + 1 < kChannels ? sums[p][o + 1] : zero,
                         o + 2 < kChannels ? sums[p][o + 2] : zero,
                         o + 3 < kChannels ? sums[p][o + 3] : zero);
      sum = hn::Add(sum, hn::LoadU(d4, conv.bias.floats() + block.first + o));
      if (conv.activation == Activation::relu) sum = hn::Max(sum, hn::Zero(d4));
      if (o + 4 <= kChannels) {
        hn::StoreU(sum, d4, to + o);
      } else {
        hn::BlendedStore(sum, hn::FirstN(d4, static_cast<size_t>(kChannels - o)), d4, to + o);
      }
    }
  }
}

/// Pixels [first, last) of one sample, counted row by row.
template <int kChannels, int kPixels>
void Block(const NarrowConv& conv, const ChannelBlock& block, const float* picture, float* out,
           int64_t first, int64_t last) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t down = s.stride[0] * conv.padded_width * s.in_channels,
                right = s.stride[1] * s.in_channels;
  int64_t column = first % s.out_width;
  const float* row = picture + first / s.out_width * down;
  for (int64_t pixel = first; pixel < last;) {
    const float* corners[kPixels];
    const int64_t count = std::min<int64_t>(kPixels, last - pixel);
    for (int64_t p = 0; p < count; ++p) {
      corners[p] = row + column * right;
      if (++column == s.out_width) column = 0, row += down;
    }
    float* to = out + pixel * s.out_channels;
    if (count == kPixels) {
      Tile<kChannels, kPixels>(conv, block, corners, to);
    } else {
      for (int64_t p = 0; p < count; ++p)
        Tile<kChannels, 1>(conv, block, corners + p, to + p * s.out_channels);
    }
    pixel += count;
  }
}

// As many pixels as leave room in 32 registers for their sums, their inputs and one weight.
void NarrowRange(const NarrowConv& conv, const float* picture, float* out, int64_t first,
                 int64_t last) {
  for (const ChannelBlock& block : conv.blocks) {
    switch (block.count) {
      case 1:
        Block<1, 8>(conv, block, picture, out, first, last);
        break;
      case 2:
        Block<2, 8>(conv, block, picture, out, first, last);
        break;
      case 3:
        Block<3, 7>(conv, block, picture, out, first, last);
        break;
      case 4:
        Block<4, 6>(conv, block, picture, out, first, last);
        break;
      case 5:
        Block<5, 5>(conv, block, picture, out, first, last);
        break;
      default:
        Block<6, 4>(conv, block, picture, out, first, last);
        break;
    }
  }
}

bool NarrowHere() { return true; }

#else
// Narrower targets have neither the registers nor oneDNN's waste of 16 lanes.
void NarrowRange(const NarrowConv&, const float*, float*, int64_t, int64_t) { SLUICE_CHECK(false); }
bool NarrowHere() { return false; }
#endif

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(NarrowRange);
HWY_EXPORT(NarrowHere);

namespace {

bool needs_padding(const onednn::ConvShape& s) { return s.padding[0] > 0 || s.padding[1] > 0; }

/// Checking every tap against the border costs more than one copy with the border in it.
void pad(const NarrowConv& conv, const float* picture, float* padded) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t row = s.in_width * s.in_channels, padded_row = conv.padded_width * s.in_channels;
  const int64_t left = s.padding[1] * s.in_channels;
  std::fill(padded, padded + s.padding[0] * padded_row, 0.0f);
  float* to = padded + s.padding[0] * padded_row;
  for (int64_t y = 0; y < s.in_height; ++y, to += padded_row, picture += row) {
    std::fill(to, to + left, 0.0f);
    std::copy(picture, picture + row, to + left);
    std::fill(to + left + row, to + padded_row, 0.0f);
  }
  std::fill(to, padded + conv.padded_height * padded_row, 0.0f);
}

void run_narrow(const NarrowConv& conv, const float* in, float* out, float* scratch) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t pixels = s.out_height * s.out_width, all = s.samples * pixels;
  const int64_t in_each = s.in_height * s.in_width * s.in_channels,
                out_each = pixels * s.out_channels;
  const auto range = [&](int64_t first, int64_t last, float* padded) {
    for (int64_t sample = first / pixels; first < last; ++sample) {
      const int64_t end = std::min(last, (sample + 1) * pixels);
      const float* picture = in + sample * in_each;
      if (needs_padding(s)) {
        pad(conv, picture, padded);
        picture = padded;
      }
      HWY_DYNAMIC_DISPATCH(NarrowRange)
      (conv, picture, out + sample * out_each, first - sample * pixels, end - sample * pixels);
      first = end;
    }
  };
  if (conv.threads > 1) {
    const int64_t padded_each = conv.padded_height * conv.padded_width * s.in_channels;
#pragma omp parallel num_threads(conv.threads)
    {
      const int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
      range(all * i / n, all * (i + 1) / n, scratch + i * padded_each);
    }
  } else {
    range(0, all, scratch);
  }
  if (conv.activation != Activation::none && conv.activation != Activation::relu) {
    activate(conv.activation, out, out, static_cast<size_t>(s.samples * out_each));
  }
}

}  // namespace

bool narrow_conv_fits(const onednn::ConvShape& s) {
  return s.groups == 1 && s.in_channels % kLanes == 0 && HWY_DYNAMIC_DISPATCH(NarrowHere)();
}

// Measured on Zen 5 (docs/decisions/conv-layout.md): oneDNN's brgconv runs at 225 GFLOP/s a core
// counting channels up to the next 16; this kernel at 238 less the sums over lanes, which weigh as
// much as 60 multiply-adds an output.
bool narrow_conv_pays(const onednn::ConvShape& s) {
  if (!narrow_conv_fits(s)) return false;
  const double depth = static_cast<double>(s.in_channels * s.kernel[0] * s.kernel[1]);
  const double here = static_cast<double>(s.out_channels) * (depth + 60) / depth / 238;
  const double there = static_cast<double>((s.out_channels + kLanes - 1) / kLanes * kLanes) / 225;
  return here < 0.97 * there;
}

Kernel make_narrow_conv(const onednn::ConvShape& shape, Activation activation,
                        std::span<const float> weight, std::span<const float> bias, int threads) {
  SLUICE_CHECK(narrow_conv_fits(shape));
  auto conv = std::make_shared<NarrowConv>();
  conv->shape = shape;
  conv->activation = activation;
  conv->threads = threads;
  const int64_t out = shape.out_channels, in = shape.in_channels,
                taps = shape.kernel[0] * shape.kernel[1];
  conv->weight = Buffer(out * in * taps * static_cast<int64_t>(sizeof(float)));
  conv->bias = Buffer((out + 4) * static_cast<int64_t>(sizeof(float)));
  const auto reach = [&](int i) {
    const int64_t size = i == 0 ? shape.in_height : shape.in_width,
                  made = i == 0 ? shape.out_height : shape.out_width;
    return std::max(size + shape.padding[i],
                    (made - 1) * shape.stride[i] + (shape.kernel[i] - 1) * shape.dilation[i] + 1);
  };
  conv->padded_height = needs_padding(shape) ? reach(0) : shape.in_height;
  conv->padded_width = needs_padding(shape) ? reach(1) : shape.in_width;
  for (int64_t u = 0; u < shape.kernel[0]; ++u) {
    for (int64_t v = 0; v < shape.kernel[1]; ++v) {
      conv->taps.push_back((u * shape.dilation[0] * conv->padded_width + v * shape.dilation[1]) *
                           in);
    }
  }
  std::copy(bias.begin(), bias.end(), conv->bias.floats());
  float* to = conv->weight.floats();
  for (int64_t first = 0; first < out;) {
    ChannelBlock block;
    block.first = first;
    // Fours; what is left over is 1 or 2 on top of the last four, or a block of its own.
    block.count = out - first < kFour + 3 ? out - first : kFour;
    first += block.count;
    block.weight = to;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t vector = 0; vector < in / kLanes; ++vector) {
        for (int64_t o = 0; o < block.count; ++o) {
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            const int64_t channel = vector * kLanes + lane;
            *to++ = weight[static_cast<size_t>(((block.first + o) * in + channel) * taps + tap)];
          }
        }
      }
    }
    conv->blocks.push_back(block);
  }
  Kernel kernel;
  kernel.name = "sluice narrow_conv";
  if (needs_padding(shape)) {
    kernel.scratch_bytes = threads * conv->padded_height * conv->padded_width * in *
                           static_cast<int64_t>(sizeof(float));
  }
  kernel.bind = [conv](const Binding& b) -> std::function<void()> {
    const float* in = b.inputs[0];
    float* out = b.output;
    float* scratch = reinterpret_cast<float*>(b.scratch);
    return [conv, in, out, scratch] { run_narrow(*conv, in, out, scratch); };
  };
  return kernel;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
