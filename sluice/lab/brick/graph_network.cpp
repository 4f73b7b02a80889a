#include "sluice/lab/brick/graph_network.h"

#include <algorithm>
#include <set>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/scalar_ops.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

using at::Tensor;
using bundle::attr_bool;
using bundle::attr_double;
using bundle::attr_int;
using bundle::attr_ints;
using bundle::attr_string;
using bundle::Attributes;
using Inputs = std::vector<Tensor>;
using Constants = std::map<std::string, Tensor>;

std::vector<int64_t> list(const Attributes& attrs, const char* name) {
  const bundle::Attribute& value = attrs.at(name);
  if (const auto* many = std::get_if<std::vector<int64_t>>(&value)) return *many;
  return {std::get<int64_t>(value)};
}

/// Dimensions count from the batch on here, per sample in the graph.
std::vector<int64_t> behind_batch(std::vector<int64_t> dimensions) {
  for (int64_t& each : dimensions) ++each;
  return dimensions;
}

int64_t axis_of(const Attributes& attrs, const Tensor& x) {
  return attr_int(attrs, "axis", x.dim() - 2) + 1;
}

/// Ones behind the batch, so that the last dimensions of values of several ranks meet.
Tensor aligned(const Tensor& x, int64_t dimensions) {
  if (x.dim() >= dimensions) return x;
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.insert(sizes.begin() + 1, static_cast<size_t>(dimensions - x.dim()), 1);
  return x.reshape(sizes);
}

/// [B, C] or [C] before the trailing dimensions of x [B, C, ..].
Tensor per_channel(const Tensor& values, const Tensor& x, bool batched) {
  std::vector<int64_t> sizes(static_cast<size_t>(x.dim()), 1);
  const int64_t batch = batched ? values.size(0) : 1;
  sizes[0] = batch;
  sizes[1] = values.numel() / batch;
  return values.reshape(sizes);
}

/// Whether there is a function for the kind.
bool has_unary(const std::string& kind) {
  static const std::set<std::string> kinds = {
      "linear", "clip",       "hard_sigmoid", "leaky_relu", "abs", "neg", "exp", "log",
      "sqrt",   "reciprocal", "square",       "erf",        "sin", "cos", "elu", "softplus"};
  return kinds.count(kind) > 0;
}

Tensor unary(const Attributes& attrs, const Tensor& x) {
  const std::string kind = attr_string(attrs, "kind", "");
  const double alpha = attr_double(attrs, "alpha", 0), beta = attr_double(attrs, "beta", 0);
  if (kind == "linear") return x * alpha + beta;
  if (kind == "clip") return x.clamp(alpha, beta);
  if (kind == "hard_sigmoid") return (x * alpha + beta).clamp(0, 1);
  if (kind == "leaky_relu") return at::leaky_relu(x, alpha);
  if (kind == "elu") return at::where(x >= 0, x * beta, beta * alpha * (x.clamp_max(0).exp() - 1));
  if (kind == "softplus") return at::softplus(x, 1, 80);
  if (kind == "abs") return x.abs();
  if (kind == "neg") return -x;
  if (kind == "exp") return x.exp();
  if (kind == "log") return x.log();
  if (kind == "sqrt") return x.sqrt();
  if (kind == "reciprocal") return x.reciprocal();
  if (kind == "square") return x.square();
  if (kind == "erf") return x.erf();
  if (kind == "sin") return x.sin();
  return x.cos();
}

bool has_binary(const std::string& kind) {
  static const std::set<std::string> kinds = {"add", "sub", "mul", "div", "pow", "min", "max"};
  return kinds.count(kind) > 0;
}

