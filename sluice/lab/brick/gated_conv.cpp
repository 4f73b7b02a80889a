#include "sluice/lab/brick/gated_conv.h"

#include <algorithm>
#include <array>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {
namespace {

const Conv2d& conv_in(const Slot& slot) { return slot.as<Conv2d>(); }

/// For the parts that meter otherwise than they run.
class WithoutMeter {
 public:
  WithoutMeter(Context& context, bool without) : context_(context), meter_(context.meter) {
    if (without) context.meter = nullptr;
  }
  ~WithoutMeter() { context_.meter = meter_; }
  WithoutMeter(const WithoutMeter&) = delete;
  WithoutMeter& operator=(const WithoutMeter&) = delete;

 private:
  Context& context_;
  Meter* meter_;
};

bool keeps_zero(const Brick& brick) {
  if (dynamic_cast<const Identity*>(&brick) != nullptr) return true;
  const auto* activation = dynamic_cast<const Activation*>(&brick);
  return activation != nullptr && activation->function() != "sigmoid";
}

/// Weight [O, C, kh, kw] and bias [O] of the convolution with its norm, in double.
std::pair<at::Tensor, at::Tensor> folded(const Conv2d& conv, const Brick* norm) {
  const auto wide = [](const at::Tensor& values) { return values.detach().to(at::kDouble); };
  at::Tensor weight = wide(conv.weight);
  at::Tensor bias =
      conv.bias.defined() ? wide(conv.bias) : at::zeros({weight.size(0)}, weight.options());
  if (const auto* batch = dynamic_cast<const BatchNorm*>(norm)) {
    const at::Tensor scale =
        wide(batch->weight) / at::sqrt(wide(batch->running_var) + batch->eps());
    weight = weight * scale.view({-1, 1, 1, 1});
    bias = wide(batch->bias) + (bias - wide(batch->running_mean)) * scale;
  }
  return {weight, bias};
}

}  // namespace

// ---- GatedConvUnit ----

GatedConvUnit::GatedConvUnit() {
  conv_ = &add_slot("conv", nullptr);
  norm_ = &add_slot("norm", nullptr);
  act_ = &add_slot("act", nullptr);
  gate_ = &add_slot("gate", nullptr);
}

Json GatedConvUnit::attributes() const { return Json::object(); }

BrickPtr make_gated_conv_unit(const Json& attributes) {
  const AttributeReader read(attributes, "gated_conv_unit", {});
  return std::make_shared<GatedConvUnit>();
}

BrickPtr make_gated_conv_unit(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride) {
  auto unit = std::make_shared<GatedConvUnit>();
  unit->slot("conv").exchange(std::make_shared<Conv2d>(Conv2dOptions{.inputs = inputs,
                                                                     .outputs = outputs,
                                                                     .kernel = kernel,
                                                                     .stride = stride,
                                                                     .padding = kernel / 2,
                                                                     .bias = false}));
  unit->slot("norm").exchange(std::make_shared<BatchNorm>(outputs));
  unit->slot("act").exchange(std::make_shared<Activation>("relu"));
  return unit;
}

void GatedConvUnit::check_slots() const {
  const auto* conv = dynamic_cast<const Conv2d*>(conv_->get().get());
  if (conv == nullptr) fail(Code::config, "conv: expected a conv2d");
  if (act_->empty() || !keeps_zero(**act_)) {
    fail(Code::config,
         "act: expected an identity or an activation that leaves 0 at 0: a skipped filter is 0");
  }
  if (!norm_->empty() && dynamic_cast<const BatchNorm*>(norm_->get().get()) == nullptr &&
      dynamic_cast<const Identity*>(norm_->get().get()) == nullptr) {
    fail(Code::config, "norm: expected a batch_norm or identity, found a {}", (**norm_).kind());
  }
  if (gate_->empty()) return;
  const auto* gate = dynamic_cast<const GateBrick*>(gate_->get().get());
  if (gate == nullptr) fail(Code::config, "gate: expected a gate, found a {}", (**gate_).kind());
  if (gate->units() != conv->options().outputs) {
    fail(Code::config, "gate: expected {} units, found {}", conv->options().outputs, gate->units());
  }
  if (conv->options().groups != 1) {
    fail(Code::config, "gate: a convolution of {} groups has no kernel that skips filters",
         conv->options().groups);
  }
}

bool GatedConvUnit::skips() const {
  return !gate_->empty() && dynamic_cast<const ConstantMask*>(gate_->get().get()) == nullptr;
}

