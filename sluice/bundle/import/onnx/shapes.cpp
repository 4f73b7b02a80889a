// ONNX operators that move elements or speak of shapes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/bundle/import/onnx/lowering.h"

namespace sluice::bundle::onnx {
namespace {

using Vals = std::vector<Val>;

Vals reshape(const Call& c) {
  const Val& x = c.in(0);
  std::vector<int64_t> wanted = c.integers(1, "shape");
  const bool zeros = c.attr("allowzero", int64_t{0}) != 0;
  int64_t known = 1;
  std::optional<size_t> open;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] == 0 && !zeros) {
      if (i >= x.shape.size()) c.refuse(Code::shape, "a size is taken from a dimension beyond");
      wanted[i] = x.shape[i];
    }
    if (wanted[i] == -1) {
      if (open) c.refuse(Code::shape, "two sizes are left open");
      open = i;
      continue;
    }
    if (wanted[i] < 0) c.refuse(Code::shape, fmt::format("size {}", wanted[i]));
    known = checked_mul(known, wanted[i], "shape");
  }
  const int64_t count = numel(x.shape);
  if (open) wanted[*open] = known > 0 ? count / known : 0;
  if (wanted.size() > Limits::kRank || numel(wanted) != count)
    c.refuse(Code::shape, fmt::format("{} has another number of elements than {}",
                                      to_string(wanted), to_string(x.shape)));
  return {c.to.reshape(x, wanted)};
}

Vals flatten(const Call& c) {
  const Val& x = c.in(0);
  const int64_t rank = std::ssize(x.shape), given = c.attr("axis", int64_t{1});
  if (given < -rank || given > rank) c.refuse(Code::shape, fmt::format("axis {}", given));
  const size_t axis = static_cast<size_t>(given < 0 ? given + rank : given);
  int64_t outer = 1;
  for (size_t i = 0; i < axis; ++i) outer *= x.shape[i];
  const int64_t inner = outer ? numel(x.shape) / outer : 0;
  return {c.to.reshape(x, {outer, inner})};
}

/// An attribute, since version 13 an input.
std::vector<int64_t> given_axes(const Call& c) {
  if (c.to.opset() >= 13) return c.has(1) ? c.integers(1, "axes") : std::vector<int64_t>{};
  return c.attr_list("axes", {});
}

Vals squeeze(const Call& c) {
  const Val& x = c.in(0);
  const auto axes = c.axes(given_axes(c), x.shape.size());
  Shape shape;
  for (size_t i = 0; i < x.shape.size(); ++i) {
    const bool named = std::find(axes.begin(), axes.end(), static_cast<int64_t>(i)) != axes.end();
    if (named && x.shape[i] != 1)
      c.refuse(Code::shape, fmt::format("dimension {} of {} is not 1", i, to_string(x.shape)));
    if (!named && !(axes.empty() && x.shape[i] == 1)) shape.push_back(x.shape[i]);
  }
  return {c.to.reshape(x, shape)};
}

Vals unsqueeze(const Call& c) {
  const Val& x = c.in(0);
  const std::vector<int64_t> given = given_axes(c);
  const size_t rank = x.shape.size() + given.size();
  if (rank > Limits::kRank) c.refuse(Code::limit, fmt::format("{} dimensions", rank));
  const auto axes = c.axes(given, rank);
  Shape shape;
  size_t next = 0;
  for (size_t i = 0; i < rank; ++i)
    shape.push_back(std::find(axes.begin(), axes.end(), static_cast<int64_t>(i)) != axes.end()
                        ? 1
                        : x.shape[next++]);
  return {c.to.reshape(x, shape)};
}

Vals transpose(const Call& c) {
  const Val& x = c.in(0);
  std::vector<int64_t> perm(x.shape.size());
  std::iota(perm.rbegin(), perm.rend(), 0);
  perm = c.attr_list("perm", perm);
  std::vector<int64_t> sorted = c.axes(perm, x.shape.size());
  if (sorted.size() != x.shape.size()) c.refuse(Code::shape, "perm does not name all dimensions");
  for (int64_t& axis : perm) axis = static_cast<int64_t>(c.axis(axis, x.shape.size()));
  return {c.to.transpose(x, perm)};
}

