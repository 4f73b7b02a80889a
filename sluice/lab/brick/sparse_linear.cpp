#include "sluice/lab/brick/sparse_linear.h"

#include "sluice/base/path_pattern.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 24;

}  // namespace

SparseLinear::SparseLinear(const SparseLinearOptions& options) : options_(options) {
  require_range(options.inputs, 1, kMaxElements, "inputs", "sparse_linear");
  require_range(options.outputs, 1, kMaxElements, "outputs", "sparse_linear");
  require_elements({options.inputs, options.outputs}, "weight", "sparse_linear");
  require_range(options.dense_first, 0, kMostRows, "dense_first", "sparse_linear");
  weight = register_parameter("weight",
                              initial_uniform({options.inputs, options.outputs}, options.inputs));
  if (options.bias) {
    bias = register_parameter("bias", initial_uniform({options.outputs}, options.inputs));
  }
  if (options.scored) column_norm = register_buffer("column_norm", at::ones({options.inputs}));
}

std::shared_ptr<SparseLinear> SparseLinear::of(const Linear& layer, const Selector& select,
                                               const at::Tensor& column_norm, int64_t dense_first) {
  const WithoutInit without_init;
  auto result = std::make_shared<SparseLinear>(
      SparseLinearOptions{layer.inputs(), layer.outputs(), layer.bias.defined(),
                          column_norm.defined(), select, dense_first});
  const auto put = [](at::Tensor& target, const at::Tensor& from, const at::Tensor& value) {
    target.set_data(value);
    target.set_requires_grad(from.requires_grad());
  };
  put(result->weight, layer.weight, layer.weight.detach().t().contiguous());
  if (layer.bias.defined()) put(result->bias, layer.bias, layer.bias.detach().clone());
  if (column_norm.defined()) {
    if (column_norm.dim() != 1 || column_norm.size(0) != layer.inputs()) {
      fail(Code::shape, "column_norm of sparse_linear: expected {}, found {}", layer.inputs(),
           to_string(column_norm.sizes()));
    }
    const at::Tensor norm = column_norm.detach().to(layer.weight.options()).clone();
    if (!at::logical_and(at::isfinite(norm), norm >= 0).all().item<bool>()) {
      fail(Code::numeric, "column_norm of sparse_linear: expected finite numbers of at least 0");
    }
    result->column_norm.set_data(norm);
  }
  result->train(layer.is_training());
  return result;
}

Json SparseLinear::attributes() const {
  Json json = {{"inputs", options_.inputs}, {"outputs", options_.outputs}, {"bias", options_.bias}};
  if (options_.scored) json["scored"] = true;
  if (options_.dense_first > 0) json["dense_first"] = options_.dense_first;
  json.update(options_.sizes.empty() ? selector_json(options_.select)
                                     : selectors_json(options_.sizes));
  return json;
}

BrickPtr make_sparse_linear(const Json& attributes) {
  const AttributeReader read(
      attributes, "sparse_linear",
      {"inputs", "outputs", "bias", "scored", "dense_first", "select", "k", "threshold", "keep"});
  SparseLinearOptions options;
  options.inputs = read.integer("inputs");
  options.outputs = read.integer("outputs");
  options.bias = read.boolean("bias", true);
  options.scored = read.boolean("scored", false);
  options.dense_first = read.integer("dense_first", 0);
  const std::vector<Selector> selectors = read_selectors(attributes, "sparse_linear");
  options.select = selectors.back();
  if (selectors.size() > 1) options.sizes = selectors;
  return std::make_shared<SparseLinear>(options);
}

void SparseLinear::set_select(const Selector& select) {
  options_.select = select;
  options_.sizes.clear();
}

void SparseLinear::set_sizes(std::vector<Selector> sizes) {
  if (sizes.size() < 2 || sizes.size() > bundle::kMaxSizes) {
    fail(Code::config, "sparse_linear: {} sizes; expected 2 to {}", sizes.size(),
         bundle::kMaxSizes);
  }
  Selector::Kind kind = Selector::Kind::all;
  for (const Selector& each : sizes) {
    if (each.kind == Selector::Kind::all) continue;
    if (kind != Selector::Kind::all && each.kind != kind) {
      fail(Code::config, "sparse_linear: sizes that select in several ways; expected one");
    }
    kind = each.kind;
  }
  // What is dense says so in the way of the others; scores are sizes, so all are above -1.
  for (Selector& each : sizes) {
    if (each.kind != Selector::Kind::all) continue;
    if (kind == Selector::Kind::threshold) each = Selector::above(-1);
    if (kind == Selector::Kind::statistical) each = Selector::share(1);
    if (kind == Selector::Kind::top_k || kind == Selector::Kind::all) {
      each = Selector::top(options_.inputs);
    }
  }
  options_.select = sizes.back();
  options_.sizes = std::move(sizes);
}

