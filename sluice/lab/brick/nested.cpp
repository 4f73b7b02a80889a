#include "sluice/lab/brick/nested.h"

#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/conv_shape.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

void check_list(const std::vector<int64_t>& list, int64_t count, int64_t high,
                std::string_view name, std::string_view kind) {
  if (list.empty()) return;
  if (static_cast<int64_t>(list.size()) != count) {
    fail(Code::config, "{} of {}: {} entries for {} sizes", name, kind, list.size(), count);
  }
  for (const int64_t value : list) require_range(value, 1, high, name, kind);
}

NestedSizes read_sizes(const AttributeReader& read) {
  return {read.integer("sizes", 1), read.integers("rows", bundle::kMaxSizes),
          read.integers("columns", bundle::kMaxSizes)};
}

at::Tensor leading(const at::Tensor& tensor, int64_t dim, int64_t count) {
  return tensor.size(dim) == count ? tensor : tensor.narrow(dim, 0, count);
}

/// `y` [B, units, ...] (or units last) times the mask that the context has for so many units.
at::Tensor masked(const at::Tensor& y, int64_t dim, const Context& context) {
  const auto found = context.unit_masks->find(y.size(dim));
  if (found == context.unit_masks->end()) return y;
  std::vector<int64_t> shape(static_cast<size_t>(y.dim()), 1);
  shape[static_cast<size_t>(dim)] = y.size(dim);
  return y * found->second.to(y.options()).view(shape);
}

void meter_call(Context& context, int64_t macs, std::initializer_list<at::Tensor> touched) {
  int64_t bytes = 0;
  for (const at::Tensor& tensor : touched) bytes += tensor_bytes(tensor);
  context.meter->add(context.path(), macs, bytes);
}

void copy_into(at::Tensor& target, const at::Tensor& value, const at::Tensor& like) {
  target.set_data(value.detach().to(like.options().requires_grad(false)).contiguous().clone());
  target.set_requires_grad(like.requires_grad());
}

}  // namespace

int64_t chosen_size(const Context& context, int64_t count, std::string_view kind) {
  if (context.size < -1 || context.size >= count) {
    fail(Code::usage, "{} ({}): size {}; the network has {}, from 0", context.path(), kind,
         context.size, count);
  }
  return context.size < 0 ? count - 1 : context.size;
}

// ---- NestedLayer ----

void NestedLayer::init_sizes(NestedSizes sizes, std::string_view kind) {
  require_range(sizes.count, 1, static_cast<int64_t>(bundle::kMaxSizes), "sizes", kind);
  check_list(sizes.rows, sizes.count, outputs(), "rows", kind);
  check_list(sizes.columns, sizes.count, inputs(), "columns", kind);
  sizes_ = std::move(sizes);
}

void NestedLayer::set_sizes(NestedSizes sizes) {
  if (sizes.rows.empty() == elastic()) {
    fail(Code::config, "rows of a nested layer: {}",
         elastic() ? "missing; its outputs are nested" : "given, but it always has all outputs");
  }
  init_sizes(std::move(sizes), "nested layer");
}

int64_t NestedLayer::rows_of(int64_t size) const {
  return sizes_.rows.empty() ? outputs() : sizes_.rows[static_cast<size_t>(size)];
}

int64_t NestedLayer::columns_of(int64_t size) const {
  return sizes_.columns.empty() ? inputs() : sizes_.columns[static_cast<size_t>(size)];
}

void NestedLayer::check_width(const at::Tensor& x, int64_t size, std::string_view kind) const {
  const int64_t found = width_of(x);
  const bool good =
      sizes_.columns.empty() ? found >= 1 && found <= inputs() : found == columns_of(size);
  if (!good) {
    fail(Code::shape, "{}: size {} takes {} of {} inputs, found {}", kind, size, columns_of(size),
         inputs(), found);
  }
}

Json NestedLayer::sizes_json(Json attributes) const {
  attributes["sizes"] = sizes_.count;
  if (!sizes_.rows.empty()) attributes["rows"] = sizes_.rows;
  if (!sizes_.columns.empty()) attributes["columns"] = sizes_.columns;
  return attributes;
}