Vals concat(const Call& c) {
  std::vector<Val> parts;
  for (size_t i = 0; i < c.inputs.size(); ++i) parts.push_back(c.in(i));
  if (parts.empty() || parts[0].shape.empty()) c.refuse(Code::shape, "nothing to join");
  return {c.to.concat(parts, c.axis(c.attr("axis", int64_t{0}), parts[0].shape.size()))};
}

Vals slice(const Call& c) {
  Val x = c.in(0);
  std::vector<int64_t> starts, ends, axes, steps;
  if (c.to.opset() < 10) {
    starts = c.attr_list("starts", {});
    ends = c.attr_list("ends", {});
    axes = c.attr_list("axes", {});
  } else {
    starts = c.integers(1, "starts");
    ends = c.integers(2, "ends");
    if (c.has(3)) axes = c.integers(3, "axes");
    if (c.has(4)) steps = c.integers(4, "steps");
  }
  if (axes.empty()) {
    axes.resize(starts.size());
    std::iota(axes.begin(), axes.end(), 0);
  }
  if (steps.empty()) steps.assign(starts.size(), 1);
  if (ends.size() != starts.size() || axes.size() != starts.size() || steps.size() != starts.size())
    c.refuse(Code::shape, "starts, ends, axes and steps of different lengths");
  for (size_t i = 0; i < starts.size(); ++i) {
    const size_t axis = c.axis(axes[i], x.shape.size());
    const int64_t size = x.shape[axis], step = steps[i];
    if (step == 0) c.refuse(Code::shape, "a step of 0");
    const auto inside = [&](int64_t v, int64_t low, int64_t high) {
      if (v < 0) v = v < -size ? low : v + size;
      return std::clamp(v, low, high);
    };
    const int64_t start = step > 0 ? inside(starts[i], 0, size) : inside(starts[i], -1, size - 1);
    int64_t end = step > 0 ? inside(ends[i], 0, size) : inside(ends[i], -1, size - 1);
    if (step < 0 && ends[i] < -size) end = -1;
    if (step == 1) {
      x = c.to.slice(x, axis, std::min(start, size), std::max<int64_t>(0, end - start));
      continue;
    }
    c.to.spend({std::max<int64_t>(
        1, std::abs(end - start) / std::max<int64_t>(1, std::abs(step + (step == INT64_MIN))))});
    std::vector<int64_t> indices;
    for (int64_t at = start; step > 0 ? at < end : at > end;) {
      indices.push_back(at);
      if (step > 0 ? step >= end - at : step <= end - at) break;
      at += step;
    }
    x = c.to.gather(x, axis, indices);
  }
  return {x};
}

Vals split(const Call& c) {
  const Val& x = c.in(0);
  const size_t axis = c.axis(c.attr("axis", int64_t{0}), x.shape.size());
  std::vector<int64_t> sizes = c.to.opset() < 13
                                   ? c.attr_list("split", {})
                                   : (c.has(1) ? c.integers(1, "split") : std::vector<int64_t>{});
  const int64_t outputs = std::ssize(c.node.outputs);
  if (sizes.empty()) {
    if (outputs == 0 || x.shape[axis] % outputs != 0)
      c.refuse(Code::shape, fmt::format("{} in {} equal parts", x.shape[axis], outputs));
    sizes.assign(static_cast<size_t>(outputs), x.shape[axis] / outputs);
  }
  if (std::ssize(sizes) != outputs)
    c.refuse(Code::shape, fmt::format("{} parts for {} outputs", sizes.size(), outputs));
  Vals parts;
  int64_t at = 0;
  for (const int64_t size : sizes) {
    if (size < 0 || size > x.shape[axis] - at)
      c.refuse(Code::shape, fmt::format("a part of {} from {} of {}", size, at, x.shape[axis]));
    parts.push_back(c.to.slice(x, axis, at, size));
    at += size;
  }
  if (at != x.shape[axis])
    c.refuse(Code::shape, fmt::format("parts of {} in all, of {}", at, x.shape[axis]));
  return parts;
}

