// Operators on the rows of a [T, ..] value: rows that leave and come back, and the small row-wise
// ones that language models need.
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

// One number per row, or one for the whole sample.
void require_keep(const Shape& x, const Shape& keep) {
  const bool column = keep.size() == 1 || (keep.size() == 2 && keep[1] == 1);
  if (!column || (keep[0] != 1 && keep[0] != x[0]))
    fail(Code::shape,
         "keep: expected {0} or {0} x 1 (a number per row of {1}) or 1 (for the sample), found {2}",
         x[0], to_string(x), to_string(keep));
}

Shape compact_shape(const OpInput& in) {
  require_keep(input(in, 0), input(in, 1));
  return input(in, 0);
}

Shape scatter_shape(const OpInput& in) {
  if (input(in, 0) != input(in, 1))
    fail(Code::shape, "base and rows must have the same shape, found {} and {}",
         to_string(input(in, 0)), to_string(input(in, 1)));
  require_keep(input(in, 0), input(in, 2));
  const std::string mode = attr_string(in.node.attrs, "mode", "replace");
  if (mode != "replace" && mode != "add")
    fail(Code::shape, "attribute 'mode': expected replace or add, found '{}'", printable(mode, 40));
  return input(in, 0);
}

Shape pool_rows_shape(const OpInput& in) {
  require_rank(in, 2, "[T,D]");
  const std::string kind = attr_string(in.node.attrs, "kind", "mean");
  if (kind != "mean" && kind != "first" && kind != "last")
    fail(Code::shape, "attribute 'kind': expected mean, first or last, found '{}'",
         printable(kind, 40));
  return {input(in, 0)[1]};
}

Shape rms_norm_shape(const OpInput& in) {
  const double eps = attr_double(in.node.attrs, "eps", 1e-5);
  if (!(eps >= 0 && eps <= 1)) fail(Code::shape, "attribute 'eps': expected 0 to 1, found {}", eps);
  const int64_t width = input(in, 0).back(), heads = require_int(in, "heads", 1, 1, width);
  if (width % heads != 0)
    fail(Code::shape, "attribute 'heads': {} does not divide {} columns", heads, width);
  require_tensor(in, "weight", {width / heads});
  return input(in, 0);
}

Shape embedding_shape(const OpInput& in) {
  require_rank(in, 1, "[T]");
  const TensorSpec& weight = in.tensors.at("weight");
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] < 1)
    fail(Code::shape, "weight '{}': expected [V,D], found {}", printable(weight.name),
         to_string(weight.shape));
  return {input(in, 0)[0], weight.shape[1]};
}

Shape slice_shape(const OpInput& in) {
  Shape shape = input(in, 0);
  const int64_t last = std::ssize(shape) - 1;
  int64_t& size = shape[static_cast<size_t>(require_int(in, "axis", last, 0, last))];
  const int64_t start = require_int(in, "start", 0, 0, size - 1);
  size = require_int(in, "size", size - start, 1, size - start);
  return shape;
}

// Of another dimension than the last, rows are dropped or cut through.
Rows slice_rows(const OpInput& in) {
  const int64_t last = std::ssize(input(in, 0)) - 1;
  return attr_int(in.node.attrs, "axis", last) == last ? matrix_rows(in) : Rows::mixed;
}

Shape positions_shape(const OpInput& in) { return {input(in, 0)[0]}; }

Rows pooled_rows(const OpInput&) { return Rows::pooled; }
Rows ordered_rows(const OpInput&) { return Rows::ordered; }

}  // namespace

std::vector<Operator> rows_operators() {
  return {
      {"compact_rows", 2, 2, {}, {}, {}, compact_shape, no_macs},
      {"scatter_rows", 3, 3, {}, {}, {"mode"}, scatter_shape, no_macs},
      {"pool_rows", 1, 1, {}, {}, {"kind"}, pool_rows_shape, no_macs, pooled_rows},
      {"rms_norm", 1, 1, {}, {"weight"}, {"eps", "heads"}, rms_norm_shape, no_macs, matrix_rows},
      {"embedding",
       1,
       1,
       {"weight"},
       {},
       {},
       embedding_shape,
       no_macs,
       elementwise_rows,
       {"weight"}},
      {"slice", 1, 1, {}, {}, {"axis", "start", "size"}, slice_shape, no_macs, slice_rows},
      {"positions", 1, 1, {}, {}, {}, positions_shape, no_macs, ordered_rows},
  };
}

}  // namespace sluice::bundle
