// Operators that compute a part of a layer: the channels a mask asks for, a leading block of a
// nested one, the value
// that a size of the network asks for.
#include "sluice/bundle/ops_sparse.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

void require_mask(const OpInput& in, size_t index, const char* name, int64_t channels) {
  if (input(in, index) != Shape{channels})
    fail(Code::shape, "{} mask: expected {}, found {}", name, channels,
         to_string(input(in, index)));
}

/// The output of a convolution whose weight [O,C,kh,kw] has all input channels.
Shape full_conv2d_shape(const OpInput& in) {
  require_rank(in, 3, "[C,H,W]");
  const Shape& x = input(in, 0);
  const TensorSpec& spec = in.tensors.at("weight");
  const Shape& weight = spec.shape;
  if (weight.size() != 4 || *std::min_element(weight.begin(), weight.end()) < 1 ||
      weight[1] != x[0])
    fail(Code::shape, "weight '{}': expected [O,{},kh,kw] with sizes >= 1, found {}",
         printable(spec.name), x[0], to_string(weight));
  if (std::max(weight[2], weight[3]) > kMaxWindow)
    fail(Code::shape, "weight '{}': kernel {} x {} is larger than {}", printable(spec.name),
         weight[2], weight[3], kMaxWindow);
  const auto stride = window(in, "stride", 1, 1), padding = window(in, "padding", 0, 0),
             dilation = window(in, "dilation", 1, 1);
  return {weight[0], slide(x[1], weight[2], stride[0], padding[0], dilation[0]),
          slide(x[2], weight[3], stride[1], padding[1], dilation[1])};
}

Shape gathered_conv2d_shape(const OpInput& in) {
  const Shape output = full_conv2d_shape(in);
  require_tensor(in, "bias", {output[0]});
  require_mask(in, 1, "output", output[0]);
  if (in.inputs.size() > 2) require_mask(in, 2, "input", input(in, 0)[0]);
  return output;
}

int64_t gathered_conv2d_macs(const OpInput& in, const Shape& output) {
  return checked_mul(numel(in.tensors.at("weight").shape, "weight"),
                     checked_mul(output[1], output[2], "MACs"), "MACs");
}

std::vector<int64_t> size_list(const Attributes& attrs, const std::string& name, int64_t low,
                               int64_t high) {
  const auto found = attrs.find(name);
  if (found == attrs.end()) return {high};
  std::vector<int64_t> list;
  if (const auto* values = std::get_if<std::vector<int64_t>>(&found->second)) {
    list = *values;
  } else {
    list = {attr_int(attrs, name, high)};
  }
  if (list.empty() || list.size() > kMaxSizes)
    fail(Code::shape, "attribute '{}': expected 1 to {} sizes, found {}", name, kMaxSizes,
         list.size());
  for (int64_t size : list)
    if (size < low || size > high)
      fail(Code::shape, "attribute '{}': expected {} to {}, found {}", name, low, high, size);
  return list;
}

Shape prefix_linear_shape(const OpInput& in) {
  const TensorSpec& weight = in.tensors.at("weight");
  Shape shape = input(in, 0);
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] != shape.back())
    fail(Code::shape, "weight '{}': expected [O,{}], found {}", printable(weight.name),
         shape.back(), to_string(weight.shape));
  require_tensor(in, "bias", {weight.shape[0]});
  const auto format = format_from_name(weight.format);
  for (const PrefixSize& size : prefix_sizes(in.node.attrs, weight.shape[0], weight.shape[1]))
    if (!format || !prefix_columns_fit(*format, weight.shape[1], size.columns))
      fail(Code::unsupported,
           "weight '{}': the first {} of {} columns are no view of format {}; use a multiple of "
           "64, or another format",
           printable(weight.name), size.columns, weight.shape[1], printable(weight.format, 40));
  shape.back() = weight.shape[0];
  return shape;
}