Vals gather(const Call& c) {
  const Val& x = c.in(0);
  const Val& which = c.in(1);
  const size_t axis = c.axis(c.attr("axis", int64_t{0}), x.shape.size());
  Shape shape(x.shape.begin(), x.shape.begin() + static_cast<std::ptrdiff_t>(axis));
  shape.insert(shape.end(), which.shape.begin(), which.shape.end());
  shape.insert(shape.end(), x.shape.begin() + static_cast<std::ptrdiff_t>(axis) + 1, x.shape.end());
  if (shape.size() > Limits::kRank)
    c.refuse(Code::limit, fmt::format("{} dimensions", shape.size()));
  if (which.constant) {
    std::vector<int64_t> indices = c.integers(1, "indices");
    for (int64_t& i : indices)
      if (i < 0) i += x.shape[axis];
    return {c.to.reshape(c.to.gather(x, axis, indices), shape)};
  }
  // Rows of a table by ids that the input decides.
  if (!x.constant || axis != 0 || x.constant->integer)
    c.refuse(Code::unsupported,
             "indices that hang on the input choose rows of a constant table only");
  const int64_t rows = x.shape[0];
  if (rows < 1) c.refuse(Code::shape, "a table without rows");
  const Val table = c.to.reshape(x, {rows, numel(x.shape) / rows});
  auto weight = std::make_shared<Constant>(*table.constant);
  weight->name = x.constant->name;
  const int ids = c.to.as(which, {numel(which.shape)});
  return {c.to.made(c.to.add("embedding", {ids}, {}, {{"weight", std::move(weight)}}), shape)};
}

Val repeat(const Call& c, Val x, const Shape& shape) {
  const std::vector<int64_t> before = x.shape;
  Shape aligned(shape.size() - before.size(), 1);
  aligned.insert(aligned.end(), before.begin(), before.end());
  x = c.to.reshape(x, aligned);
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == aligned[i]) continue;
    if (shape[i] > static_cast<int64_t>(GraphLimits::kAttributeItems))
      c.refuse(Code::limit, fmt::format("{} repetitions; at most {} are possible", shape[i],
                                        GraphLimits::kAttributeItems));
    std::vector<int64_t> indices(static_cast<size_t>(shape[i]));
    for (size_t k = 0; k < indices.size(); ++k) indices[k] = static_cast<int64_t>(k) % aligned[i];
    x = c.to.gather(x, i, indices);
  }
  return x;
}

Vals expand(const Call& c) {
  const Shape wanted = c.integers(1, "shape");
  for (const int64_t size : wanted)
    if (size < 1) c.refuse(Code::shape, fmt::format("size {}", size));
  if (wanted.size() > Limits::kRank) c.refuse(Code::limit, "too many dimensions");
  const Shape shape = broadcast_shapes(c.in(0).shape, wanted);
  numel(shape, "shape");
  return {repeat(c, c.in(0), shape)};
}

Vals tile(const Call& c) {
  const std::vector<int64_t> repeats = c.integers(1, "repeats");
  Shape shape = c.in(0).shape;
  if (repeats.size() != shape.size()) c.refuse(Code::shape, "one number per dimension is needed");
  for (size_t i = 0; i < shape.size(); ++i) {
    if (repeats[i] < 1) c.refuse(Code::shape, fmt::format("{} repetitions", repeats[i]));
    shape[i] = checked_mul(shape[i], repeats[i], "shape");
  }
  return {repeat(c, c.in(0), shape)};
}

