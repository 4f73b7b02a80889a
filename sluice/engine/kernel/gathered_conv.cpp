#include "sluice/engine/kernel/gathered_conv.h"

#include <omp.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/elementwise.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/gathered_conv.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#ifndef SLUICE_ENGINE_KERNEL_GATHERED_CONV_ONCE_
#define SLUICE_ENGINE_KERNEL_GATHERED_CONV_ONCE_
namespace sluice::engine {

inline constexpr int64_t kMostLanes = 16;
inline constexpr int kMostOutputs = 6;

/// Up to kMostOutputs outputs of one sample, over all pixels.
struct GatheredCall {
  const float* picture;    ///< [kept inputs][plane]
  int64_t plane;           ///< floats of a channel's plane
  const int64_t* taps;     ///< where in a plane each tap's pixels begin
  int64_t tap_count;       ///< of the window
  const uint32_t* inputs;  ///< kept ones
  int64_t input_count;
  const float* weight[kMostOutputs];  ///< [tap][C] of each output
  int64_t tap_stride;                 ///< C
  float bias[kMostOutputs];
  int64_t outputs;
  float* flat;         ///< [outputs][flat_stride], what is computed, borders between rows included
  int64_t flat_count;  ///< pixels, borders between rows included
  int64_t flat_stride;
};

}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, kMostLanes>;
using V = hn::Vec<D>;

// Sums of kTogether x kMostVectors vectors stay in registers: 24 of 32, or 12 of 16. A tap's pixels
// begin anywhere, and 64 bytes then lie in two lines of the cache: few vectors, many outputs.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
constexpr int kMostVectors = 4, kTogether = 6;
#else
constexpr int kMostVectors = 3, kTogether = 4;
#endif
static_assert(kTogether <= kMostOutputs);

/// How many outputs a call is best given.
int64_t OutputsTogether() { return kTogether; }

template <int kOutputs, int kVectors>
void Tile(const GatheredCall& call, int64_t first) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V sums[kOutputs][kVectors];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[o][v] = hn::Set(d, call.bias[o]);
  }
  const float* weight[kOutputs];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) weight[o] = call.weight[o];
  const uint32_t* const begin = call.inputs;
  const uint32_t* const end = begin + call.input_count;
  for (int64_t tap = 0; tap < call.tap_count; ++tap) {
    const float* x = call.picture + call.taps[tap] + first;
    for (const uint32_t* input = begin; input != end; ++input) {
      const size_t c = *input;
      V pixels[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) pixels[v] = hn::LoadU(d, x + v * lanes);
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const V w = hn::Set(d, weight[o][c]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[o][v] = hn::MulAdd(w, pixels[v], sums[o][v]);
      }
      x += call.plane;
    }
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) weight[o] += call.tap_stride;
  }
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
    float* to = call.flat + o * call.flat_stride + first;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[o][v], d, to + v * lanes);
  }
}

using TileFunction = void (*)(const GatheredCall&, int64_t);

template <int kOutputs, size_t... kCounts>
TileFunction TileFor(int64_t vectors, std::index_sequence<kCounts...>) {
  static constexpr TileFunction tiles[] = {&Tile<kOutputs, kCounts + 1>...};
  return tiles[vectors - 1];
}

/// All pixels, in tiles of as equal a size as possible.
template <int kOutputs>
void Pixels(const GatheredCall& call) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  const int64_t vectors = (call.flat_count + lanes - 1) / lanes,
                tiles = (vectors + kMostVectors - 1) / kMostVectors;
  for (int64_t t = 0, v = 0; t < tiles; ++t) {
    const int64_t count = (vectors - v) / (tiles - t);
    TileFor<kOutputs>(count, std::make_index_sequence<kMostVectors>())(call, v * lanes);
    v += count;
  }
}

template <size_t... kOutputs>
void ForOutputs(const GatheredCall& call, std::index_sequence<kOutputs...>) {
  static constexpr void (*all[])(const GatheredCall&) = {&Pixels<kOutputs + 1>...};
  all[call.outputs - 1](call);
}

void GatheredProducts(const GatheredCall& call) {
  ForOutputs(call, std::make_index_sequence<kTogether>());
}

