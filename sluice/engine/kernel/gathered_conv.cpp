#include "sluice/engine/kernel/gathered_conv.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/padded_picture.h"
#include "sluice/engine/kernel/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/gathered_conv.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#ifndef SLUICE_ENGINE_KERNEL_GATHERED_CONV_ONCE_
#define SLUICE_ENGINE_KERNEL_GATHERED_CONV_ONCE_
namespace sluice::engine {

inline constexpr int64_t kSpill = 16;  // what compressed stores may write past their end

/// Where the weights of up to 32 kept outputs come from: rows of 32 numbers in source panels.
struct Sources {
  const float* weight;
  int64_t panel_stride;
  const float* keep;     ///< [panel_outputs(O)], above 0 for the wanted outputs
  const uint32_t* list;  ///< the wanted outputs
  int64_t count;
};

}  // namespace sluice::engine
#endif

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;

/// The numbers of `from` whose mask is above 0, one behind the other. Writes up to 15 numbers past
/// the last one; reads `count` numbers.
void Squeeze(const float* from, const float* mask, int64_t count, float* to) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto kept = hn::Gt(hn::LoadU(d, mask + i), zero);
    const size_t n = hn::CountTrue(d, kept);
    if (n == 0) continue;
    hn::StoreU(hn::Compress(hn::LoadU(d, from + i), kept), d, to);
    to += n;
  }
  for (; i < count; ++i) {
    if (mask[i] > 0) *to++ = from[i];
  }
}

/// Row `rows[r]` of the wanted outputs to to[r][32].
void GatherRows(const Sources& s, const uint32_t* rows, int64_t count, float* to) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto offset = [&](int64_t o) { return o / kPanel * s.panel_stride + o % kPanel; };
  // Vectors with wanted outputs, and where what they hold goes.
  int64_t from[kPanel], at[kPanel], vectors = 0;
  const float* keep[kPanel];
  for (int64_t k = 0; k < s.count; ++k) {
    const int64_t first = s.list[k] / lanes * lanes;
    if (vectors > 0 && keep[vectors - 1] == s.keep + first) continue;
    from[vectors] = offset(first);
    keep[vectors] = s.keep + first;
    at[vectors++] = k;
  }
  if (vectors > kPanel / 3) {
    int64_t single[kPanel];
    for (int64_t k = 0; k < kPanel; ++k) single[k] = offset(s.list[k < s.count ? k : 0]);
    for (int64_t r = 0; r < count; ++r, to += kPanel) {
      const float* row = s.weight + int64_t{rows[r]} * kPanel;
      for (int64_t k = 0; k < kPanel; ++k) to[k] = row[single[k]];
    }
    return;
  }
  const auto zero = hn::Zero(d);
  for (int64_t r = 0; r < count; ++r, to += kPanel) {
    const float* row = s.weight + int64_t{rows[r]} * kPanel;
    for (int64_t v = 0; v < vectors; ++v) {
      hn::StoreU(hn::Compress(hn::LoadU(d, row + from[v]), hn::Gt(hn::LoadU(d, keep[v]), zero)), d,
                 to + at[v]);
    }
  }
}