int64_t prefix_linear_macs(const OpInput& in, const Shape& output) {
  const Shape& weight = in.tensors.at("weight").shape;
  int64_t most = 0;
  for (const PrefixSize& size : prefix_sizes(in.node.attrs, weight[0], weight[1]))
    most = std::max(most, checked_mul(size.rows, size.columns, "MACs"));
  return checked_mul(numel(output, "output") / output.back(), most, "MACs");
}

Shape prefix_conv2d_shape(const OpInput& in) {
  const Shape output = full_conv2d_shape(in);
  const auto sizes = prefix_sizes(in.node.attrs, output[0], input(in, 0)[0]);
  const Shape table{static_cast<int64_t>(sizes.size()), output[0]};
  require_tensor(in, "scale", table);
  require_tensor(in, "bias", table);
  return output;
}

int64_t prefix_conv2d_macs(const OpInput& in, const Shape& output) {
  const Shape& weight = in.tensors.at("weight").shape;
  int64_t most = 0;
  for (const PrefixSize& size : prefix_sizes(in.node.attrs, weight[0], weight[1]))
    most = std::max(most, checked_mul(size.rows, size.columns, "MACs"));
  const int64_t places = checked_mul(checked_mul(weight[2], weight[3], "MACs"),
                                     checked_mul(output[1], output[2], "MACs"), "MACs");
  return checked_mul(most, places, "MACs");
}

Shape size_switch_shape(const OpInput& in) {
  for (size_t i = 1; i < in.inputs.size(); ++i)
    if (input(in, i) != input(in, 0))
      fail(Code::shape, "input {}: expected {} as input 1, found {}", i + 1,
           to_string(input(in, 0)), to_string(input(in, i)));
  switch_choices(in.node.attrs, static_cast<int64_t>(in.inputs.size()));
  return input(in, 0);
}

}  // namespace

std::vector<int64_t> switch_choices(const Attributes& attrs, int64_t inputs) {
  return size_list(attrs, "choice", 0, inputs - 1);
}

std::vector<PrefixSize> prefix_sizes(const Attributes& attrs, int64_t rows, int64_t columns) {
  const auto r = size_list(attrs, "rows", 1, rows), c = size_list(attrs, "columns", 1, columns);
  if (r.size() != c.size() && r.size() != 1 && c.size() != 1)
    fail(Code::shape, "attributes 'rows' and 'columns': {} and {} sizes; expected as many",
         r.size(), c.size());
  std::vector<PrefixSize> sizes(std::max(r.size(), c.size()));
  for (size_t i = 0; i < sizes.size(); ++i)
    sizes[i] = {r[r.size() == 1 ? 0 : i], c[c.size() == 1 ? 0 : i]};
  return sizes;
}

bool prefix_columns_fit(Format format, int64_t columns, int64_t part) {
  if (part == columns) return true;
  switch (format) {
    case Format::i4_group_min:  // its minima lie behind the scales of all columns,
    case Format::binary2:       // its second bits behind the first of all columns
    case Format::mixed:
      return false;
    case Format::f32:
    case Format::bf16:
    case Format::i8:
      return true;
    default:
      return part % 64 == 0;
  }
}

std::vector<Operator> sparse_operators() {
  return {
      {"gathered_conv2d",
       2,
       3,
       {"weight"},
       {"bias"},
       {"stride", "padding", "dilation"},
       gathered_conv2d_shape,
       gathered_conv2d_macs},
      {"prefix_linear",
       1,
       1,
       {"weight"},
       {"bias"},
       {"rows", "columns"},
       prefix_linear_shape,
       prefix_linear_macs,
       matrix_rows,
       {"weight"}},
      {"prefix_conv2d",
       1,
       1,
       {"weight"},
       {"scale", "bias"},
       {"rows", "columns", "stride", "padding", "dilation"},
       prefix_conv2d_shape,
       prefix_conv2d_macs},
      {"size_switch",
       2,
       GraphLimits::kNodeInputs,
       {},
       {},
       {"choice"},
       size_switch_shape,
       no_macs,
       elementwise_rows},
  };
}

}  // namespace sluice::bundle
