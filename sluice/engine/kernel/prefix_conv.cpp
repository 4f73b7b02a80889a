#include "sluice/engine/kernel/prefix_conv.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/padded_picture.h"
#include "sluice/engine/kernel/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/engine/kernel/prefix_conv.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sluice::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;

/// y = y * scale + bias + other over `rows` numbers of each pixel, at least 0 if `relu`; `other`
/// may be null.
void Finish(float* y, const float* other, int64_t pixels, int64_t stride, int64_t rows,
            const float* scale, const float* bias, bool relu) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  for (int64_t p = 0; p < pixels; ++p, y += stride) {
    int64_t o = 0;
    for (; o + lanes <= rows; o += lanes) {
      auto v = hn::MulAdd(hn::LoadU(d, y + o), hn::LoadU(d, scale + o), hn::LoadU(d, bias + o));
      if (other) v = hn::Add(v, hn::LoadU(d, other + o));
      // A number first: what is not one stays so without relu, and is 0 with it.
      hn::StoreU(relu ? hn::Max(v, zero) : v, d, y + o);
    }
    for (; o < rows; ++o) {
      const float v = y[o] * scale[o] + bias[o] + (other ? other[o] : 0.0f);
      y[o] = relu && !(v > 0) ? 0.0f : v;
    }
    if (other) other += stride;
  }
}

}  // namespace sluice::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::engine {

HWY_EXPORT(Finish);

namespace {

constexpr int64_t kStrip = 112;  // pixels: whole tiles of every vector width

struct PrefixConv {
  onednn::ConvShape shape;
  onednn::Tail tail;
  std::vector<PrefixSize> sizes;
  std::vector<std::vector<PanelRun>> runs;  // by size
  int64_t padded_height = 0, padded_width = 0, taps = 0, panel_outs = 0;
  Buffer weight;       // [O / 32][C / block][tap][block][32]
  Buffer scale, bias;  // [sizes][panel_outputs(O)]
  bool has_scale = false;
  int threads = 1;

  bool padded() const { return is_padded(shape); }
  /// Floats from pixel to pixel of what the products read.
  int64_t pixel_stride(const PrefixSize& size) const {
    return padded() ? size.columns : shape.in_channels;
  }
};

/// Where each run of weights meets the picture: in the order of the weights, neighbours as one.
std::vector<PanelRun> make_runs(const PrefixConv& conv, const PrefixSize& size, int64_t block) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t stride = conv.pixel_stride(size);
  std::vector<PanelRun> runs;
  for (int64_t b = 0; b < size.columns; b += block) {
    for (int64_t u = 0; u < s.kernel[0]; ++u) {
      for (int64_t v = 0; v < s.kernel[1]; ++v) {
        const int64_t begin =
            (u * s.dilation[0] * conv.padded_width + v * s.dilation[1]) * stride + b;
        if (!runs.empty() && runs.back().offset + runs.back().count == begin) {
          runs.back().count += block;
        } else {
          runs.push_back({begin, block});
        }
      }
    }
  }
  return runs;
}

/// Row `row` of the padded picture, with the leading channels of x.
void pad_row(const PrefixConv& conv, int64_t columns, const float* x, int64_t row, float* picture) {
  const onednn::ConvShape& s = conv.shape;
  float* to = picture + row * conv.padded_width * columns;
  float* const end = to + conv.padded_width * columns;
  const int64_t y = row - s.padding[0];
  if (y < 0 || y >= s.in_height) return std::fill(to, end, 0.0f);
  const float* from = x + y * s.in_width * s.in_channels;
  const int64_t left = std::min(s.padding[1], conv.padded_width) * columns;
  std::fill(to, to + left, 0.0f);
  to += left;
  if (columns == s.in_channels) {
    std::memcpy(to, from, static_cast<size_t>(s.in_width * columns) * sizeof(float));
    to += s.in_width * columns;
  } else {
    for (int64_t i = 0; i < s.in_width; ++i, from += s.in_channels, to += columns)
      std::copy(from, from + columns, to);
  }
  std::fill(to, end, 0.0f);
}

