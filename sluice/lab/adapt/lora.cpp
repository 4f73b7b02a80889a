#include "sluice/lab/adapt/lora.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

constexpr int64_t kMaxRank = 4096;

LoraOptions checked(const LoraOptions& options) {
  require_range(options.inputs, 1, kMaxElements, "inputs", "lora_linear");
  require_range(options.outputs, 1, kMaxElements, "outputs", "lora_linear");
  require_range(options.rank, 1, kMaxRank, "rank", "lora_linear");
  require_elements({options.rank, options.inputs}, "lora_a", "lora_linear");
  require_elements({options.outputs, options.rank}, "lora_b", "lora_linear");
  require_range(options.scale, -1e6, 1e6, "scale", "lora_linear");
  return options;
}

void freeze(Linear& layer) {
  layer.weight.set_requires_grad(false);
  if (layer.bias.defined()) layer.bias.set_requires_grad(false);
}

}  // namespace

LoraLinear::LoraLinear(const LoraOptions& options) : options_(checked(options)) {
  add_slot("base", nullptr);
  lora_a = register_parameter("lora_a",
                              initial_uniform({options_.rank, options_.inputs}, options_.inputs));
  lora_b = register_parameter("lora_b", at::zeros({options_.outputs, options_.rank}));
  lora_scale = register_buffer("lora_scale", at::full({1}, options_.scale, at::kFloat));
}

std::shared_ptr<LoraLinear> LoraLinear::of(std::shared_ptr<Linear> base, int64_t rank,
                                           double scale) {
  auto result =
      std::make_shared<LoraLinear>(LoraOptions{base->inputs(), base->outputs(), rank, scale});
  result->to(base->weight.device(), base->weight.scalar_type());
  result->train(base->is_training());
  result->adopt("base", std::move(base));
  return result;
}

Json LoraLinear::attributes() const {
  return {{"inputs", options_.inputs}, {"outputs", options_.outputs}, {"rank", options_.rank}};
}

BrickPtr make_lora_linear(const Json& attributes) {
  const AttributeReader read(attributes, "lora_linear", {"inputs", "outputs", "rank"});
  return std::make_shared<LoraLinear>(
      LoraOptions{read.integer("inputs"), read.integer("outputs"), read.integer("rank")});
}

void LoraLinear::adopt(const std::string& name, BrickPtr child) {
  Brick::adopt(name, std::move(child));
  if (auto* layer = dynamic_cast<Linear*>(slot("base").get().get())) freeze(*layer);
}

void LoraLinear::check_slots() const {
  if (slot("base").empty()) fail(Code::config, "base: must be filled");
  const Linear& layer = base();
  if (layer.inputs() != options_.inputs || layer.outputs() != options_.outputs) {
    fail(Code::config, "base: expected a linear layer {} -> {}, found {} -> {}", options_.inputs,
         options_.outputs, layer.inputs(), layer.outputs());
  }
}

at::Tensor LoraLinear::forward(const at::Tensor& x, Context& context) {
  const at::Tensor side = at::linear(at::linear(x, lora_a), lora_b) * lora_scale;
  if (context.meter != nullptr) {
    const int64_t rows = x.numel() / options_.inputs;
    context.meter->add(
        context.path(), rows * options_.rank * (options_.inputs + options_.outputs),
        tensor_bytes(x) + tensor_bytes(lora_a) + tensor_bytes(lora_b) + tensor_bytes(side));
  }
  return slot("base").forward(x, context) + side;
}

Shape LoraLinear::output_shape(const Shape& input) const {
  return slot("base").output_shape(input);
}

Cost LoraLinear::cost(const Shape& input) const {
  const int64_t rows = numel(output_shape(input)) / options_.outputs;
  const int64_t params = lora_a.numel() + lora_b.numel();
  return slot("base").cost(input) +
         Cost{checked_mul(rows, params, "MACs of lora_linear"), params, 4 * params};
}

bundle::Value LoraLinear::lower(bundle::Builder& builder, const bundle::Value& x,
                                const std::string& path) const {
  const std::string own = node_path_of(path, *this);
  const std::string a = join_path(path, "lora_a"), b = join_path(path, "lora_b"),
                    scale = join_path(path, "lora_scale");
  add_tensor(builder, a, lora_a);
  add_tensor(builder, scale, lora_scale);
  add_tensor(builder, b, lora_b);
  const bundle::Value y = slot("base").lower(builder, x, join_path(path, "base"));
  const bundle::Value narrow = builder.node("linear", a, {x}, {}, {{"weight", a}});
  bundle::Value side = builder.node("linear", b, {narrow}, {}, {{"weight", b}});
  side = builder.node("scale", scale, {side}, {}, {{"scale", scale}});
  return builder.node("add", own, {y, side}, {}, {});
}

std::shared_ptr<Linear> LoraLinear::folded() const {
  const WithoutInit without_init;
  const Linear& from = base();
  auto result = std::make_shared<Linear>(from.inputs(), from.outputs(), from.bias.defined());
  const at::Tensor weight =
      in_doubles(from.weight) +
      at::matmul(in_doubles(lora_b), in_doubles(lora_a)) * in_doubles(lora_scale);
  result->weight.set_data(weight.to(from.weight.scalar_type()));
  if (from.bias.defined()) result->bias.set_data(from.bias.detach().clone());
  result->train(is_training());
  return result;
}

}  // namespace sluice::lab