Vals pad(const Call& c) {
  const Val& x = c.in(0);
  const size_t rank = x.shape.size();
  std::vector<int64_t> pads = c.to.opset() < 11 ? c.attr_list("pads", {}) : c.integers(1, "pads");
  double value = 0;
  if (c.to.opset() < 11) {
    value = c.attr("value", 0.0);
  } else if (c.has(2)) {
    value = c.number(2, "constant_value");
  }
  if (pads.size() != 2 * rank)
    c.refuse(Code::shape, fmt::format("{} pads for {} dimensions", pads.size(), rank));
  const std::string mode = c.attr("mode", "constant");
  if (mode != "constant" && mode != "reflect" && mode != "edge")
    c.refuse(Code::unsupported, "mode '" + mode + "'; constant, reflect and edge are known");
  for (const int64_t p : pads)
    if (p < -(int64_t{1} << 20) || p > int64_t{1} << 20)
      c.refuse(Code::limit, fmt::format("a padding of {}", p));
  Val result = x;
  std::vector<int64_t> before(rank), after(rank);
  for (size_t i = 0; i < rank; ++i) {
    before[i] = pads[i];
    after[i] = pads[rank + i];
    // Negative pads cut.
    const int64_t from = std::max<int64_t>(0, -before[i]), to = std::max<int64_t>(0, -after[i]);
    if (from + to > 0) {
      if (from + to >= result.shape[i]) c.refuse(Code::shape, "nothing is left");
      result = c.to.slice(result, i, from, result.shape[i] - from - to);
    }
    before[i] = std::max<int64_t>(0, before[i]);
    after[i] = std::max<int64_t>(0, after[i]);
    if (mode == "constant" || before[i] + after[i] == 0) continue;
    const int64_t size = result.shape[i];
    if (mode == "reflect" && std::max(before[i], after[i]) >= size)
      c.refuse(Code::shape, fmt::format("a reflection of more than {} elements", size - 1));
    std::vector<int64_t> indices;
    for (int64_t at = -before[i]; at < size + after[i]; ++at) {
      int64_t from_index = std::clamp<int64_t>(at, 0, size - 1);
      if (mode == "reflect") from_index = at < 0 ? -at : at >= size ? 2 * (size - 1) - at : at;
      indices.push_back(from_index);
    }
    result = c.to.gather(result, i, indices);
  }
  if (mode == "constant") result = c.to.pad(result, before, after, value);
  return {result};
}

Vals shape(const Call& c) {
  const Shape& x = c.in(0).shape;
  const int64_t rank = std::ssize(x);
  const auto bound = [&](int64_t v) { return std::clamp<int64_t>(v < 0 ? v + rank : v, 0, rank); };
  const int64_t start = bound(c.attr("start", int64_t{0})), end = bound(c.attr("end", rank));
  std::vector<int64_t> sizes;
  for (int64_t i = start; i < end; ++i) sizes.push_back(x[static_cast<size_t>(i)]);
  const int64_t count = std::ssize(sizes);
  return {c.to.known(make_constant({count}, std::move(sizes)))};
}

Vals size(const Call& c) {
  return {c.to.known(make_constant({}, std::vector<int64_t>{numel(c.in(0).shape)}))};
}

Vals constant(const Call& c) {
  using Kind = AttributeSource::Kind;
  if (const auto* t = c.find("value", Kind::tensor)) return {c.to.known(c.load(*t->tensor))};
  if (const auto* v = c.find("value_float", Kind::real))
    return {c.to.known(make_constant({}, std::vector<float>{v->real}))};
  if (const auto* v = c.find("value_int", Kind::integer))
    return {c.to.known(make_constant({}, std::vector<int64_t>{v->integer}))};
  if (const auto* v = c.find("value_floats", Kind::reals))
    return {c.to.known(make_constant({std::ssize(v->reals)}, v->reals))};
  if (const auto* v = c.find("value_ints", Kind::integers))
    return {c.to.known(make_constant({std::ssize(v->integers)}, v->integers))};
  c.refuse(Code::unsupported, "a constant that is neither numbers nor a tensor of them");
}

Vals constant_of_shape(const Call& c) {
  const Shape shape = c.integers(0, "shape");
  if (shape.size() > Limits::kRank) c.refuse(Code::limit, "too many dimensions");
  for (const int64_t size : shape)
    if (size < 0) c.refuse(Code::shape, fmt::format("size {}", size));
  c.to.spend(shape);
  const size_t count = static_cast<size_t>(numel(shape));
  const auto* value = c.find("value", AttributeSource::Kind::tensor);
  if (!value) return {c.to.known(make_constant(shape, std::vector<float>(count, 0.0f)))};
  const ConstantPtr one = c.load(*value->tensor);
  if (one->size() != 1) c.refuse(Code::shape, "'value': expected one number");
  if (one->integer)
    return {c.to.known(make_constant(shape, std::vector<int64_t>(count, one->integers[0])))};
  return {c.to.known(make_constant(shape, std::vector<float>(count, one->reals[0])))};
}