/// to[list[k]] = from[k], the other numbers of `to` are 0.
void Spread(const float* from, const uint32_t* list, int64_t kept, int64_t count, float* to) {
  std::fill(to, to + count, 0.0f);
  for (int64_t k = 0; k < kept; ++k) to[list[k]] = from[k];
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(Squeeze);
HWY_EXPORT(GatherRows);
HWY_EXPORT(Spread);

namespace {

// Weights are gathered for 32 outputs and a block of the depth, which then stays in the first-level
// cache while a strip of pixels goes by.
constexpr int64_t kDepth = 256;
constexpr int64_t kStrip = 480;  // pixels

struct GatheredConv {
  onednn::ConvShape shape;
  int64_t padded_height = 0, padded_width = 0, taps = 0;
  Buffer weight;  // [O / 32][tap][C][32]
  Buffer bias;    // [O], empty when there is none
  bool input_mask = false;
  int threads = 1;
  // Parts of the scratch, in bytes from its start.
  int64_t rows = 0, runs = 0, outputs = 0, bias_at = 0, picture = 0, lane = 0, lane_bytes = 0,
          scratch_bytes = 0;

  bool padded() const { return is_padded(shape); }
};

/// One sample's channels and where its operands lie.
struct Sample {
  const float* x;
  const float *out_mask, *in_mask;  // in_mask null: all
  float* y;
  int64_t outputs, inputs;  // kept
  int64_t runs;
};

/// What one sample's threads share.
struct Scratch {
  uint32_t* rows;     // of the weights, in the order of the depth: [tap][kept input]
  PanelRun* runs;     // the window, cut where a block of the depth ends
  uint32_t* outputs;  // kept ones, ascending
  float* bias;        // of the kept outputs
  float* picture;
};

/// What each thread has for itself.
struct Lane {
  float* compact;  // [strip][kept outputs]
  float* keep;     // [panel_outputs(O)]
  float* block;    // [kDepth][32]
};

template <class T>
T* at(std::byte* base, int64_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

/// By one thread: the lists and the taps of a sample.
void list_channels(const GatheredConv& conv, const Scratch& scratch, Sample& sample) {
  const onednn::ConvShape& s = conv.shape;
  sample.outputs = sample.inputs = sample.runs = 0;
  for (int64_t o = 0; o < s.out_channels; ++o) {
    if (sample.out_mask[o] > 0) scratch.outputs[sample.outputs++] = static_cast<uint32_t>(o);
  }
  for (int64_t c = 0; c < s.in_channels; ++c) {
    if (!sample.in_mask || sample.in_mask[c] > 0)
      scratch.rows[sample.inputs++] = static_cast<uint32_t>(c);
  }
  for (int64_t tap = 1; tap < conv.taps; ++tap) {
    for (int64_t k = 0; k < sample.inputs; ++k) {
      scratch.rows[tap * sample.inputs + k] =
          scratch.rows[k] + static_cast<uint32_t>(tap * s.in_channels);
    }
  }
  std::fill(scratch.bias, scratch.bias + panel_outputs(s.out_channels), 0.0f);
  for (int64_t k = 0; k < sample.outputs && conv.bias.bytes() > 0; ++k)
    scratch.bias[k] = conv.bias.floats()[scratch.outputs[k]];
  int64_t depth = 0;
  for (int64_t tap = 0; tap < conv.taps; ++tap) {
    const int64_t u = tap / s.kernel[1], v = tap % s.kernel[1];
    const int64_t begin =
        (u * s.dilation[0] * conv.padded_width + v * s.dilation[1]) * sample.inputs;
    for (int64_t k = 0; k < sample.inputs;) {
      const int64_t count = std::min(sample.inputs - k, kDepth - depth % kDepth);
      scratch.runs[sample.runs++] = {begin + k, count};
      k += count;
      depth += count;
    }
  }
}

/// Row `row` of the padded picture with the kept channels of x.
void gather_row(const GatheredConv& conv, const Scratch& scratch, const Sample& sample,
                int64_t row) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t kept = sample.inputs;
  float* to = scratch.picture + row * conv.padded_width * kept;
  float* const end = to + conv.padded_width * kept;
  const int64_t y = row - s.padding[0];
  if (y < 0 || y >= s.in_height) return std::fill(to, end, 0.0f);
  const float* x = sample.x + y * s.in_width * s.in_channels;
  const int64_t left = std::min(s.padding[1], conv.padded_width) * kept;
  std::fill(to, to + left, 0.0f);
  to += left;
  if (kept == s.in_channels) {
    std::memcpy(to, x, static_cast<size_t>(s.in_width * kept) * sizeof(float));
    to += s.in_width * kept;
  } else {
    // What Squeeze writes behind the row's last pixels belongs to another thread: those go one by
    // one.
    for (int64_t i = 0; i < s.in_width; ++i, x += s.in_channels, to += kept) {
      if (end - to >= kept + kSpill) {
        HWY_DYNAMIC_DISPATCH(Squeeze)(x, sample.in_mask, s.in_channels, to);
      } else {
        for (int64_t k = 0; k < kept; ++k) to[k] = x[scratch.rows[k]];
      }
    }
  }
  std::fill(to, end, 0.0f);
}

void compute_strip(const GatheredConv& conv, const Scratch& scratch, const Sample& sample,
                   int64_t first, int64_t count, const Lane& lane) {
  const onednn::ConvShape& s = conv.shape;
  const bool every_input = sample.inputs == s.in_channels,
             every_output = sample.outputs == s.out_channels;
  const float* picture = conv.padded() || !every_input ? scratch.picture : sample.x;
  const float* corners[kStrip];
  for (int64_t p = 0; p < count; ++p) {
    const int64_t i = (first + p) / s.out_width, j = (first + p) % s.out_width;
    corners[p] = picture + (i * s.stride[0] * conv.padded_width + j * s.stride[1]) * sample.inputs;
  }
  float* y = sample.y + first * s.out_channels;
  PanelCall call;
  call.x = corners;
  call.pixels = count;
  call.out_stride = every_output ? s.out_channels : sample.outputs;
  const int64_t panel_stride = conv.taps * s.in_channels * kPanel;
  for (int64_t o = 0; o < sample.outputs; o += kPanel) {
    call.outputs = std::min(kPanel, sample.outputs - o);
    call.bias = scratch.bias + o;
    call.out = (every_output ? y : lane.compact) + o;
    call.accumulate = false;
    const Sources sources{conv.weight.floats(), panel_stride, lane.keep, scratch.outputs + o,
                          call.outputs};
    if (!every_output) {
      for (int64_t k = 0; k < call.outputs; ++k) lane.keep[sources.list[k]] = 1;
      if (call.outputs < kPanel) std::fill(lane.block, lane.block + kDepth * kPanel, 0.0f);
    }
    int64_t depth = 0, run = 0;
    do {
      const int64_t begin = run, from = depth;
      do {
        if (run < sample.runs) depth += scratch.runs[run++].count;
      } while (run < sample.runs && depth % kDepth != 0);
      call.runs = {scratch.runs + begin, static_cast<size_t>(run - begin)};
      if (every_input && every_output) {
        call.weight = conv.weight.floats() + o / kPanel * panel_stride + from * kPanel;
      } else if (every_output) {
        const float* panel = conv.weight.floats() + o / kPanel * panel_stride;
        for (int64_t k = from; k < depth; ++k) {
          std::memcpy(lane.block + (k - from) * kPanel, panel + scratch.rows[k] * kPanel,
                      kPanel * sizeof(float));
        }
        call.weight = lane.block;
      } else {
        HWY_DYNAMIC_DISPATCH(GatherRows)(sources, scratch.rows + from, depth - from, lane.block);
        call.weight = lane.block;
      }
      panel_products(call);
      call.accumulate = true;
    } while (run < sample.runs);
    if (!every_output) {
      for (int64_t k = 0; k < call.outputs; ++k) lane.keep[sources.list[k]] = 0;
    }
  }
  if (every_output) return;
  const auto spread = HWY_DYNAMIC_DISPATCH(Spread);
  for (int64_t p = 0; p < count; ++p) {
    spread(lane.compact + p * sample.outputs, scratch.outputs, sample.outputs, s.out_channels,
           y + p * s.out_channels);
  }
}

Work work_of(const GatheredConv& conv, const Sample& sample) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t pixels = s.out_height * s.out_width,
                weights = conv.taps * sample.inputs * sample.outputs;
  Work work;
  work.macs = weights * pixels;
  work.bytes = 4 * (weights + s.in_height * s.in_width * sample.inputs + pixels * s.out_channels);
  return work;
}

void run_gathered(const GatheredConv& conv, const float* x, const float* out_masks,
                  const float* in_masks, float* y, std::byte* base, Work* work) {
  const onednn::ConvShape& s = conv.shape;
  const Scratch scratch{at<uint32_t>(base, conv.rows), at<PanelRun>(base, conv.runs),
                        at<uint32_t>(base, conv.outputs), at<float>(base, conv.bias_at),
                        at<float>(base, conv.picture)};
  const int64_t pixels = s.out_height * s.out_width;
  // Strips of one size, as few as the threads need.
  const int64_t strips_wanted = std::max<int64_t>(conv.threads, (pixels + kStrip - 1) / kStrip);
  const int64_t strip = (pixels + strips_wanted - 1) / strips_wanted;
  const int64_t strips = (pixels + strip - 1) / strip;
  Sample sample{};
#pragma omp parallel num_threads(conv.threads) if (conv.threads > 1)
  {
    Lane lane;
    lane.block = at<float>(base, conv.lane + omp_get_thread_num() * conv.lane_bytes);
    lane.keep = lane.block + kDepth * kPanel + kSpill;
    lane.compact = lane.keep + panel_outputs(s.out_channels);
    std::fill(lane.keep, lane.compact, 0.0f);
    for (int64_t n = 0; n < s.samples; ++n) {
#pragma omp single
      {
        sample.x = x + n * s.in_height * s.in_width * s.in_channels;
        sample.out_mask = out_masks + n * s.out_channels;
        sample.in_mask = in_masks ? in_masks + n * s.in_channels : nullptr;
        sample.y = y + n * pixels * s.out_channels;
        list_channels(conv, scratch, sample);
        if (work) {
          const Work did = work_of(conv, sample);
          work->macs += did.macs;
          work->bytes += did.bytes;
        }
      }
      if (conv.padded() || sample.inputs != s.in_channels) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < conv.padded_height; ++row)
          gather_row(conv, scratch, sample, row);
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < strips; ++i)
        compute_strip(conv, scratch, sample, i * strip, std::min(strip, pixels - i * strip), lane);
    }
  }
}

}  // namespace