/// Rows of `width` numbers, one behind the other, to rows `pitch` apart; the numbers between are 0,
/// `before` of them before a row. Writes exactly rows * pitch numbers.
void OpenRows(const float* from, int64_t rows, int64_t width, int64_t before, int64_t pitch,
              float* to) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* const from_end = from + rows * width;
  float* const to_end = to + rows * pitch;
  for (int64_t row = 0; row < rows; ++row, from += width, to += pitch) {
    // What is written past a part's end is another part, which comes later.
    float* at = to;
    const auto zeros = [&](int64_t count) {
      float* const end = at + count;
      for (; at < end && at + lanes <= to_end; at += lanes) hn::StoreU(hn::Zero(d), d, at);
      while (at < end) *at++ = 0;
      at = end;
    };
    zeros(before);
    int64_t j = 0;
    for (; j < width && from + j + lanes <= from_end && at + j + lanes <= to_end; j += lanes)
      hn::StoreU(hn::LoadU(d, from + j), d, at + j);
    for (; j < width; ++j) at[j] = from[j];
    at += width;
    zeros(pitch - before - width);
  }
}

/// Rows of `width` numbers, `pitch` apart, to rows one behind the other.
void CloseRows(const float* from, int64_t rows, int64_t width, int64_t pitch, float* to) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), end = rows * width;
  for (int64_t row = 0; row < rows; ++row, from += pitch) {
    const int64_t at = row * width;
    int64_t j = 0;
    // What is written past a row's end is the next row's, which comes later.
    for (; j < width && at + j + lanes <= end; j += lanes)
      hn::StoreU(hn::LoadU(d, from + j), d, to + at + j);
    for (; j < width; ++j) to[at + j] = from[j];
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(GatheredProducts);
HWY_EXPORT(OpenRows);
HWY_EXPORT(CloseRows);
HWY_EXPORT(OutputsTogether);

namespace {

constexpr int64_t kFloat = sizeof(float);

struct GatheredConv {
  onednn::ConvShape shape;
  // A plane is [stride rows][stride columns][height][pitch]: the pixels that one tap meets lie side
  // by side, whatever the stride is.
  int64_t height = 0, pitch = 0, plane = 0, flat = 0, taps = 0;
  std::vector<int64_t> tap_offsets;
  Buffer weight;  // [O][tap][C]
  Buffer bias;    // [O], empty when there is none
  Activation activation = Activation::none;
  float closed = 0;  // what the activation makes of 0
  bool input_mask = false;
  int threads = 1;
  // Parts of the scratch, in bytes from its start.
  int64_t inputs = 0, outputs = 0, picture = 0, lane = 0, lane_bytes = 0, scratch_bytes = 0;

  int64_t flat_stride() const { return lane_bytes / kFloat / kMostOutputs; }
};

/// One sample's channels and where its operands lie.
struct Sample {
  const float *x, *out_mask, *in_mask;  // in_mask null: all
  float* y;
  uint32_t *inputs, *outputs;  // kept ones, ascending
  int64_t input_count, output_count;
  float* picture;
};

void list_channels(const GatheredConv& conv, Sample& sample) {
  sample.input_count = sample.output_count = 0;
  for (int64_t o = 0; o < conv.shape.out_channels; ++o) {
    if (sample.out_mask[o] > 0) sample.outputs[sample.output_count++] = static_cast<uint32_t>(o);
  }
  for (int64_t c = 0; c < conv.shape.in_channels; ++c) {
    if (!sample.in_mask || sample.in_mask[c] > 0)
      sample.inputs[sample.input_count++] = static_cast<uint32_t>(c);
  }
}

/// The plane of the k-th kept channel.
void fill_plane(const GatheredConv& conv, const Sample& sample, int64_t k) {
  const onednn::ConvShape& s = conv.shape;
  const float* x = sample.x + int64_t{sample.inputs[k]} * s.in_height * s.in_width;
  float* to = sample.picture + k * conv.plane;
  if (s.stride[0] == 1 && s.stride[1] == 1) {
    const int64_t above = std::min(s.padding[0], conv.height),
                  rows = std::min(s.in_height, conv.height - above);
    to = std::fill_n(to, above * conv.pitch, 0.0f);
    HWY_DYNAMIC_DISPATCH(OpenRows)(x, rows, s.in_width, s.padding[1], conv.pitch, to);
    std::fill_n(to + rows * conv.pitch, (conv.height - above - rows) * conv.pitch, 0.0f);
    return;
  }
  for (int64_t row_phase = 0; row_phase < s.stride[0]; ++row_phase) {
    for (int64_t column_phase = 0; column_phase < s.stride[1]; ++column_phase) {
      // The first number that comes from x, and how many do.
      const int64_t skipped =
          std::max<int64_t>(0, (s.padding[1] - column_phase + s.stride[1] - 1) / s.stride[1]);
      const int64_t column = skipped * s.stride[1] + column_phase - s.padding[1];
      const int64_t begin = std::min(skipped, conv.pitch);
      const int64_t count =
          column >= s.in_width
              ? 0
              : std::min(conv.pitch - begin, (s.in_width - column - 1) / s.stride[1] + 1);
      for (int64_t row = 0; row < conv.height; ++row, to += conv.pitch) {
        const int64_t i = row * s.stride[0] + row_phase - s.padding[0];
        if (i < 0 || i >= s.in_height) {
          std::fill(to, to + conv.pitch, 0.0f);
          continue;
        }
        const float* from = x + i * s.in_width + column;
        std::fill(to, to + begin, 0.0f);
        if (s.stride[1] == 1) {
          std::copy(from, from + count, to + begin);
        } else {
          for (int64_t j = 0; j < count; ++j) to[begin + j] = from[j * s.stride[1]];
        }
        std::fill(to + begin + count, to + conv.pitch, 0.0f);
      }
    }
  }
}

/// `count` kept outputs from the `first`-th on.
void compute(const GatheredConv& conv, const Sample& sample, int64_t first, int64_t count,
             float* flat) {
  const onednn::ConvShape& s = conv.shape;
  GatheredCall call{};
  call.picture = sample.picture;
  call.plane = conv.plane;
  call.taps = conv.tap_offsets.data();
  call.tap_count = conv.taps;
  call.inputs = sample.inputs;
  call.input_count = sample.input_count;
  call.tap_stride = s.in_channels;
  call.outputs = count;
  call.flat = flat;
  call.flat_count = conv.flat;
  call.flat_stride = conv.flat_stride();
  for (int64_t k = 0; k < count; ++k) {
    const int64_t o = sample.outputs[first + k];
    call.weight[k] = conv.weight.floats() + o * conv.taps * s.in_channels;
    call.bias[k] = conv.bias.bytes() > 0 ? conv.bias.floats()[o] : 0.0f;
  }
  HWY_DYNAMIC_DISPATCH(GatheredProducts)(call);
  for (int64_t k = 0; k < count; ++k) {
    float* y = sample.y + int64_t{sample.outputs[first + k]} * s.out_height * s.out_width;
    HWY_DYNAMIC_DISPATCH(CloseRows)
    (flat + k * call.flat_stride, s.out_height, s.out_width, conv.pitch, y);
    if (conv.activation != Activation::none)
      activate(conv.activation, y, y, static_cast<size_t>(s.out_height * s.out_width));
  }
}

Work work_of(const GatheredConv& conv, const Sample& sample) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t pixels = s.out_height * s.out_width,
                weights = conv.taps * sample.input_count * sample.output_count;
  Work work;
  work.macs = weights * pixels;
  work.bytes =
      4 * (weights + s.in_height * s.in_width * sample.input_count + pixels * s.out_channels);
  return work;
}

void run_gathered(const GatheredConv& conv, const float* x, const float* out_masks,
                  const float* in_masks, float* y, int64_t samples, std::byte* base, Work* work) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t pixels = s.out_height * s.out_width;
  Sample sample{};
  sample.inputs = reinterpret_cast<uint32_t*>(base + conv.inputs);
  sample.outputs = reinterpret_cast<uint32_t*>(base + conv.outputs);
  sample.picture = reinterpret_cast<float*>(base + conv.picture);
  int64_t blocks = 0;
#pragma omp parallel num_threads(conv.threads) if (conv.threads > 1)
  {
    auto* flat =
        reinterpret_cast<float*>(base + conv.lane + omp_get_thread_num() * conv.lane_bytes);
    for (int64_t n = 0; n < samples; ++n) {
#pragma omp single
      {
        sample.x = x + n * s.in_height * s.in_width * s.in_channels;
        sample.out_mask = out_masks + n * s.out_channels;
        sample.in_mask = in_masks ? in_masks + n * s.in_channels : nullptr;
        sample.y = y + n * pixels * s.out_channels;
        list_channels(conv, sample);
        const int64_t together = HWY_DYNAMIC_DISPATCH(OutputsTogether)();
        blocks = (sample.output_count + together - 1) / together;
        // Lanes past the last plane read on: into numbers that nobody looks at, but for the border
        // that the last row shares with what comes behind.
        std::fill_n(sample.picture + sample.input_count * conv.plane, conv.flat_stride(), 0.0f);
        if (work) {
          const Work did = work_of(conv, sample);
          work->macs += did.macs;
          work->bytes += did.bytes;
        }
      }
#pragma omp for schedule(static)
      for (int64_t k = 0; k < sample.input_count; ++k) fill_plane(conv, sample, k);
#pragma omp for schedule(static) nowait
      for (int64_t o = 0; o < s.out_channels; ++o) {
        if (!(sample.out_mask[o] > 0)) std::fill_n(sample.y + o * pixels, pixels, conv.closed);
      }
#pragma omp for schedule(static)
      for (int64_t b = 0; b < blocks; ++b) {
        // As equal as possible.
        const int64_t first = b * sample.output_count / blocks,
                      end = (b + 1) * sample.output_count / blocks;
        compute(conv, sample, first, end - first, flat);
      }
    }
  }
}

