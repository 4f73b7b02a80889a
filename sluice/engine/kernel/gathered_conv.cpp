#include "sluice/engine/kernel/gathered_conv.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/gathered_conv.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The numbers of `from` whose mask is above 0, one behind the other. Writes up to 15 numbers past
/// the last one; reads `count` numbers.
void Squeeze(const float* from, const float* mask, int64_t count, float* to) {
  const hn::CappedTag<float, 16> d;
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
HWY_EXPORT(Spread);

namespace {

constexpr int64_t kStrip = 96;  // pixels whose results wait in compact form; a multiple of 12
constexpr int64_t kSpill = 16;  // what Squeeze may write past its end

struct GatheredConv {
  onednn::ConvShape shape;
  int64_t padded_height = 0, padded_width = 0, taps = 0;
  Buffer weight;  // [C][tap][O]
  Buffer bias;    // [O], empty when there is none
  bool input_mask = false;
  int threads = 1;
  // Parts of the scratch, in bytes from its start.
  int64_t lists = 0, panels = 0, picture = 0, lane = 0, lane_bytes = 0, scratch_bytes = 0;

  bool padded() const { return shape.padding[0] > 0 || shape.padding[1] > 0; }
};

/// One sample's channels and where its operands lie.
struct Sample {
  const float* x;
  const float *out_mask, *in_mask;  // in_mask null: all
  float* y;
  int64_t outputs, inputs;  // kept
  bool gather;              // the weights: not those of the sample before
};

struct Scratch {
  uint32_t* outputs;  // kept ones, ascending
  float* last_masks;  // of the weights in `panels`: [O][C]
  float* bias;        // of the kept outputs
  PanelRun* runs;
  float* panels;
  float* picture;
};

Scratch scratch_of(const GatheredConv& conv, std::byte* base) {
  const onednn::ConvShape& s = conv.shape;
  Scratch scratch;
  scratch.panels = reinterpret_cast<float*>(base + conv.panels);
  scratch.picture = reinterpret_cast<float*>(base + conv.picture);
  scratch.runs = reinterpret_cast<PanelRun*>(base + conv.lists);
  scratch.outputs = reinterpret_cast<uint32_t*>(scratch.runs + conv.taps);
  scratch.last_masks = reinterpret_cast<float*>(scratch.outputs + s.out_channels);
  scratch.bias = scratch.last_masks + s.out_channels + s.in_channels;
  return scratch;
}

/// True where both lists of masks keep the same channels.
bool same_kept(const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if ((a[i] > 0) != (b[i] > 0)) return false;
  }
  return true;
}

/// By one thread: the lists, the taps and the bias of a sample.
void list_channels(const GatheredConv& conv, Scratch& scratch, Sample& sample, bool first) {
  const onednn::ConvShape& s = conv.shape;
  sample.gather = first || !same_kept(sample.out_mask, scratch.last_masks, s.out_channels) ||
                  (sample.in_mask &&
                   !same_kept(sample.in_mask, scratch.last_masks + s.out_channels, s.in_channels));
  sample.outputs = 0;
  for (int64_t o = 0; o < s.out_channels; ++o) {
    if (sample.out_mask[o] > 0) scratch.outputs[sample.outputs++] = static_cast<uint32_t>(o);
  }
  sample.inputs = s.in_channels;
  if (sample.in_mask) {
    sample.inputs = std::count_if(sample.in_mask, sample.in_mask + s.in_channels,
                                  [](float m) { return m > 0; });
  }
  if (!sample.gather) return;
  std::copy_n(sample.out_mask, s.out_channels, scratch.last_masks);
  if (sample.in_mask)
    std::copy_n(sample.in_mask, s.in_channels, scratch.last_masks + s.out_channels);
  std::fill(scratch.bias, scratch.bias + panel_outputs(s.out_channels), 0.0f);
  for (int64_t k = 0; k < sample.outputs && conv.bias.bytes() > 0; ++k)
    scratch.bias[k] = conv.bias.floats()[scratch.outputs[k]];
  for (int64_t u = 0, tap = 0; u < s.kernel[0]; ++u) {
    for (int64_t v = 0; v < s.kernel[1]; ++v, ++tap) {
      scratch.runs[tap] = {
          (u * s.dilation[0] * conv.padded_width + v * s.dilation[1]) * sample.inputs,
          sample.inputs};
    }
  }
}

/// The kept outputs' weights of input channel `c`, which is the `k`-th kept one.
void gather_weights(const GatheredConv& conv, const Scratch& scratch, const Sample& sample,
                    int64_t c, int64_t k, float* row) {
  const int64_t out = conv.shape.out_channels, depth = conv.taps * sample.inputs;
  const bool all = sample.outputs == out;
  for (int64_t tap = 0; tap < conv.taps; ++tap) {
    const float* from = conv.weight.floats() + (c * conv.taps + tap) * out;
    if (!all) {
      HWY_DYNAMIC_DISPATCH(Squeeze)(from, sample.out_mask, out, row);
      from = row;
    }
    float* to = scratch.panels + (tap * sample.inputs + k) * kPanel;
    for (int64_t o = 0; o < sample.outputs; o += kPanel, to += depth * kPanel) {
      const int64_t count = std::min(kPanel, sample.outputs - o);
      std::memcpy(to, from + o, static_cast<size_t>(count) * sizeof(float));
      std::fill(to + count, to + kPanel, 0.0f);
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
    // The last pixel goes through a buffer: what Squeeze writes behind it belongs to another
    // thread.
    for (int64_t i = 0; i < s.in_width; ++i, x += s.in_channels) {
      if (end - to >= kept + kSpill) {
        HWY_DYNAMIC_DISPATCH(Squeeze)(x, sample.in_mask, s.in_channels, to);
        to += kept;
      } else {
        for (int64_t c = 0; c < s.in_channels; ++c) {
          if (sample.in_mask[c] > 0) *to++ = x[c];
        }
      }
    }
  }
  std::fill(to, end, 0.0f);
}

void compute_strip(const GatheredConv& conv, const Scratch& scratch, const Sample& sample,
                   int64_t first, int64_t count, float* compact) {
  const onednn::ConvShape& s = conv.shape;
  const bool copied = conv.padded() || sample.inputs != s.in_channels;
  const float* picture = copied ? scratch.picture : sample.x;
  const float* corners[kStrip];
  for (int64_t p = 0; p < count; ++p) {
    const int64_t i = (first + p) / s.out_width, j = (first + p) % s.out_width;
    corners[p] = picture + (i * s.stride[0] * conv.padded_width + j * s.stride[1]) * sample.inputs;
  }
  const bool all = sample.outputs == s.out_channels;
  float* y = sample.y + first * s.out_channels;
  PanelCall call;
  call.weight = scratch.panels;
  call.panel_stride = conv.taps * sample.inputs * kPanel;
  call.outputs = sample.outputs;
  call.bias = scratch.bias;
  call.runs = {scratch.runs, static_cast<size_t>(conv.taps)};
  call.x = corners;
  call.pixels = count;
  call.out = all ? y : compact;
  call.out_stride = all ? s.out_channels : sample.outputs;
  panel_products(call);
  if (all) return;
  const auto spread = HWY_DYNAMIC_DISPATCH(Spread);
  for (int64_t p = 0; p < count; ++p) {
    spread(compact + p * sample.outputs, scratch.outputs, sample.outputs, s.out_channels,
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
  Scratch scratch = scratch_of(conv, base);
  const int64_t pixels = s.out_height * s.out_width, strips = (pixels + kStrip - 1) / kStrip;
  Sample sample;
#pragma omp parallel num_threads(conv.threads) if (conv.threads > 1)
  {
    float* compact =
        reinterpret_cast<float*>(base + conv.lane + omp_get_thread_num() * conv.lane_bytes);
    for (int64_t n = 0; n < s.samples; ++n) {
#pragma omp single
      {
        sample.x = x + n * s.in_height * s.in_width * s.in_channels;
        sample.out_mask = out_masks + n * s.out_channels;
        sample.in_mask = in_masks ? in_masks + n * s.in_channels : nullptr;
        sample.y = y + n * pixels * s.out_channels;
        list_channels(conv, scratch, sample, n == 0);
        if (work) {
          const Work did = work_of(conv, sample);
          work->macs += did.macs;
          work->bytes += did.bytes;
        }
      }
      if (sample.gather) {
        const int id = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t k = 0;
        for (int64_t c = 0; c < s.in_channels; ++c) {
          if (sample.in_mask && !(sample.in_mask[c] > 0)) continue;
          if (k % team == id) gather_weights(conv, scratch, sample, c, k, compact);
          ++k;
        }
      }
      if (conv.padded() || sample.inputs != s.in_channels) {
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < conv.padded_height; ++row)
          gather_row(conv, scratch, sample, row);
      }
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t first = strip * kStrip;
        compute_strip(conv, scratch, sample, first, std::min(kStrip, pixels - first), compact);
      }
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
  const auto reach = [&](int i) {
    const int64_t size = i == 0 ? shape.in_height : shape.in_width,
                  made = i == 0 ? shape.out_height : shape.out_width;
    if (!conv->padded()) return size;
    return std::max(size + shape.padding[i],
                    (made - 1) * shape.stride[i] + (shape.kernel[i] - 1) * shape.dilation[i] + 1);
  };
  conv->padded_height = reach(0);
  conv->padded_width = reach(1);
  const int64_t picture =
      checked_mul(checked_mul(conv->padded_height, conv->padded_width, "padded picture"),
                  in * kFloat, "padded picture");
  if (picture > int64_t{1} << 32) {
    fail(Code::limit, "{}: the padded picture {} x {} x {} is too large", what, in,
         conv->padded_height, conv->padded_width);
  }
  conv->weight = Buffer(out * in * taps * kFloat);
  float* to = conv->weight.floats();
  for (int64_t c = 0; c < in; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t o = 0; o < out; ++o)
        *to++ = weight[static_cast<size_t>((o * in + c) * taps + tap)];
    }
  }
  if (!bias.empty()) {
    conv->bias = Buffer(out * kFloat);
    std::copy(bias.begin(), bias.end(), conv->bias.floats());
  }
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = at;
    at += align_up(bytes);
    return begin;
  };
  conv->lists = take(taps * static_cast<int64_t>(sizeof(PanelRun)) +
                     (2 * out + in + panel_outputs(out)) * kFloat);
  conv->panels = take(checked_mul(panel_outputs(out), taps * in * kFloat, "panels"));
  conv->picture = take(picture);
  conv->lane_bytes = align_up((kStrip * out + kSpill) * kFloat);
  conv->lane = take(conv->lane_bytes * threads);
  conv->scratch_bytes = at;

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