/// What lies behind the size's rows: the other addend alone.
void fill_rest(const PrefixConv& conv, int64_t rows, const float* other, float* y, int64_t pixels) {
  const int64_t out = conv.shape.out_channels, rest = out - rows;
  if (rest == 0) return;
  const Activation act = conv.tail.activation;
  const float none = 0;
  float nothing = 0;
  activate(act, &none, &nothing, 1);
  for (int64_t p = 0; p < pixels; ++p) {
    float* to = y + p * out + rows;
    if (other) {
      activate(act, other + p * out + rows, to, static_cast<size_t>(rest));
    } else {
      std::fill(to, to + rest, nothing);
    }
  }
}

void compute_strip(const PrefixConv& conv, size_t index, const float* picture, const float* other,
                   float* y, int64_t first, int64_t count) {
  const onednn::ConvShape& s = conv.shape;
  const PrefixSize& size = conv.sizes[index];
  const int64_t stride = conv.pixel_stride(size), out = s.out_channels;
  const float* corners[kStrip];
  for (int64_t p = 0; p < count; ++p) {
    const int64_t i = (first + p) / s.out_width, j = (first + p) % s.out_width;
    corners[p] = picture + (i * s.stride[0] * conv.padded_width + j * s.stride[1]) * stride;
  }
  const float* bias = conv.bias.floats() + static_cast<int64_t>(index) * conv.panel_outs;
  const bool plain = !conv.has_scale && !other;
  y += first * out;
  if (other) other += first * out;
  PanelCall call;
  call.weight = conv.weight.floats();
  call.panel_stride = conv.taps * s.in_channels * kPanel;
  call.outputs = size.rows;
  call.bias = plain ? bias : nullptr;
  call.runs = conv.runs[index];
  call.x = corners;
  call.pixels = count;
  call.out = y;
  call.out_stride = out;
  panel_products(call);
  const Activation act = conv.tail.activation;
  const bool relu = act == Activation::relu;
  if (!plain || relu) {
    const float* scale = conv.scale.floats() + static_cast<int64_t>(index) * conv.panel_outs;
    // A plain product has its bias already.
    const float* shift =
        plain ? conv.bias.floats() + std::ssize(conv.sizes) * conv.panel_outs : bias;
    HWY_DYNAMIC_DISPATCH(Finish)(y, other, count, out, size.rows, scale, shift, relu);
  }
  if (act != Activation::none && !relu) {
    for (int64_t p = 0; p < count; ++p)
      activate(act, y + p * out, y + p * out, static_cast<size_t>(size.rows));
  }
  fill_rest(conv, size.rows, other, y, count);
}

void count_work(const PrefixConv& conv, const PrefixSize& size, Work* work) {
  if (!work) return;
  const onednn::ConvShape& s = conv.shape;
  const int64_t pixels = s.out_height * s.out_width, weights = conv.taps * size.rows * size.columns;
  work->macs += s.samples * weights * pixels;
  work->bytes +=
      4 *
      (weights + s.samples * (s.in_height * s.in_width * size.columns + pixels * s.out_channels));
}

void run_prefix_conv(const PrefixConv& conv, size_t index, const float* x, const float* other,
                     float* y, float* picture) {
  const onednn::ConvShape& s = conv.shape;
  const int64_t columns = conv.sizes[index].columns;
  const int64_t pixels = s.out_height * s.out_width, strips = (pixels + kStrip - 1) / kStrip;
  const bool padded = conv.padded();
#pragma omp parallel num_threads(conv.threads) if (conv.threads > 1)
  for (int64_t n = 0; n < s.samples; ++n) {
    const float* from = x + n * s.in_height * s.in_width * s.in_channels;
    if (padded) {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < conv.padded_height; ++row)
        pad_row(conv, columns, from, row, picture);
    }
    const int64_t to = n * pixels * s.out_channels;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < strips; ++i) {
      compute_strip(conv, index, padded ? picture : from, other ? other + to : nullptr, y + to,
                    i * kStrip, std::min(kStrip, pixels - i * kStrip));
    }
  }
}

}  // namespace