Tensor binary(const Attributes& attrs, const Inputs& in, const Constants& constants) {
  const std::string kind = attr_string(attrs, "kind", "");
  const bool constant = constants.count("other") > 0;
  Tensor a = in[0], b = constant ? constants.at("other").unsqueeze(0) : in[1];
  const int64_t dimensions = std::max(a.dim(), b.dim());
  a = aligned(a, dimensions);
  b = aligned(b, dimensions);
  if (attr_bool(attrs, "reversed", false)) std::swap(a, b);
  if (kind == "add") return a + b;
  if (kind == "sub") return a - b;
  if (kind == "mul") return a * b;
  if (kind == "div") return a / b;
  if (kind == "pow") return a.pow(b);
  return kind == "min" ? at::minimum(a, b) : at::maximum(a, b);
}

Tensor matmul(const Attributes& attrs, const Inputs& in) {
  const int64_t dimensions = std::max(in[0].dim(), in[1].dim());
  const Tensor a = aligned(in[0], dimensions), b = aligned(in[1], dimensions);
  const double scale = attr_double(attrs, "scale", 1);
  const Tensor y = at::matmul(a, attr_bool(attrs, "transpose_b", false) ? b.transpose(-1, -2) : b);
  return scale == 1 ? y : y * scale;
}

Tensor reduce(const Attributes& attrs, const Tensor& x) {
  const std::string kind = attr_string(attrs, "kind", "");
  const std::vector<int64_t> axes = behind_batch(list(attrs, "axes"));
  if (kind == "sum") return x.sum(axes, /*keepdim=*/true);
  if (kind == "mean") return x.mean(axes, /*keepdim=*/true);
  return kind == "max" ? x.amax(axes, /*keepdim=*/true) : x.amin(axes, /*keepdim=*/true);
}

bool has_reduce(const std::string& kind) {
  return kind == "sum" || kind == "mean" || kind == "max" || kind == "min";
}

Tensor pool(const bundle::Node& node, const Tensor& x) {
  const auto kernel = attr_ints(node.attrs, "kernel", 2, 1);
  const auto stride = node.attrs.count("stride") ? attr_ints(node.attrs, "stride", 2, 1) : kernel;
  const auto padding = attr_ints(node.attrs, "padding", 2, 0);
  if (node.op == "max_pool2d") return at::max_pool2d(x, kernel, stride, padding);
  return at::avg_pool2d(x, kernel, stride, padding, /*ceil_mode=*/false,
                        /*count_include_pad=*/false);
}

Tensor pad(const Attributes& attrs, const Tensor& x) {
  const auto before = list(attrs, "before"), after = list(attrs, "after");
  std::vector<int64_t> margins;  // LibTorch's begin at the last dimension
  for (size_t i = before.size(); i-- > 0;) {
    margins.push_back(before[i]);
    margins.push_back(after[i]);
  }
  return at::constant_pad_nd(x, margins, attr_double(attrs, "value", 0));
}

Tensor batch_norm(const Attributes& attrs, const Tensor& x, const Constants& constants) {
  const auto role = [&](const char* name) {
    const auto found = constants.find(name);
    return found == constants.end() ? Tensor() : per_channel(found->second, x, false);
  };
  Tensor y =
      (x - role("running_mean")) * (role("running_var") + attr_double(attrs, "eps", 1e-5)).rsqrt();
  if (const Tensor weight = role("weight"); weight.defined()) y = y * weight;
  if (const Tensor bias = role("bias"); bias.defined()) y = y + bias;
  return y;
}

Tensor shaped(const Attributes& attrs, const Tensor& x) {
  std::vector<int64_t> sizes = list(attrs, "shape");
  sizes.insert(sizes.begin(), x.size(0));
  return x.reshape(sizes);
}

Tensor turned(const Attributes& attrs, const Tensor& x) {
  std::vector<int64_t> dimensions = behind_batch(list(attrs, "perm"));
  dimensions.insert(dimensions.begin(), 0);
  return x.permute(dimensions);
}

Tensor gathered(const Attributes& attrs, const Tensor& x) {
  const std::vector<int64_t> indices = list(attrs, "indices");
  return x.index_select(axis_of(attrs, x), at::tensor(indices, at::kLong).to(x.device()));
}