bool SparseLinear::keeps_all() const {
  const Selector& s = selector(-1);
  switch (s.kind) {
    case Selector::Kind::all:
      return true;
    case Selector::Kind::top_k:
      return s.k >= options_.inputs;
    case Selector::Kind::threshold:
      return s.threshold < 0;  // scores are sizes
    case Selector::Kind::statistical:
      return s.keep >= 1;
  }
  return false;
}

const Selector& SparseLinear::selector(int64_t size) const {
  if (options_.sizes.empty()) return options_.select;
  return options_.sizes[static_cast<size_t>(size < 0 ? std::ssize(options_.sizes) - 1 : size)];
}

at::Tensor SparseLinear::kept(const at::Tensor& x, int64_t size) const {
  at::Tensor mask = select(x, selector(size), column_norm);
  if (options_.dense_first > 0 && x.dim() == 3) {
    mask.narrow(1, 0, std::min(options_.dense_first, x.size(1))).fill_(true);
  }
  return mask;
}

at::Tensor SparseLinear::forward(const at::Tensor& x, Context& context) {
  const int64_t size = options_.sizes.empty()
                           ? -1
                           : chosen_size(context, std::ssize(options_.sizes), "sparse_linear");
  const bool all = selector(size).kind == Selector::Kind::all;
  at::Tensor mask;
  if (!all) mask = kept(x, size);
  // Not x * mask: a NaN that is left out stays out.
  at::Tensor y = at::matmul(all ? x : x.masked_fill(mask.logical_not(), 0), weight);
  if (bias.defined()) y = y + bias;
  if (context.meter != nullptr) {
    const int64_t pairs = all ? x.numel() : mask.sum().item<int64_t>();
    const int64_t read =
        all ? options_.inputs : mask.reshape({-1, options_.inputs}).any(0).sum().item<int64_t>();
    context.meter->add(context.path(), pairs * options_.outputs,
                       tensor_bytes(x) + tensor_bytes(y) + tensor_bytes(bias) +
                           read * options_.outputs * static_cast<int64_t>(weight.element_size()));
  }
  return y;
}

Shape SparseLinear::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != options_.inputs) {
    fail(Code::shape, "sparse_linear: expected [.., {}], found {}", options_.inputs,
         to_string(input));
  }
  if (options_.dense_first > 0 && input.size() != 2) {
    fail(Code::shape,
         "sparse_linear: dense_first counts rows of a sequence; expected [T, {}], "
         "found {}",
         options_.inputs, to_string(input));
  }
  Shape output = input;
  output.back() = options_.outputs;
  return output;
}

Cost SparseLinear::cost(const Shape& input) const {
  const int64_t rows = numel(output_shape(input)) / options_.outputs;
  const int64_t whole = std::min(options_.dense_first, rows);
  const int64_t pairs = checked_add(
      checked_mul(rows - whole, options_.select.most_kept(options_.inputs),
                  "MACs of sparse_linear"),
      checked_mul(whole, options_.inputs, "MACs of sparse_linear"), "MACs of sparse_linear");
  const int64_t params = options_.inputs * options_.outputs +
                         (options_.bias ? options_.outputs : 0) +
                         (options_.scored ? options_.inputs : 0);
  return {checked_mul(pairs, options_.outputs, "MACs of sparse_linear"), params, 4 * params};
}

bundle::Value SparseLinear::lower(bundle::Builder& builder, const bundle::Value& x,
                                  const std::string& path) const {
  std::map<std::string, std::string> tensors = {{"weight", join_path(path, "weight")}};
  add_tensor(builder, tensors["weight"], weight);
  if (bias.defined()) {
    tensors["bias"] = join_path(path, "bias");
    add_tensor(builder, tensors["bias"], bias);
  }
  if (column_norm.defined()) {
    tensors["column_norm"] = join_path(path, "column_norm");
    add_tensor(builder, tensors["column_norm"], column_norm);
  }
  bundle::Attributes attributes;
  if (!options_.sizes.empty()) {
    add_selectors(options_.sizes, attributes);
  } else if (options_.select.kind == Selector::Kind::all) {
    // The node has no selector that keeps all; top-k of everything is the dense layer.
    add_selector(Selector::top(options_.inputs), attributes);
  } else {
    add_selector(options_.select, attributes);
  }
  if (options_.dense_first > 0) attributes["dense_first"] = options_.dense_first;
  return builder.node("sparse_input_linear", node_path_of(path, *this), {x}, std::move(attributes),
                      std::move(tensors));
}

std::shared_ptr<Linear> SparseLinear::dense() const {
  const WithoutInit without_init;
  auto result = std::make_shared<Linear>(options_.inputs, options_.outputs, options_.bias);
  result->weight.set_data(weight.detach().t().contiguous());
  result->weight.set_requires_grad(weight.requires_grad());
  if (bias.defined()) {
    result->bias.set_data(bias.detach().clone());
    result->bias.set_requires_grad(bias.requires_grad());
  }
  result->train(is_training());
  return result;
}

}  // namespace sluice::lab