namespace {

/// 'rows' and 'columns' of a prefix node; a layer of a single size says nothing.
bundle::Attributes prefix_attributes(const NestedLayer& layer) {
  const NestedSizes& sizes = layer.sizes();
  const auto filled = [&](const std::vector<int64_t>& list, int64_t all) {
    return list.empty() ? std::vector<int64_t>(static_cast<size_t>(sizes.count), all) : list;
  };
  return {{"rows", filled(sizes.rows, layer.outputs())},
          {"columns", filled(sizes.columns, layer.inputs())}};
}

}  // namespace

// ---- NestedLinear ----

NestedLinear::NestedLinear(int64_t inputs, int64_t outputs, bool with_bias, NestedSizes sizes)
    : inputs_(require_range(inputs, 1, kMaxElements, "inputs", "nested_linear")),
      outputs_(require_range(outputs, 1, kMaxElements, "outputs", "nested_linear")) {
  require_elements({inputs, outputs}, "weight", "nested_linear");
  init_sizes(std::move(sizes), "nested_linear");
  weight = register_parameter("weight", initial_uniform({outputs, inputs}, inputs));
  if (with_bias) bias = register_parameter("bias", initial_uniform({outputs}, inputs));
}

Json NestedLinear::attributes() const {
  return sizes_json({{"inputs", inputs_}, {"outputs", outputs_}, {"bias", bias.defined()}});
}

BrickPtr make_nested_linear(const Json& attributes) {
  const AttributeReader read(attributes, "nested_linear",
                             {"inputs", "outputs", "bias", "sizes", "rows", "columns"});
  return std::make_shared<NestedLinear>(read.integer("inputs"), read.integer("outputs"),
                                        read.boolean("bias", true), read_sizes(read));
}

at::Tensor NestedLinear::forward(const at::Tensor& x, Context& context) {
  const int64_t size = chosen_size(context, sizes_.count, "nested_linear");
  const bool any = context.unit_masks != nullptr;
  if (!any) check_width(x, size, "nested_linear");
  const int64_t rows = any ? outputs_ : rows_of(size), columns = x.size(-1);
  const at::Tensor w = leading(leading(weight, 0, rows), 1, columns);
  const at::Tensor b = bias.defined() ? leading(bias, 0, rows) : bias;
  at::Tensor y = at::linear(x, w, b);
  if (any && elastic()) y = masked(y, y.dim() - 1, context);
  if (context.meter != nullptr) meter_call(context, y.numel() * columns, {x, y, w, b});
  return y;
}

Shape NestedLinear::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != inputs_) {
    fail(Code::shape, "nested_linear: expected [.., {}], found {}", inputs_, to_string(input));
  }
  Shape output = input;
  output.back() = outputs_;
  return output;
}

Cost NestedLinear::cost(const Shape& input) const {
  const int64_t count = numel(output_shape(input));
  const int64_t params = weight.numel() + (bias.defined() ? outputs_ : 0);
  return {checked_mul(count, inputs_, "MACs of nested_linear"), params, 4 * params};
}

bundle::Value NestedLinear::lower(bundle::Builder& builder, const bundle::Value& x,
                                  const std::string& path) const {
  std::map<std::string, std::string> tensors = {{"weight", join_path(path, "weight")}};
  add_tensor(builder, tensors["weight"], weight);
  if (bias.defined()) {
    tensors["bias"] = join_path(path, "bias");
    add_tensor(builder, tensors["bias"], bias);
  }
  return builder.node("prefix_linear", node_path_of(path, *this), {x}, prefix_attributes(*this),
                      std::move(tensors));
}

BrickPtr NestedLinear::pick(int64_t size) const {
  const WithoutInit without_init;
  const int64_t rows = rows_of(size), columns = columns_of(size);
  auto result = std::make_shared<Linear>(columns, rows, bias.defined());
  copy_into(result->weight, leading(leading(weight, 0, rows), 1, columns), weight);
  if (bias.defined()) copy_into(result->bias, leading(bias, 0, rows), bias);
  result->train(is_training());
  return result;
}