/// Rows or columns of a plane as the window reaches them, from the border on.
int64_t reach(const onednn::ConvShape& s, int i) {
  const int64_t size = i == 0 ? s.in_height : s.in_width,
                made = i == 0 ? s.out_height : s.out_width;
  return std::max(size + s.padding[i],
                  (made - 1) * s.stride[i] + (s.kernel[i] - 1) * s.dilation[i] + 1);
}

int64_t pitch_of(const onednn::ConvShape& s) {
  const int64_t columns = reach(s, 1);
  if (s.stride[1] > 1) return (columns + s.stride[1] - 1) / s.stride[1];
  // What is zero behind a row and before the next one is the same border.
  return std::max(s.in_width + std::max(s.padding[1], columns - s.padding[1] - s.in_width),
                  s.out_width);
}

}  // namespace

Kernel make_gathered_conv(const onednn::ConvShape& shape, Activation activation,
                          std::span<const float> weight, std::span<const float> bias,
                          bool input_mask, int threads, const std::string& what) {
  SLUICE_CHECK(shape.groups == 1);
  auto conv = std::make_shared<GatheredConv>();
  conv->shape = shape;
  conv->activation = activation;
  activate(activation, &conv->closed, &conv->closed, 1);
  conv->input_mask = input_mask;
  conv->threads = threads;
  conv->taps = checked_mul(shape.kernel[0], shape.kernel[1], "window");
  const int64_t out = shape.out_channels, in = shape.in_channels, taps = conv->taps;
  SLUICE_CHECK(static_cast<int64_t>(weight.size()) == out * in * taps);
  conv->pitch = pitch_of(shape);
  conv->height = (reach(shape, 0) + shape.stride[0] - 1) / shape.stride[0];
  const int64_t part = checked_mul(conv->height, conv->pitch, "plane");
  conv->plane =
      checked_mul(part, checked_mul(shape.stride[0], shape.stride[1], "strides"), "plane");
  conv->flat = (shape.out_height - 1) * conv->pitch + shape.out_width;
  int64_t furthest = 0;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t u = tap / shape.kernel[1] * shape.dilation[0],
                  v = tap % shape.kernel[1] * shape.dilation[1];
    const int64_t which = u % shape.stride[0] * shape.stride[1] + v % shape.stride[1];
    conv->tap_offsets.push_back(which * part + u / shape.stride[0] * conv->pitch +
                                v / shape.stride[1]);
    furthest = std::max(furthest, conv->tap_offsets.back());
  }
  const int64_t planes = checked_mul(checked_mul(conv->plane, in, "planes"), kFloat, "planes");
  if (planes > int64_t{1} << 32) {
    fail(Code::limit, "{}: {} planes of {} numbers are too large", what, in, conv->plane);
  }
  conv->weight = Buffer(checked_mul(out, taps * in * kFloat, "gathered convolution's weights"));
  for (int64_t o = 0; o < out; ++o) {
    float* to = conv->weight.floats() + o * taps * in;
    for (int64_t c = 0; c < in; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap)
        to[tap * in + c] = weight[static_cast<size_t>((o * in + c) * taps + tap)];
    }
  }
  if (!bias.empty()) {
    conv->bias = Buffer(out * kFloat);
    std::copy(bias.begin(), bias.end(), conv->bias.floats());
  }
  int64_t size = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = size;
    size += align_up(bytes);
    return begin;
  };
  const int64_t rounded = (conv->flat + kMostLanes - 1) / kMostLanes * kMostLanes + kMostLanes;
  conv->inputs = take(in * kFloat);
  conv->outputs = take(out * kFloat);
  conv->picture = take(planes + (furthest + rounded) * kFloat);
  conv->lane_bytes = rounded * kMostOutputs * kFloat;
  conv->lane = take(conv->lane_bytes * threads);
  conv->scratch_bytes = size;

  Kernel kernel;
  kernel.name = "sluice gathered_conv";
  kernel.scratch_bytes = conv->scratch_bytes;
  kernel.counts_rows = true;
  kernel.metered = true;
  kernel.bind = [conv](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* out_masks = b.inputs[1];
    const float* in_masks = conv->input_mask ? b.inputs[2] : nullptr;
    float* y = b.output;
    std::byte* scratch = b.scratch;
    Work* work = b.work;
    return [=, live = b.rows] {
      const int64_t samples = live ? live->count : conv->shape.samples;
      run_gathered(*conv, x, out_masks, in_masks, y, samples, scratch, work);
    };
  };
  return kernel;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