at::Tensor GatedConvUnit::forward(const at::Tensor& x, Context& context) {
  return forward_masked(x, {}, context).first;
}

std::pair<at::Tensor, at::Tensor> GatedConvUnit::forward_masked(const at::Tensor& x,
                                                                const at::Tensor& mask,
                                                                Context& context) {
  const Conv2dOptions& options = conv_in(*conv_).options();
  at::Tensor y, decision;
  {
    // A conv whose filters may be skipped is metered below, by what its masks let run.
    const WithoutMeter without(context, skips());
    y = conv_->forward(x, context);
  }
  const int64_t each = options.kernel * options.kernel * y.size(2) * y.size(3);
  if (!norm_->empty()) y = norm_->forward(y, context);
  y = act_->forward(y, context);
  if (gate_->empty()) return {y, {}};
  {
    const Context::Scope scope(context, gate_->name());
    at::Tensor unit_macs;
    if (context.gate_log != nullptr) {
      unit_macs =
          at::full({options.outputs}, static_cast<double>(each * options.inputs), x.options());
    }
    decision = gate_->as<GateBrick>().decide(x, unit_macs, context);
  }
  if (context.meter != nullptr && skips()) {
    const Context::Scope scope(context, conv_->name());
    const auto open = [](const at::Tensor& m) { return (m.detach() > 0).sum(-1); };
    const at::Tensor outputs = open(decision);
    const int64_t pairs = mask.defined() ? (outputs * open(mask)).sum().item<int64_t>()
                                         : outputs.sum().item<int64_t>() * options.inputs;
    const int64_t weights = pairs * options.kernel * options.kernel;
    context.meter->add(context.path(), pairs * each,
                       4 * weights + tensor_bytes(x) + tensor_bytes(y));
  }
  y = y * decision.to(y.scalar_type()).unsqueeze(-1).unsqueeze(-1);
  return {y, skips() ? decision : at::Tensor()};
}

Shape GatedConvUnit::output_shape(const Shape& input) const {
  const Shape shape = conv_->output_shape(input);
  return act_->output_shape(norm_->empty() ? shape : norm_->output_shape(shape));
}

Cost GatedConvUnit::cost(const Shape& input) const {
  Cost total = conv_->cost(input);
  if (!norm_->empty()) total += norm_->cost(conv_->output_shape(input));
  if (!gate_->empty()) total += gate_->cost(input);
  return total;
}

std::vector<FoldPair> GatedConvUnit::fold_pairs() const {
  if (dynamic_cast<const BatchNorm*>(norm_->get().get()) == nullptr) return {};
  return {{"conv", "norm"}};
}

bundle::Value GatedConvUnit::lower(bundle::Builder& builder, const bundle::Value& x,
                                   const std::string& path) const {
  return lower_masked(builder, x, {}, path).first;
}

std::pair<bundle::Value, std::optional<bundle::Value>> GatedConvUnit::lower_masked(
    bundle::Builder& builder, const bundle::Value& x, const std::optional<bundle::Value>& mask,
    const std::string& path) const {
  const std::string node = join_path(path, conv_->name());
  const Conv2d& conv = conv_in(*conv_);
  auto [weight, bias] = folded(conv, norm_->get().get());
  if (const auto* constant = dynamic_cast<const ConstantMask*>(gate_->get().get())) {
    const at::Tensor open = constant->mask.to(weight.options());
    weight = weight * open.view({-1, 1, 1, 1});
    bias = bias * open;
  }
  std::map<std::string, std::string> tensors;
  if (at::equal(weight, conv.weight.detach().to(at::kDouble)) && conv.bias.defined() &&
      at::equal(bias, conv.bias.detach().to(at::kDouble))) {
    tensors = {{"weight", join_path(node, "weight")}, {"bias", join_path(node, "bias")}};
  } else {  // "weight" and "bias" are the convolution's own
    tensors = {{"weight", join_path(node, "folded_weight")},
               {"bias", join_path(node, "folded_bias")}};
  }
  add_tensor(builder, tensors.at("weight"), weight);
  add_tensor(builder, tensors.at("bias"), bias);
  const std::vector<int64_t> stride(2, conv.options().stride), padding(2, conv.options().padding);
  bundle::Attributes attributes = {{"stride", stride}, {"padding", padding}};
  if (!skips()) {
    attributes["groups"] = conv.options().groups;
    const bundle::Value y = builder.node("conv2d", node, {x}, std::move(attributes), tensors);
    return {act_->lower(builder, y, path), std::nullopt};
  }
  const bundle::Value decision = gate_->lower(builder, x, path);
  std::vector<bundle::Value> inputs = {x, decision};
  if (mask) inputs.push_back(*mask);
  const bundle::Value y =
      builder.node("gathered_conv2d", node, inputs, std::move(attributes), tensors);
  return {act_->lower(builder, y, path), decision};
}