Vals range(const Call& c) {
  const double start = c.number(0, "start"), limit = c.number(1, "limit"),
               delta = c.number(2, "delta");
  const double count = delta != 0 ? std::max(0.0, std::ceil((limit - start) / delta)) : -1;
  if (!(count >= 0 && count < 1e9)) c.refuse(Code::limit, "an endless range");
  c.to.spend({static_cast<int64_t>(count)});
  const Constant& by = c.known(2, "delta");
  const int64_t step = by.integer ? by.integers[0] : 0;
  const bool integer = c.known(0, "start").integer && by.integer;
  std::vector<int64_t> whole;
  std::vector<float> reals;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) {
    if (integer) {
      // Wraps around where the numbers of the file do.
      whole.push_back(static_cast<int64_t>(static_cast<uint64_t>(c.known(0, "start").integers[0]) +
                                           static_cast<uint64_t>(i) * static_cast<uint64_t>(step)));
    } else {
      reals.push_back(static_cast<float>(start + static_cast<double>(i) * delta));
    }
  }
  const Shape shape{static_cast<int64_t>(count)};
  return {c.to.known(integer ? make_constant(shape, std::move(whole))
                             : make_constant(shape, std::move(reals)))};
}

Vals depth_to_space(const Call& c) {
  const Shape& x = c.in(0).shape;
  const int64_t b = c.attr("blocksize", int64_t{0});
  if (x.size() != 4 || b < 1 || b > 1024 || x[1] % (b * b) != 0)
    c.refuse(Code::shape, fmt::format("{} in blocks of {}", to_string(x), b));
  const int64_t depth = x[1] / (b * b);
  const std::string mode = c.attr("mode", "DCR");
  if (mode != "DCR" && mode != "CRD") c.refuse(Code::unsupported, "mode '" + mode + "'");
  const bool dcr = mode == "DCR";
  const Val split = c.to.reshape(
      c.in(0), dcr ? Shape{x[0], b, b, depth, x[2], x[3]} : Shape{x[0], depth, b, b, x[2], x[3]});
  const Val moved = c.to.transpose(
      split, dcr ? std::vector<int64_t>{0, 3, 4, 1, 5, 2} : std::vector<int64_t>{0, 1, 4, 2, 5, 3});
  return {c.to.reshape(moved, {x[0], depth, x[2] * b, x[3] * b})};
}

Vals space_to_depth(const Call& c) {
  const Shape& x = c.in(0).shape;
  const int64_t b = c.attr("blocksize", int64_t{0});
  if (x.size() != 4 || b < 1 || b > 1024 || x[2] % b != 0 || x[3] % b != 0)
    c.refuse(Code::shape, fmt::format("{} in blocks of {}", to_string(x), b));
  const Val split = c.to.reshape(c.in(0), {x[0], x[1], x[2] / b, b, x[3] / b, b});
  const Val moved = c.to.transpose(split, {0, 3, 5, 1, 2, 4});
  return {c.to.reshape(moved, {x[0], x[1] * b * b, x[2] / b, x[3] / b})};
}

}  // namespace

std::vector<OperatorEntry> shape_operators() {
  return {{"Reshape", reshape},
          {"Flatten", flatten},
          {"Squeeze", squeeze},
          {"Unsqueeze", unsqueeze},
          {"Transpose", transpose},
          {"Concat", concat},
          {"Slice", slice},
          {"Split", split},
          {"Gather", gather},
          {"Expand", expand},
          {"Tile", tile},
          {"Pad", pad},
          {"Shape", shape},
          {"Size", size},
          {"Constant", constant},
          {"ConstantOfShape", constant_of_shape},
          {"Range", range},
          {"DepthToSpace", depth_to_space},
          {"SpaceToDepth", space_to_depth}};
}

}  // namespace sluice::bundle::onnx
