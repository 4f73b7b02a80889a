#include "sluice/lab/brick/sized_linear.h"

#include "sluice/base/path_pattern.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {

SizedLinear::SizedLinear(int64_t inputs, int64_t outputs, int64_t sizes) {
  require_range(inputs, 1, kMaxElements, "inputs", "sized_linear");
  require_range(outputs, 1, kMaxElements, "outputs", "sized_linear");
  require_range(sizes, 1, static_cast<int64_t>(bundle::kMaxSizes), "sizes", "sized_linear");
  require_elements({outputs, inputs}, "weight", "sized_linear");
  weight = register_parameter("weight", initial_uniform({outputs, inputs}, inputs));
  bias = register_parameter("bias", initial_uniform({outputs}, inputs));
  for (int64_t s = 0; sizes > 1 && s < sizes; ++s) {
    bias_at_.push_back(register_buffer(fmt::format("bias_at{}", s), at::zeros({outputs})));
  }
}

std::shared_ptr<SizedLinear> SizedLinear::of(const Linear& layer) {
  const WithoutInit without_init;
  auto result = std::make_shared<SizedLinear>(layer.inputs(), layer.outputs());
  result->weight.set_data(layer.weight.detach().clone());
  result->bias.set_data(layer.bias.defined()
                            ? layer.bias.detach().clone()
                            : at::zeros({layer.outputs()}, layer.weight.options()));
  result->train(layer.is_training());
  return result;
}

std::shared_ptr<SizedLinear> SizedLinear::with_offsets(
    const std::vector<at::Tensor>& offsets) const {
  const WithoutInit without_init;
  auto result =
      std::make_shared<SizedLinear>(inputs(), outputs(), static_cast<int64_t>(offsets.size()));
  result->weight.set_data(weight.detach().clone());
  result->bias.set_data(bias.detach().clone());
  for (size_t s = 0; s < result->bias_at_.size(); ++s) {
    SLUICE_CHECK(offsets[s].sizes() == bias.sizes());
    result->bias_at_[s].set_data(bias.detach() + offsets[s].to(bias.options()));
  }
  result->train(is_training());
  return result;
}

Json SizedLinear::attributes() const {
  return {{"inputs", inputs()}, {"outputs", outputs()}, {"sizes", sizes()}};
}

BrickPtr make_sized_linear(const Json& attributes) {
  const AttributeReader read(attributes, "sized_linear", {"inputs", "outputs", "sizes"});
  return std::make_shared<SizedLinear>(read.integer("inputs"), read.integer("outputs"),
                                       read.integer("sizes", 1));
}

at::Tensor SizedLinear::at_size(const at::Tensor& x, int64_t size) const {
  if (bias_at_.empty()) return at::linear(x, weight, bias);
  return at::linear(x, weight, size < 0 ? bias_at_.back() : bias_at_.at(static_cast<size_t>(size)));
}

at::Tensor SizedLinear::forward(const at::Tensor& x, Context& context) {
  const int64_t size = bias_at_.empty() ? -1 : chosen_size(context, sizes(), "sized_linear");
  const at::Tensor y = at_size(x, size);
  if (context.meter != nullptr) {
    context.meter->add(
        context.path(), y.numel() * inputs(),
        tensor_bytes(x) + tensor_bytes(weight) + tensor_bytes(bias) + tensor_bytes(y));
  }
  return y;
}

Shape SizedLinear::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != inputs()) {
    fail(Code::shape, "sized_linear: expected [.., {}], found {}", inputs(), to_string(input));
  }
  Shape output = input;
  output.back() = outputs();
  return output;
}

Cost SizedLinear::cost(const Shape& input) const {
  const int64_t params = weight.numel() + bias.numel();
  return {checked_mul(numel(output_shape(input)), inputs(), "MACs of sized_linear"), params,
          4 * params};
}

bundle::Value SizedLinear::lower(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  const std::string w = join_path(path, "weight");
  add_tensor(builder, w, weight);
  const auto layer = [&](const std::string& name, const std::string& node,
                         const at::Tensor& values) {
    const std::string b = join_path(path, name);
    add_tensor(builder, b, values);
    return builder.node("linear", node, {x}, {}, {{"weight", w}, {"bias", b}});
  };
  const std::string own = node_path_of(path, *this);
  if (bias_at_.empty()) return layer("bias", own, bias);
  std::vector<bundle::Value> layers;
  std::vector<int64_t> choice;
  for (size_t s = 0; s < bias_at_.size(); ++s) {
    layers.push_back(
        layer(fmt::format("bias_at{}", s), fmt::format("{}.at{}", own, s), bias_at_[s]));
    choice.push_back(static_cast<int64_t>(s));
  }
  return builder.node("size_switch", own, layers, {{"choice", choice}});
}

}  // namespace sluice::lab
