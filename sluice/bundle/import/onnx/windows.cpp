// ONNX operators that look through windows: pools, and pictures in another size.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/bundle/import/onnx/window.h"

namespace sluice::bundle::onnx {
namespace {

using Vals = std::vector<Val>;

void pair_up(std::vector<int64_t>& list, int64_t first) {
  if (list.size() == 1) list.insert(list.begin(), first);
}

/// What auto_pad SAME adds in all: the output has ceil(size / stride) positions.
int64_t same_padding(int64_t size, int64_t kernel, int64_t stride, int64_t dilation) {
  const int64_t positions = (size + stride - 1) / stride;
  return std::max<int64_t>(0, (positions - 1) * stride + dilation * (kernel - 1) + 1 - size);
}

Val pool(const Call& c, bool maximum) {
  const Shape original = c.in(0).shape;
  const Val x = picture(c, c.in(0));
  Window window = read_window(c, {}, original.size() - 2);
  const bool counts = c.attr("count_include_pad", int64_t{0}) != 0;
  std::vector<int64_t> begin = window.begin, end = window.end, positions(2);
  for (size_t i = 0; i < 2; ++i) {
    const int64_t size = x.shape[i + 2], span = window.dilation[i] * (window.kernel[i] - 1) + 1,
                  room = size + begin[i] + end[i] - span;
    if (room < 0)
      c.refuse(Code::shape, fmt::format("a window of {} over {}", span, size + begin[i] + end[i]));
    positions[i] =
        (window.ceil ? (room + window.stride[i] - 1) / window.stride[i] : room / window.stride[i]) +
        1;
    // A window that starts in the far padding is none.
    if (window.ceil && (positions[i] - 1) * window.stride[i] >= size + begin[i]) --positions[i];
    end[i] =
        std::max<int64_t>(end[i], (positions[i] - 1) * window.stride[i] + span - size - begin[i]);
  }
  const bool padded = begin[0] + begin[1] + end[0] + end[1] > 0;
  const bool dilated = window.dilation[0] > 1 || window.dilation[1] > 1;
  if (dilated) c.refuse(Code::unsupported, "dilated windows; pools look at neighbours");
  bool fits = true;  // the graph's pools: the same padding at both sides, at most half the kernel
  for (size_t i = 0; i < 2; ++i)
    fits =
        fits && window.begin[i] == window.end[i] && begin[i] <= window.kernel[i] / 2 &&
        end[i] <= window.end[i] + window.stride[i] - 1 &&
        positions[i] == (x.shape[i + 2] + 2 * begin[i] - window.kernel[i]) / window.stride[i] + 1;
  const bool excludes = !maximum && padded && !counts;
  const Shape in{x.shape[1], x.shape[2], x.shape[3]};
  if (fits && (maximum || excludes || !padded)) {
    const int node =
        c.to.add(maximum ? "max_pool2d" : "avg_pool2d", {c.to.as(x, in)},
                 {{"kernel", window.kernel}, {"stride", window.stride}, {"padding", window.begin}});
    return unpicture(c, node, original.size());
  }
  // Otherwise the padding is made before: for a maximum the smallest number, for a mean zeros,
  // whose share is taken out afterwards.
  const Val wide = c.to.pad(x, {0, 0, begin[0], begin[1]}, {0, 0, end[0], end[1]},
                            maximum ? -std::numeric_limits<float>::max() : 0.0);
  const int node = c.to.add(maximum ? "max_pool2d" : "avg_pool2d",
                            {c.to.as(wide, {wide.shape[1], wide.shape[2], wide.shape[3]})},
                            {{"kernel", window.kernel}, {"stride", window.stride}});
  Val result = c.to.made(node, {1, in[0], positions[0], positions[1]});
  if (!maximum) {
    // How many of a window's places are counted: those in the picture, with count_include_pad also
    // those in the padding that was asked for.
    c.to.spend({positions[0], positions[1]});
    std::vector<float> factors;
    const auto inside = [&](size_t i, int64_t position) {
      const int64_t from = position * window.stride[i] - begin[i], to = from + window.kernel[i];
      const int64_t low = counts ? -window.begin[i] : 0,
                    high = x.shape[i + 2] + (counts ? window.end[i] : 0);
      return std::max<int64_t>(1, std::min(to, high) - std::max(from, low));
    };
    const double all = static_cast<double>(window.kernel[0] * window.kernel[1]);
    for (int64_t y = 0; y < positions[0]; ++y)
      for (int64_t z = 0; z < positions[1]; ++z)
        factors.push_back(
            static_cast<float>(all / static_cast<double>(inside(0, y) * inside(1, z))));
    const bool ones = std::all_of(factors.begin(), factors.end(), [](float f) { return f == 1; });
    if (!ones)
      result = c.to.binary(Binary::mul, result,
                           c.to.known(make_constant({positions[0], positions[1]}, factors)));
  }
  if (original.size() == 3) result = c.to.reshape(result, {1, in[0], positions[1]});
  return result;
}

Vals max_pool(const Call& c) {
  if (c.node.outputs.size() > 1) c.refuse(Code::unsupported, "the output Indices");
  return {pool(c, true)};
}
Vals average_pool(const Call& c) { return {pool(c, false)}; }

Vals global_average_pool(const Call& c) {
  const Val& x = c.in(0);
  const size_t rank = x.shape.size();
  if (rank < 3) c.refuse(Code::shape, fmt::format("of {}", to_string(x.shape)));
  Shape shape(rank, 1);
  shape[0] = x.shape[0];
  shape[1] = x.shape[1];
  if (x.shape[0] == 1 && rank == 4 && !x.constant) {
    const int node = c.to.add("global_avg_pool", {c.to.plain(x)});
    return {c.to.made(node, shape)};
  }
  std::vector<int64_t> axes;
  for (size_t i = 2; i < rank; ++i) axes.push_back(static_cast<int64_t>(i));
  return {c.to.reduce(Reduce::mean, x, axes, true)};
}

Vals global_max_pool(const Call& c) {
  const Val& x = c.in(0);
  if (x.shape.size() < 3) c.refuse(Code::shape, fmt::format("of {}", to_string(x.shape)));
  std::vector<int64_t> axes;
  for (size_t i = 2; i < x.shape.size(); ++i) axes.push_back(static_cast<int64_t>(i));
  return {c.to.reduce(Reduce::max, x, axes, true)};
}

/// A dimension in another size: y[i] = sum over k of weight[k][i] x[index[k][i]].
struct Taps {
  std::vector<std::vector<int64_t>> index;
  std::vector<std::vector<float>> weight;
};

double source_position(const std::string& mode, double i, double scale, int64_t from, int64_t to) {
  if (mode == "asymmetric") return i / scale;
  if (mode == "align_corners") {
    // The resized length is not rounded here, as in ONNX's own reference.
    const double length = scale * static_cast<double>(from);
    return to == 1 ? 0 : i * static_cast<double>(from - 1) / (length - 1);
  }
  if (mode == "pytorch_half_pixel") return to > 1 ? (i + 0.5) / scale - 0.5 : 0;
  return (i + 0.5) / scale - 0.5;  // half_pixel
}

int64_t nearest(const std::string& mode, double x) {
  if (mode == "floor") return static_cast<int64_t>(std::floor(x));
  if (mode == "ceil") return static_cast<int64_t>(std::ceil(x));
  const double low = std::floor(x);
  if (mode == "round_prefer_ceil") return static_cast<int64_t>(std::floor(x + 0.5));
  return static_cast<int64_t>(x - low <= 0.5 ? low : low + 1);  // round_prefer_floor
}

/// Keys' cubic kernel, a as in the attribute cubic_coeff_a.
double cubic(double x, double a) {
  x = std::abs(x);
  if (x <= 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
  if (x < 2) return a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a;
  return 0;
}

struct ResizeOptions {
  std::string mode, position, rounding;
  double cubic = -0.75;
  bool exclude = false;
};

Taps make_taps(const ResizeOptions& o, int64_t from, int64_t to, double scale) {
  const size_t taps = o.mode == "nearest" ? 1 : o.mode == "linear" ? 2 : 4;
  Taps result;
  result.index.resize(taps);
  result.weight.resize(taps);
  for (int64_t i = 0; i < to; ++i) {
    const double x = source_position(o.position, static_cast<double>(i), scale, from, to);
    if (taps == 1) {
      result.index[0].push_back(std::clamp<int64_t>(nearest(o.rounding, x), 0, from - 1));
      result.weight[0].push_back(1);
      continue;
    }
    const double low = std::floor(x), part = x - low;
    double total = 0;
    std::vector<double> weights;
    for (size_t k = 0; k < taps; ++k) {
      const int64_t at = static_cast<int64_t>(low) + static_cast<int64_t>(k) - (taps == 4 ? 1 : 0);
      double w = taps == 2 ? (k == 0 ? 1 - part : part)
                           : cubic(part - (static_cast<double>(k) - 1), o.cubic);
      if (o.exclude && (at < 0 || at >= from)) w = 0;
      weights.push_back(w);
      total += w;
      result.index[k].push_back(std::clamp<int64_t>(at, 0, from - 1));
    }
    for (size_t k = 0; k < taps; ++k)
      result.weight[k].push_back(static_cast<float>(weights[k] / (o.exclude ? total : 1)));
  }
  return result;
}

Val resize_axis(const Call& c, const Val& x, size_t axis, const Taps& taps) {
  Val sum;
  for (size_t k = 0; k < taps.index.size(); ++k) {
    Val part = c.to.gather(x, axis, taps.index[k]);
    if (taps.index.size() > 1) {
      Shape shape(x.shape.size(), 1);
      shape[axis] = std::ssize(taps.weight[k]);
      part = c.to.binary(Binary::mul, part, c.to.known(make_constant(shape, taps.weight[k])));
    }
    sum = k == 0 ? part : c.to.binary(Binary::add, sum, part);
  }
  return sum;
}

Vals resize(const Call& c) {
  Val x = c.in(0);
  const size_t rank = x.shape.size();
  const bool old = c.node.op == "Upsample" || c.to.opset() < 11;
  ResizeOptions o;
  o.mode = c.attr("mode", "nearest");
  o.position = old ? "asymmetric" : c.attr("coordinate_transformation_mode", "half_pixel");
  o.rounding = old ? "floor" : c.attr("nearest_mode", "round_prefer_floor");
  o.cubic = c.attr("cubic_coeff_a", -0.75);
  o.exclude = c.attr("exclude_outside", int64_t{0}) != 0;
  if (o.mode != "nearest" && o.mode != "linear" && o.mode != "cubic")
    c.refuse(Code::unsupported, "mode '" + o.mode + "'");
  if (o.position != "half_pixel" && o.position != "pytorch_half_pixel" &&
      o.position != "align_corners" && o.position != "asymmetric")
    c.refuse(Code::unsupported, "coordinate_transformation_mode '" + o.position + "'");
  std::vector<double> scales;
  Shape sizes;
  const size_t at_scales = old ? 1 : 2;
  if (!old && c.has(3) && c.known(3, "sizes").size() > 0) {
    sizes = c.integers(3, "sizes");
    if (sizes.size() != rank) c.refuse(Code::shape, "one size per dimension is needed");
    for (size_t i = 0; i < rank; ++i)
      scales.push_back(static_cast<double>(sizes[i]) / static_cast<double>(x.shape[i]));
  } else {
    const Constant& given = c.known(at_scales, "scales");
    if (given.size() != rank) c.refuse(Code::shape, "one scale per dimension is needed");
    for (size_t i = 0; i < rank; ++i) {
      scales.push_back(given.at(i));
      const double size = std::floor(static_cast<double>(x.shape[i]) * given.at(i));
      if (!(size >= 1 && size < 1e6)) c.refuse(Code::shape, fmt::format("scale {}", given.at(i)));
      sizes.push_back(static_cast<int64_t>(size));
    }
  }
  for (size_t i = 0; i < rank; ++i) {
    if (sizes[i] < 1 || sizes[i] > static_cast<int64_t>(GraphLimits::kAttributeItems))
      c.refuse(Code::limit, fmt::format("a size of {}; expected 1 to {}", sizes[i],
                                        GraphLimits::kAttributeItems));
    if (sizes[i] != x.shape[i])
      x = resize_axis(c, x, i, make_taps(o, x.shape[i], sizes[i], scales[i]));
  }
  return {x};
}

}  // namespace

Window read_window(const Call& c, std::vector<int64_t> kernel, size_t dims, bool slides) {
  Window w;
  w.kernel = kernel;
  if (const auto given = c.attr_list("kernel_shape", {}); !given.empty()) {
    if (given.size() != dims) c.refuse(Code::shape, "kernel_shape of another number of dimensions");
    std::vector<int64_t> wide = given;
    pair_up(wide, 1);
    if (!kernel.empty() && wide != kernel)
      c.refuse(Code::shape, fmt::format("kernel_shape {}, the weight has {}", to_string(wide),
                                        to_string(kernel)));
    w.kernel = wide;
  }
  if (w.kernel.size() != 2) c.refuse(Code::shape, "no kernel_shape");
  const auto list = [&](const char* name, int64_t fallback) {
    std::vector<int64_t> values = c.attr_list(name, std::vector<int64_t>(dims, fallback));
    if (values.size() != dims)
      c.refuse(Code::shape, fmt::format("'{}' of another number of dimensions", name));
    pair_up(values, fallback);
    return values;
  };
  w.stride = list("strides", 1);
  w.dilation = list("dilations", 1);
  w.ceil = c.attr("ceil_mode", int64_t{0}) != 0;
  std::vector<int64_t> pads = c.attr_list("pads", std::vector<int64_t>(2 * dims, 0));
  if (pads.size() != 2 * dims) c.refuse(Code::shape, "'pads' of another number of dimensions");
  w.begin.assign(pads.begin(), pads.begin() + static_cast<std::ptrdiff_t>(dims));
  w.end.assign(pads.begin() + static_cast<std::ptrdiff_t>(dims), pads.end());
  pair_up(w.begin, 0);
  pair_up(w.end, 0);
  for (size_t i = 0; i < 2; ++i) {
    const int64_t most = int64_t{1} << 20;
    if (w.kernel[i] < 1 || w.kernel[i] > most || w.stride[i] < 1 || w.stride[i] > most ||
        w.dilation[i] < 1 || w.dilation[i] > most || w.begin[i] < 0 || w.begin[i] > most ||
        w.end[i] < 0 || w.end[i] > most)
      c.refuse(Code::limit, "a window, stride, dilation or padding out of range");
  }
  const std::string automatic = c.attr("auto_pad", "NOTSET");
  if (automatic != "NOTSET" && automatic != "VALID" && !automatic.starts_with("SAME_"))
    c.refuse(Code::unsupported, "auto_pad '" + automatic + "'");
  if (slides && automatic != "NOTSET") {
    const Shape& x = c.in(0).shape;
    for (size_t i = 0; i < 2; ++i) {
      const int64_t size = dims == 1 ? (i == 0 ? 1 : x[2]) : x[i + 2];
      const int64_t total =
          automatic == "VALID" ? 0 : same_padding(size, w.kernel[i], w.stride[i], w.dilation[i]);
      w.begin[i] = automatic == "SAME_LOWER" ? total - total / 2 : total / 2;
      w.end[i] = total - w.begin[i];
    }
  }
  return w;
}

Val picture(const Call& c, const Val& x) {
  if (x.shape.size() != 3 && x.shape.size() != 4)
    c.refuse(Code::unsupported,
             fmt::format("of {}: windows of one and two dimensions are known", to_string(x.shape)));
  if (x.shape[0] != 1)
    c.refuse(Code::unsupported,
             fmt::format("a batch of {}; import the model for 1 sample, the engine runs any batch",
                         x.shape[0]));
  if (x.shape.size() == 4) return x;
  return c.to.reshape(x, {1, x.shape[1], 1, x.shape[2]});
}

Val unpicture(const Call& c, int node, size_t rank) {
  const Shape& out = c.to.net().at(node).shape;
  if (rank == 3) return c.to.made(node, {1, out[0], out[2]});
  return c.to.made(node, {1, out[0], out[1], out[2]});
}

Placed place(const Call& c, const Val& x, const Window& w, double value) {
  std::vector<int64_t> before(4, 0), after(4, 0), padding(2);
  for (size_t i = 0; i < 2; ++i) {
    padding[i] = std::min(w.begin[i], w.end[i]);
    before[i + 2] = w.begin[i] - padding[i];
    after[i + 2] = w.end[i] - padding[i];
  }
  return {c.to.pad(x, before, after, value), padding};
}

std::vector<OperatorEntry> window_operators() {
  return {{"MaxPool", max_pool},
          {"AveragePool", average_pool},
          {"GlobalAveragePool", global_average_pool},
          {"GlobalMaxPool", global_max_pool},
          {"Resize", resize},
          {"Upsample", resize}};
}

}  // namespace sluice::bundle::onnx