// ---- GatedConvChain ----

GatedConvChain::GatedConvChain(bool residual) : residual_(residual) {
  if (residual) shortcut_ = &add_slot("shortcut", nullptr);
}

GatedConvChain& GatedConvChain::append(const std::string& name, BrickPtr child) {
  add_slot(name, std::move(child));
  return *this;
}

Json GatedConvChain::attributes() const {
  return residual_ ? Json{{"residual", true}} : Json::object();
}

BrickPtr make_gated_conv_chain(const Json& attributes) {
  const AttributeReader read(attributes, "gated_conv_chain", {"residual"});
  return std::make_shared<GatedConvChain>(read.boolean("residual", false));
}

void GatedConvChain::adopt(const std::string& name, BrickPtr child) {
  if (has_slot(name)) {
    slot(name).exchange(std::move(child));
  } else {
    add_slot(name, std::move(child));
  }
}

void GatedConvChain::check_slots() const {
  for (const auto& slot : slots()) {
    if (slot->empty() && slot.get() != shortcut_) {
      fail(Code::config, "{}: empty; a chain has no use for that", slot->name());
    }
  }
}

at::Tensor GatedConvChain::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = x, mask;
  for (const auto& slot : slots()) {
    if (slot.get() == shortcut_) continue;
    if (auto* unit = dynamic_cast<GatedConvUnit*>(slot->get().get())) {
      const Context::Scope scope(context, slot->name());
      const at::Tensor input = y;
      std::tie(y, mask) = unit->forward_masked(input, mask, context);
      if (context.watcher != nullptr) context.watcher->after(context.path(), *unit, input, y);
      continue;
    }
    // A pool leaves channels of zeros what they are.
    if (dynamic_cast<const Pool2d*>(slot->get().get()) == nullptr) mask = at::Tensor();
    y = slot->forward(y, context);
  }
  if (!residual_) return y;
  return at::relu(y + (shortcut_->empty() ? x : shortcut_->forward(x, context)));
}

Shape GatedConvChain::output_shape(const Shape& input) const {
  Shape shape = input;
  for (const auto& slot : slots()) {
    if (slot.get() != shortcut_) shape = slot->output_shape(shape);
  }
  if (!residual_) return shape;
  const Shape passed = shortcut_->empty() ? input : shortcut_->output_shape(input);
  if (passed != shape) {
    fail(Code::shape, "gated_conv_chain: the shortcut gives {}, the branch {}", to_string(passed),
         to_string(shape));
  }
  return shape;
}

Cost GatedConvChain::cost(const Shape& input) const {
  Cost total;
  Shape shape = input;
  for (const auto& slot : slots()) {
    if (slot.get() == shortcut_) continue;
    total += slot->cost(shape);
    shape = slot->output_shape(shape);
  }
  if (residual_ && !shortcut_->empty()) total += shortcut_->cost(input);
  return total;
}

bundle::Value GatedConvChain::lower(bundle::Builder& builder, const bundle::Value& x,
                                    const std::string& path) const {
  bundle::Value y = x;
  std::optional<bundle::Value> mask;
  for (const auto& slot : slots()) {
    if (slot.get() == shortcut_) continue;
    if (const auto* unit = dynamic_cast<const GatedConvUnit*>(slot->get().get())) {
      std::tie(y, mask) = unit->lower_masked(builder, y, mask, join_path(path, slot->name()));
      continue;
    }
    if (dynamic_cast<const Pool2d*>(slot->get().get()) == nullptr) mask.reset();
    y = slot->lower(builder, y, path);
  }
  if (!residual_) return y;
  const bundle::Value passed = shortcut_->empty() ? x : shortcut_->lower(builder, x, path);
  y = builder.node("add", join_path(path, "add"), {passed, y});
  return builder.node("activation", join_path(path, "sum_act"), {y},
                      {{"kind", std::string("relu")}});
}

}  // namespace sluice::lab