Kernel make_gathered_conv(const onednn::ConvShape& shape, std::span<const float> weight,
                          std::span<const float> bias, bool input_mask, int threads,
                          const std::string& what) {
  SLUICE_CHECK(shape.groups == 1);
  auto conv = std::make_shared<GatheredConv>();
  conv->shape = shape;
  conv->input_mask = input_mask;
  conv->threads = threads;
  conv->taps = checked_mul(shape.kernel[0], shape.kernel[1], "window");
  const int64_t out = shape.out_channels, in = shape.in_channels, taps = conv->taps;
  constexpr int64_t kFloat = sizeof(float);
  SLUICE_CHECK(static_cast<int64_t>(weight.size()) == out * in * taps);
  const PaddedPicture picture = padded_picture(shape, what);
  conv->padded_height = picture.height;
  conv->padded_width = picture.width;
  if (checked_mul(taps, in, "weights") > std::numeric_limits<uint32_t>::max())
    fail(Code::limit, "{}: {} weights per output are too many", what, taps * in);
  conv->weight =
      Buffer(checked_mul(panel_outputs(out), taps * in * kFloat, "gathered convolution's weights"));
  for (int64_t o = 0; o < out; ++o) {
    float* to = conv->weight.floats() + o / kPanel * taps * in * kPanel + o % kPanel;
    for (int64_t c = 0; c < in; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap)
        to[(tap * in + c) * kPanel] = weight[static_cast<size_t>((o * in + c) * taps + tap)];
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
  conv->rows = take(std::max(taps, int64_t{1}) * in * kFloat);
  conv->runs = take((taps + taps * in / kDepth + 1) * static_cast<int64_t>(sizeof(PanelRun)));
  conv->outputs = take(out * kFloat);
  conv->bias_at = take(panel_outputs(out) * kFloat);
  conv->picture = take(picture.bytes);
  conv->lane_bytes =
      align_up((kDepth * kPanel + kSpill + panel_outputs(out) + kStrip * out) * kFloat);
  conv->lane = take(conv->lane_bytes * threads);
  conv->scratch_bytes = size;

  Kernel kernel;
  kernel.name = "sluice gathered_conv";
  kernel.scratch_bytes = conv->scratch_bytes;
  kernel.metered = true;
  kernel.bind = [conv](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* out_masks = b.inputs[1];
    const float* in_masks = conv->input_mask ? b.inputs[2] : nullptr;
    float* y = b.output;
    std::byte* scratch = b.scratch;
    Work* work = b.work;
    return [=] { run_gathered(*conv, x, out_masks, in_masks, y, scratch, work); };
  };
  return kernel;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