Tensor part(const Attributes& attrs, const Tensor& x) {
  const int64_t axis = axis_of(attrs, x), start = attr_int(attrs, "start", 0);
  return x.narrow(axis, start, attr_int(attrs, "size", x.size(axis) - start));
}

Tensor multiplied(const Inputs& in) {
  if (in[0].sizes() == in[1].sizes()) return in[0] * in[1];
  return in[0] * per_channel(in[1], in[0], true);
}

using Function = Tensor (*)(const bundle::Node&, const Inputs&, const Constants&);

/// Operators between the layers.
const std::map<std::string, Function>& functions() {
  using N = const bundle::Node&;
  using I = const Inputs&;
  using C = const Constants&;
  static const std::map<std::string, Function> table = {
      {"batch_norm", [](N n, I x, C c) { return batch_norm(n.attrs, x[0], c); }},
      {"activation", [](N n, I x, C) { return activate(attr_string(n.attrs, "kind", ""), x[0]); }},
      {"add", [](N, I x, C) { return x[0] + x[1]; }},
      {"mul", [](N, I x, C) { return multiplied(x); }},
      {"scale", [](N, I x, C c) { return x[0] * per_channel(c.at("scale"), x[0], false); }},
      {"max_pool2d", [](N n, I x, C) { return pool(n, x[0]); }},
      {"avg_pool2d", [](N n, I x, C) { return pool(n, x[0]); }},
      {"global_avg_pool",
       [](N, I x, C) {
         return x[0].mean({2, 3});
       }},
      {"flatten", [](N, I x, C) { return x[0].flatten(1); }},
      {"softmax", [](N, I x, C) { return at::softmax(x[0], -1); }},
      {"reshape", [](N n, I x, C) { return shaped(n.attrs, x[0]); }},
      {"transpose", [](N n, I x, C) { return turned(n.attrs, x[0]); }},
      {"concat", [](N n, I x, C) { return at::cat(x, axis_of(n.attrs, x[0])); }},
      {"slice", [](N n, I x, C) { return part(n.attrs, x[0]); }},
      {"gather", [](N n, I x, C) { return gathered(n.attrs, x[0]); }},
      {"pad", [](N n, I x, C) { return pad(n.attrs, x[0]); }},
      {"matmul", [](N n, I x, C) { return matmul(n.attrs, x); }},
      {"binary", [](N n, I x, C c) { return binary(n.attrs, x, c); }},
      {"unary", [](N n, I x, C) { return unary(n.attrs, x[0]); }},
      {"reduce", [](N n, I x, C) { return reduce(n.attrs, x[0]); }}};
  return table;
}

bool is_layer(const bundle::Node& node) {
  return node.op == "conv2d" || node.op == "linear" || node.op == "layer_norm";
}

/// The reason why training code does not compute the node; "" when it does.
std::string obstacle(const bundle::Node& node) {
  const std::string kind = attr_string(node.attrs, "kind", "");
  if (node.op == "linear" && attr_string(node.attrs, "activations", "f32") != "f32")
    return "its input is rounded";
  if (is_layer(node)) return "";
  if (functions().count(node.op) == 0) return "no brick computes the operator";
  const bool known = node.op == "unary"    ? has_unary(kind)
                     : node.op == "binary" ? has_binary(kind)
                     : node.op == "reduce" ? has_reduce(kind)
                                           : true;
  return known ? "" : "no brick computes kind '" + kind.substr(0, 60) + "'";
}

/// `wish` in the characters that slots have, new among `taken`.
std::string slot_name(const std::string& wish, std::set<std::string>& taken) {
  std::string name;
  for (const char c : wish.substr(0, 200)) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '_' || c == '-';
    name += plain ? c : '_';
  }
  if (name.empty()) name = "node";
  std::string result = name;
  for (int i = 2; !taken.insert(result).second; ++i) result = fmt::format("{}_{}", name, i);
  return result;
}

}  // namespace