Kernel make_prefix_conv(const onednn::ConvShape& shape, const onednn::Tail& tail,
                        std::span<const float> weight, std::span<const float> scale,
                        std::span<const float> bias, std::vector<PrefixSize> sizes, int threads,
                        const std::string& what) {
  SLUICE_CHECK(shape.groups == 1 && !sizes.empty());
  const int64_t out = shape.out_channels, in = shape.in_channels,
                count = static_cast<int64_t>(sizes.size());
  auto conv = std::make_shared<PrefixConv>();
  conv->shape = shape;
  conv->tail = tail;
  conv->threads = threads;
  conv->taps = checked_mul(shape.kernel[0], shape.kernel[1], "window");
  const int64_t taps = conv->taps;
  SLUICE_CHECK(static_cast<int64_t>(weight.size()) == out * in * taps);
  SLUICE_CHECK(scale.empty() || static_cast<int64_t>(scale.size()) == count * out);
  SLUICE_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == count * out);
  constexpr int64_t kFloat = sizeof(float);
  const PaddedPicture picture = padded_picture(shape, what);
  conv->padded_height = picture.height;
  conv->padded_width = picture.width;
  int64_t block = in;
  for (const PrefixSize& size : sizes) {
    SLUICE_CHECK(size.rows >= 1 && size.rows <= out && size.columns >= 1 && size.columns <= in);
    block = std::gcd(block, size.columns);
  }
  conv->panel_outs = panel_outputs(out);
  conv->weight = Buffer(checked_mul(conv->panel_outs, taps * in * kFloat, "nested weights"));
  for (int64_t o = 0; o < out; ++o) {
    float* to = conv->weight.floats() + o / kPanel * taps * in * kPanel + o % kPanel;
    for (int64_t c = 0; c < in; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t k = (c / block * taps + tap) * block + c % block;
        to[k * kPanel] = weight[static_cast<size_t>((o * in + c) * taps + tap)];
      }
    }
  }
  conv->has_scale = !scale.empty();
  // One row more: the shift of products that have their bias.
  const int64_t each = conv->panel_outs, bytes = (count + 1) * each * kFloat;
  conv->scale = Buffer(bytes);
  conv->bias = Buffer(bytes);
  std::fill_n(conv->scale.floats(), (count + 1) * each, 1.0f);
  std::fill_n(conv->bias.floats(), (count + 1) * each, 0.0f);
  for (int64_t k = 0; k < count; ++k) {
    const auto row = [&](std::span<const float> from, const Buffer& to) {
      if (from.empty()) return;
      std::copy_n(from.begin() + k * out, out, to.floats() + k * each);
    };
    row(scale, conv->scale);
    row(bias, conv->bias);
  }
  conv->sizes = std::move(sizes);
  for (const PrefixSize& size : conv->sizes) conv->runs.push_back(make_runs(*conv, size, block));

  Kernel kernel;
  kernel.name = "sluice prefix_conv";
  kernel.scratch_bytes = conv->padded() ? picture.bytes : 0;
  kernel.metered = true;
  kernel.bind = [conv](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* other = conv->tail.add == onednn::Tail::Add::none ? nullptr : b.inputs[1];
    float* y = b.output;
    auto* scratch = reinterpret_cast<float*>(b.scratch);
    Work* work = b.work;
    const int64_t* choice = b.size;
    return [=] {
      const int64_t last = std::ssize(conv->sizes) - 1;
      const auto index =
          static_cast<size_t>(choice && *choice >= 0 ? std::min(*choice, last) : last);
      run_prefix_conv(*conv, index, x, other, y, scratch);
      count_work(*conv, conv->sizes[index], work);
    };
  };
  return kernel;
}

}  // namespace sluice::engine
#endif  // HWY_ONCE