// ---- NestedConv2d ----

NestedConv2d::NestedConv2d(const Conv2dOptions& options, Norm norm, NestedSizes sizes)
    : options_(options), norm_(norm) {
  if (options.groups != 1) {
    fail(Code::unsupported, "nested_conv2d: {} groups; a leading part of the channels cuts them",
         options.groups);
  }
  {
    const Conv2d plain(options);  // its checks, and its first values
    weight = register_parameter("weight", plain.weight.detach());
    if (options.bias) bias = register_parameter("bias", plain.bias.detach());
  }
  init_sizes(std::move(sizes), "nested_conv2d");
  if (!norm.present) return;
  require_range(norm.eps, 1e-12, 1.0, "eps", "nested_conv2d");
  require_range(norm.momentum, 0.0, 1.0, "momentum", "nested_conv2d");
  require_elements({sizes_.count, options.outputs}, "statistics", "nested_conv2d");
  norm_weight = register_parameter("norm_weight", at::ones({options.outputs}));
  norm_bias = register_parameter("norm_bias", at::zeros({options.outputs}));
  running_mean = register_buffer("running_mean", at::zeros({sizes_.count, options.outputs}));
  running_var = register_buffer("running_var", at::ones({sizes_.count, options.outputs}));
}

Json NestedConv2d::attributes() const {
  Json attributes = {{"inputs", options_.inputs},   {"outputs", options_.outputs},
                     {"kernel", options_.kernel},   {"stride", options_.stride},
                     {"padding", options_.padding}, {"bias", options_.bias}};
  if (norm_.present) {
    attributes["norm"] = true;
    attributes["eps"] = norm_.eps;
    attributes["momentum"] = norm_.momentum;
  }
  return sizes_json(std::move(attributes));
}

BrickPtr make_nested_conv2d(const Json& attributes) {
  const AttributeReader read(attributes, "nested_conv2d",
                             {"inputs", "outputs", "kernel", "stride", "padding", "bias", "norm",
                              "eps", "momentum", "sizes", "rows", "columns"});
  Conv2dOptions options;
  options.inputs = read.integer("inputs");
  options.outputs = read.integer("outputs");
  options.kernel = read.integer("kernel", options.kernel);
  options.stride = read.integer("stride", options.stride);
  options.padding = read.integer("padding", options.padding);
  options.bias = read.boolean("bias", options.bias);
  NestedConv2d::Norm norm;
  norm.present = read.boolean("norm", false);
  norm.eps = read.number("eps", norm.eps);
  norm.momentum = read.number("momentum", norm.momentum);
  return std::make_shared<NestedConv2d>(options, norm, read_sizes(read));
}

at::Tensor NestedConv2d::forward(const at::Tensor& x, Context& context) {
  const int64_t size = chosen_size(context, sizes_.count, "nested_conv2d");
  const bool any = context.unit_masks != nullptr;
  if (!any) check_width(x, size, "nested_conv2d");
  const int64_t rows = any ? outputs() : rows_of(size), columns = x.size(1);
  const at::Tensor w = leading(leading(weight, 0, rows), 1, columns);
  const at::Tensor b = bias.defined() ? leading(bias, 0, rows) : bias;
  at::Tensor y =
      at::conv2d(x, w, b, {options_.stride, options_.stride}, {options_.padding, options_.padding});
  if (context.meter != nullptr) {
    meter_call(context, y.numel() * columns * options_.kernel * options_.kernel, {x, y, w, b});
  }
  if (norm_.present) {
    double momentum = norm_.momentum;
    if (is_training() && estimated_ >= 0) momentum = 1.0 / static_cast<double>(++estimated_);
    y = at::batch_norm(y, leading(norm_weight, 0, rows), leading(norm_bias, 0, rows),
                       leading(running_mean.select(0, size), 0, rows),
                       leading(running_var.select(0, size), 0, rows), is_training(), momentum,
                       norm_.eps, /*cudnn_enabled=*/true);
  }
  return any && elastic() ? masked(y, 1, context) : y;
}