GraphNetwork::GraphNetwork(const bundle::Graph& graph) {
  const std::string what = kind();
  if (graph.inputs.size() != 1 || graph.outputs.size() != 1 || !graph.carries.empty()) {
    fail(Code::shape, "{}: {} inputs, {} outputs, {} carried values; expected one, one, none", what,
         graph.inputs.size(), graph.outputs.size(), graph.carries.size());
  }
  graph_.inputs = graph.inputs;
  graph_.outputs = graph.outputs;
  check_graph(graph, what);
  std::set<std::string> taken;
  for (const bundle::Node& node : graph.nodes) {
    const std::string reason = obstacle(node);
    if (!reason.empty()) {
      fail(Code::unsupported, "{}: node '{}' ({}): {}", what, node.path.substr(0, 100), node.op,
           reason);
    }
    Step step;
    step.node = node;
    step.node.path = slot_name(node.path, taken);
    for (auto& [role, name] : step.node.tensors) {
      const bundle::TensorSpec& spec = graph.tensors.at(name);
      if (spec.format != "f32" || spec.dtype != bundle::DType::f32) {
        fail(Code::unsupported, "{}: node '{}': tensor '{}' is packed as {}; expected f32", what,
             node.path.substr(0, 100), name.substr(0, 100), spec.format);
      }
      bundle::TensorSpec mine = spec;
      mine.xxh64 = {};
      mine.name = step.node.path + (is_layer(node) ? "." : "_") + role;
      sources_[mine.name] = name;
      name = mine.name;
      graph_.tensors[mine.name] = mine;
    }
    graph_.nodes.push_back(step.node);
    steps_.push_back(std::move(step));
  }
  info_ = check_graph(graph_, what);
  for (Step& step : steps_)
    is_layer(step.node) ? add_layer(step, graph_.tensors) : add_tensors(step, graph_.tensors);
}

void GraphNetwork::add_layer(Step& step, const std::map<std::string, bundle::TensorSpec>& specs) {
  const bundle::Node& node = step.node;
  const bool has_bias = node.tensors.count("bias") > 0;
  if (node.op == "layer_norm") {
    const int64_t width = info_.shapes.at(node.inputs[0]).back();
    step.slot = &add_slot(node.path,
                          std::make_shared<LayerNorm>(width, attr_double(node.attrs, "eps", 1e-5),
                                                      node.tensors.count("weight") > 0, has_bias));
    return;
  }
  const Shape& weight = specs.at(node.tensors.at("weight")).shape;
  if (node.op == "linear") {
    step.slot = &add_slot(node.path, std::make_shared<Linear>(weight[1], weight[0], has_bias));
    return;
  }
  GraphConvOptions options;
  options.groups = attr_int(node.attrs, "groups", 1);
  options.outputs = weight[0];
  options.inputs = weight[1] * options.groups;
  options.kernel = {weight[2], weight[3]};
  options.stride = attr_ints(node.attrs, "stride", 2, 1);
  options.padding = attr_ints(node.attrs, "padding", 2, 0);
  options.dilation = attr_ints(node.attrs, "dilation", 2, 1);
  options.bias = has_bias;
  step.slot = &add_slot(node.path, std::make_shared<GraphConv>(options));
}

void GraphNetwork::add_tensors(Step& step, const std::map<std::string, bundle::TensorSpec>& specs) {
  for (const auto& [role, name] : step.node.tensors) {
    const Shape& shape = specs.at(name).shape;
    numel(shape, name);
    const Tensor values = at::zeros(shape);
    const bool trained = role != "running_mean" && role != "running_var";
    trained ? register_parameter(name, values) : register_buffer(name, values);
  }
}

