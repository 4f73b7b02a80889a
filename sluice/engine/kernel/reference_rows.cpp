// Values that compact_rows left hold only the rows that are there.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/reference_call.h"

namespace sluice::engine {
namespace {

using Vec = std::vector<double>;
using Call = ReferenceCall;

/// Numbers that one number of `keep` decides about.
size_t row_width(const Call& c, size_t keep) {
  return static_cast<size_t>(numel(c.shape(0)) / c.shape(keep)[0]);
}

void append(Vec& to, const Vec& from, size_t first, size_t count) {
  const auto at = from.begin() + static_cast<std::ptrdiff_t>(first);
  to.insert(to.end(), at, at + static_cast<std::ptrdiff_t>(count));
}

Vec compact(const Call& c) {
  const size_t width = row_width(c, 1);
  Vec y;
  for (size_t r = 0; r < c.inputs[1]->size(); ++r)
    if ((*c.inputs[1])[r] > 0) append(y, c.x(), r * width, width);
  return y;
}

Vec scatter(const Call& c) {
  const size_t width = row_width(c, 2);
  const bool add = bundle::attr_string(c.node.attrs, "mode", "replace") == "add";
  Vec y = c.x();
  size_t next = 0;
  for (size_t r = 0; r < c.inputs[2]->size(); ++r) {
    if (!((*c.inputs[2])[r] > 0)) continue;
    for (size_t i = 0; i < width; ++i, ++next)
      y[r * width + i] = (add ? y[r * width + i] : 0) + (*c.inputs[1])[next];
  }
  return y;
}

Vec pool_rows(const Call& c) {
  const std::string kind = bundle::attr_string(c.node.attrs, "kind", "mean");
  const size_t width = static_cast<size_t>(c.shape().back()), rows = c.x().size() / width;
  Vec y;
  if (rows == 0) return Vec(width);
  if (kind != "mean") {
    append(y, c.x(), kind == "first" ? 0 : (rows - 1) * width, width);
    return y;
  }
  y.assign(width, 0.0);
  for (size_t i = 0; i < c.x().size(); ++i) y[i % width] += c.x()[i] / static_cast<double>(rows);
  return y;
}

Vec rms_norm(const Call& c) {
  const double eps = bundle::attr_double(c.node.attrs, "eps", 1e-5);
  const size_t width =
      static_cast<size_t>(c.shape().back() / bundle::attr_int(c.node.attrs, "heads", 1));
  Vec y = c.x();
  for (size_t first = 0; first < y.size(); first += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += y[first + i] * y[first + i];
    const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
    for (size_t i = 0; i < width; ++i)
      y[first + i] *= factor * (c.has("weight") ? c.tensor("weight")[i] : 1.0);
  }
  return y;
}

Vec embedding(const Call& c) {
  const size_t width = static_cast<size_t>(c.tensor_shape("weight")[1]);
  const auto table = c.weights("weight");
  Vec y;
  for (double id : c.x()) {
    if (!(id >= 0 && id < static_cast<double>(c.tensor_shape("weight")[0]) && id == std::floor(id)))
      fail(Code::numeric, "{}: id {} is not in the table", c.node.path, id);
    for (size_t i = 0; i < width; ++i) y.push_back(table[static_cast<size_t>(id) * width + i]);
  }
  return y;
}

Vec slice(const Call& c) {
  const Shape& shape = c.shape();
  const size_t axis =
      static_cast<size_t>(bundle::attr_int(c.node.attrs, "axis", std::ssize(shape) - 1));
  size_t inner = 1;
  for (size_t i = axis + 1; i < shape.size(); ++i) inner *= static_cast<size_t>(shape[i]);
  const size_t width = static_cast<size_t>(shape[axis]) * inner,
               start = static_cast<size_t>(bundle::attr_int(c.node.attrs, "start", 0)) * inner,
               size = static_cast<size_t>(c.out_shape()[axis]) * inner;
  Vec y;
  for (size_t r = 0; r < c.x().size(); r += width) append(y, c.x(), r + start, size);
  return y;
}

Vec positions(const Call& c) {
  const size_t width = static_cast<size_t>(numel(c.shape()) / c.shape()[0]);
  Vec y;
  for (size_t r = 0; r < c.x().size() / width; ++r) y.push_back(static_cast<double>(r));
  return y;
}

}  // namespace

std::vector<ReferenceEntry> rows_references() {
  return {{"compact_rows", compact}, {"scatter_rows", scatter}, {"pool_rows", pool_rows},
          {"rms_norm", rms_norm},    {"embedding", embedding},  {"slice", slice},
          {"positions", positions}};
}

}  // namespace sluice::engine