Shape NestedConv2d::output_shape(const Shape& input) const {
  return conv2d_output_shape(options_, input, "nested_conv2d");
}

Cost NestedConv2d::cost(const Shape& input) const {
  const Shape output = output_shape(input);
  int64_t params = weight.numel() + (bias.defined() ? options_.outputs : 0);
  int64_t stored = params;
  if (norm_.present) {
    params += 2 * options_.outputs;
    stored += 2 * options_.outputs + running_mean.numel() + running_var.numel();
  }
  return {checked_mul(output[1] * output[2], weight.numel(), "MACs of nested_conv2d"), params,
          4 * stored};
}

std::pair<at::Tensor, at::Tensor> NestedConv2d::affine(int64_t size) const {
  const at::TensorOptions options = weight.options().dtype(at::kDouble).requires_grad(false);
  at::Tensor shift = bias.defined() ? in_doubles(bias) : at::zeros({options_.outputs}, options);
  if (!norm_.present) return {at::ones({options_.outputs}, options), shift};
  const at::Tensor scale =
      in_doubles(norm_weight) / at::sqrt(in_doubles(running_var.select(0, size)) + norm_.eps);
  shift = in_doubles(norm_bias) + (shift - in_doubles(running_mean.select(0, size))) * scale;
  return {scale, shift};
}

bundle::Value NestedConv2d::lower(bundle::Builder& builder, const bundle::Value& x,
                                  const std::string& path) const {
  std::vector<at::Tensor> scales, shifts;
  for (int64_t size = 0; size < sizes_.count; ++size) {
    auto [scale, shift] = affine(size);
    scales.push_back(scale);
    shifts.push_back(shift);
  }
  // Names of their own: "bias" is the convolution's.
  std::map<std::string, std::string> tensors = {{"weight", join_path(path, "weight")}};
  add_tensor(builder, tensors["weight"], weight);
  if (norm_.present) {
    tensors["scale"] = join_path(path, "folded_scale");
    add_tensor(builder, tensors["scale"], at::stack(scales));
  }
  if (norm_.present || bias.defined()) {
    tensors["bias"] = join_path(path, "folded_bias");
    add_tensor(builder, tensors["bias"], at::stack(shifts));
  }
  bundle::Attributes attributes = prefix_attributes(*this);
  attributes["stride"] = std::vector<int64_t>(2, options_.stride);
  attributes["padding"] = std::vector<int64_t>(2, options_.padding);
  return builder.node("prefix_conv2d", node_path_of(path, *this), {x}, std::move(attributes),
                      std::move(tensors));
}

void NestedConv2d::set_sizes(NestedSizes sizes) {
  NestedLayer::set_sizes(std::move(sizes));
  if (!norm_.present || running_mean.size(0) == sizes_.count) return;
  for (at::Tensor* statistic : {&running_mean, &running_var}) {
    const at::Tensor last = statistic->select(0, statistic->size(0) - 1);
    statistic->set_data(last.unsqueeze(0).repeat({sizes_.count, 1}));
  }
}

BrickPtr NestedConv2d::pick(int64_t size) const {
  const WithoutInit without_init;
  Conv2dOptions options = options_;
  options.inputs = columns_of(size);
  options.outputs = rows_of(size);
  options.bias = norm_.present || bias.defined();
  auto result = std::make_shared<Conv2d>(options);
  const auto [scale, shift] = affine(size);
  const at::Tensor w = leading(leading(weight, 0, options.outputs), 1, options.inputs);
  copy_into(result->weight, in_doubles(w) * leading(scale, 0, options.outputs).view({-1, 1, 1, 1}),
            weight);
  if (options.bias) copy_into(result->bias, leading(shift, 0, options.outputs), weight);
  result->train(is_training());
  return result;
}

}  // namespace sluice::lab