bool GraphNetwork::gives_probabilities() const {
  return std::any_of(steps_.begin(), steps_.end(), [&](const Step& step) {
    return step.node.output == graph_.outputs[0] && step.node.op == "softmax";
  });
}

Json GraphNetwork::attributes() const {
  return {{"graph", parse_json(bundle::graph_to_json(graph_), "graph")}};
}

BrickPtr make_graph_network(const Json& attributes) {
  const AttributeReader read(attributes, "graph_network", {"graph"});
  return std::make_shared<GraphNetwork>(
      bundle::graph_from_json(read.object("graph").dump(), "graph of graph_network"));
}

void GraphNetwork::check_slots() const {
  for (const auto& slot : slots())
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
}

at::Tensor GraphNetwork::run(const Step& step, const std::vector<at::Tensor>& x,
                             Context& context) const {
  if (step.slot != nullptr) return step.slot->forward(x[0], context);
  // Parameters may have been moved to another device or type since: they are asked for by name.
  Constants constants;
  for (const auto& [role, name] : step.node.tensors) {
    const auto* found = named_parameters(/*recurse=*/false).find(name);
    constants[role] = found ? *found : *named_buffers(/*recurse=*/false).find(name);
  }
  try {
    return functions().at(step.node.op)(step.node, x, constants);
  } catch (const c10::Error& error) {
    fail(Code::shape, "{}: {}", join_path(context.path(), step.node.path),
         error.what_without_backtrace());
  }
}

at::Tensor GraphNetwork::forward(const at::Tensor& x, Context& context) {
  std::map<std::string, at::Tensor> values{{graph_.inputs[0].name, x}};
  std::map<std::string, size_t> last;  // who reads a value last
  for (size_t i = 0; i < steps_.size(); ++i)
    for (const std::string& input : steps_[i].node.inputs) last[input] = i;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    std::vector<at::Tensor> inputs;
    for (const std::string& input : step.node.inputs) inputs.push_back(values.at(input));
    at::Tensor y = run(step, inputs, context);
    for (const std::string& input : step.node.inputs)
      if (last.at(input) == i && input != graph_.outputs[0]) values.erase(input);
    values[step.node.output] = std::move(y);
  }
  return values.at(graph_.outputs[0]);
}

Shape GraphNetwork::output_shape(const Shape& input) const {
  if (input != graph_.inputs[0].shape) {
    fail(Code::shape, "{}: expected {}, found {}", kind(), to_string(graph_.inputs[0].shape),
         to_string(input));
  }
  return info_.shapes.at(graph_.outputs[0]);
}

Cost GraphNetwork::cost(const Shape& input) const {
  output_shape(input);
  Cost total;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    total += step.slot != nullptr ? step.slot->cost(info_.shapes.at(step.node.inputs[0]))
                                  : info_.node_costs[i];
  }
  return total;
}

bundle::Value GraphNetwork::lower(bundle::Builder& builder, const bundle::Value& x,
                                  const std::string& path) const {
  std::map<std::string, bundle::Value> values{{graph_.inputs[0].name, x}};
  for (const Step& step : steps_) {
    std::vector<bundle::Value> inputs;
    for (const std::string& input : step.node.inputs) inputs.push_back(values.at(input));
    const std::string at = join_path(path, step.node.path);
    if (step.slot != nullptr) {
      values[step.node.output] = step.slot->lower(builder, inputs[0], at);
      continue;
    }
    std::map<std::string, std::string> tensors;
    for (const auto& [role, name] : step.node.tensors) {
      const auto* found = named_parameters(/*recurse=*/false).find(name);
      tensors[role] = join_path(path, name);
      add_tensor(builder, tensors[role],
                 found ? *found : *named_buffers(/*recurse=*/false).find(name));
    }
    values[step.node.output] = builder.node(step.node.op, at, inputs, step.node.attrs, tensors);
  }
  return values.at(graph_.outputs[0]);
}

}  // namespace sluice::lab
