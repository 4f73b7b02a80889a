#include "sluice/lab/brick/prefix_mlp.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/gate/ordinal.h"

namespace sluice::lab {

PrefixMlp::PrefixMlp(int64_t learners, const std::string& activation)
    : learners_(require_range(learners, 1, 1024, "learners", "prefix_mlp")),
      activation_(activation) {
  if (activation != "identity") const Activation check(activation);  // throws for an unknown name
  up_ = &add_slot("up", nullptr);
  down_ = &add_slot("down", nullptr);
  gate_ = &add_slot("gate", nullptr);
}

std::shared_ptr<PrefixMlp> make_prefix_mlp(const PrefixMlpSizes& sizes) {
  auto result = std::make_shared<PrefixMlp>(sizes.learners, sizes.activation);
  const int64_t neurons = checked_mul(sizes.learners, sizes.width, "neurons of prefix_mlp");
  result->slot("up").exchange(std::make_shared<Linear>(sizes.inputs, neurons));
  result->slot("down").exchange(std::make_shared<Linear>(neurons, sizes.outputs, /*bias=*/false));
  return result;
}

Json PrefixMlp::attributes() const {
  return {{"learners", learners_}, {"activation", activation_}};
}

BrickPtr make_prefix_mlp(const Json& attributes) {
  const AttributeReader read(attributes, "prefix_mlp", {"learners", "activation"});
  return std::make_shared<PrefixMlp>(read.integer("learners"), read.text("activation", "gelu"));
}

void PrefixMlp::check_slots() const {
  const auto* up = dynamic_cast<const Linear*>(up_->get().get());
  const auto* down = dynamic_cast<const Linear*>(down_->get().get());
  if (up == nullptr) fail(Code::config, "up: expected a linear layer");
  if (down == nullptr || down->bias.defined()) {
    fail(Code::config, "down: expected a linear layer without bias");
  }
  if (up->outputs() % learners_ != 0 || down->inputs() != up->outputs()) {
    fail(Code::config, "prefix_mlp: {} neurons up and {} down; expected the same multiple of {}",
         up->outputs(), down->inputs(), learners_);
  }
  if (gate_->empty()) return;
  if (gate() == nullptr) {
    fail(Code::config, "gate: expected an ordinal_gate or constant_choice, found a {}",
         (**gate_).kind());
  }
  if (gate()->choices() != learners_ + 1) {
    fail(Code::config, "gate: expected {} choices, found {}", learners_ + 1, gate()->choices());
  }
}

int64_t PrefixMlp::width() const { return up_->as<Linear>().outputs() / learners_; }
int64_t PrefixMlp::macs_of_learner() const {
  return width() * (up_->as<Linear>().inputs() + down_->as<Linear>().outputs());
}
ChoiceGate* PrefixMlp::gate() const { return dynamic_cast<ChoiceGate*>(gate_->get().get()); }

at::Tensor PrefixMlp::activated(const at::Tensor& x) const {
  const auto& up = up_->as<Linear>();
  const at::Tensor h = at::linear(x, up.weight, up.bias);
  return activation_ == "identity" ? h : activate(activation_, h);
}

at::Tensor PrefixMlp::prefixes(const at::Tensor& x) const {
  const auto& down = down_->as<Linear>();
  const at::Tensor h = activated(x.reshape({-1, x.size(-1)}))
                           .unflatten(-1, {learners_, width()})
                           .transpose(0, 1);  // [N, rows, width]
  const at::Tensor v = down.weight.unflatten(1, {learners_, width()}).permute({1, 2, 0});
  const at::Tensor sums = at::bmm(h, v).cumsum(0);
  return at::cat({at::zeros_like(sums.narrow(0, 0, 1)), sums});
}

at::Tensor PrefixMlp::forward(const at::Tensor& x, Context& context) {
  at::Tensor h = activated(x);
  const int64_t rows = x.numel() / x.size(-1);
  int64_t ran = rows * learners_;  // learners times rows
  if (!gate_->empty()) {
    at::Tensor g;
    {
      const Context::Scope scope(context, gate_->name());
      at::Tensor macs;
      if (context.gate_log != nullptr) {
        macs = at::arange(learners_ + 1, x.options().requires_grad(false)) *
               static_cast<double>(macs_of_learner());
      }
      g = gate()->choose(x, macs, context);
    }
    // Learner n counts for the choices n..N; as it is linear in its neurons, they can be scaled.
    const at::Tensor counts = g.flip(-1).cumsum(-1).flip(-1).slice(-1, 1);  // [.., N]
    if (context.meter != nullptr) ran = counts.detach().sum().round().item<int64_t>();
    h = (h.unflatten(-1, {learners_, width()}) * counts.unsqueeze(-1)).flatten(-2);
  }
  const auto& up = up_->as<Linear>();
  const auto& down = down_->as<Linear>();
  at::Tensor y = at::linear(h, down.weight);
  if (context.meter != nullptr) {
    const Context::Scope scope(context, "learners");
    context.meter->add(
        context.path(), ran * macs_of_learner(),
        tensor_bytes(x) + tensor_bytes(y) + tensor_bytes(up.weight) + tensor_bytes(down.weight));
  }
  return y;
}

Shape PrefixMlp::output_shape(const Shape& input) const {
  return down_->output_shape(up_->output_shape(input));
}

Cost PrefixMlp::cost(const Shape& input) const {
  Cost total = up_->cost(input) + down_->cost(up_->output_shape(input));
  if (!gate_->empty()) total += gate_->cost(input);
  return total;
}

/// Learners [first, first + count) as one network.
bundle::Value PrefixMlp::lower_learner(bundle::Builder& builder, const bundle::Value& x,
                                       int64_t first, int64_t count,
                                       const std::string& path) const {
  const auto& up = up_->as<Linear>();
  const auto& down = down_->as<Linear>();
  const int64_t from = first * width(), neurons = count * width();
  const std::string at = join_path(path, fmt::format("learner{}", first + 1));
  const std::map<std::string, std::string> in = {{"weight", at + ".up.weight"},
                                                 {"bias", at + ".up.bias"}},
                                           out = {{"weight", at + ".down.weight"}};
  add_tensor(builder, in.at("weight"), up.weight.detach().narrow(0, from, neurons));
  add_tensor(builder, in.at("bias"), up.bias.detach().narrow(0, from, neurons));
  add_tensor(builder, out.at("weight"), down.weight.detach().narrow(1, from, neurons).contiguous());
  bundle::Value h = builder.node("linear", at + ".up", {x}, {}, in);
  if (activation_ != "identity") {
    h = builder.node("activation", at + ".act", {h}, {{"kind", activation_}});
  }
  return builder.node("linear", at + ".down", {h}, {}, out);
}

bundle::Value PrefixMlp::lower(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const {
  const auto zeros = [&] {
    if (down_->as<Linear>().outputs() != x.shape.back()) {
      fail(Code::unsupported, "{}: rows that skip all learners need as many outputs as inputs ({})",
           node_path_of(path, *this), to_string(x.shape));
    }
    return builder.node("unary", join_path(path, "zeros"), {x},
                        {{"kind", std::string("clip")}, {"alpha", 0.0}, {"beta", 0.0}});
  };
  if (gate_->empty()) return lower_learner(builder, x, 0, learners_, path);
  if (const auto* constant = dynamic_cast<const ConstantChoice*>(gate())) {
    if (constant->choice() == 0) return zeros();
    return lower_learner(builder, x, 0, constant->choice(), path);
  }
  // Choices are taken on all rows; then rows leave, learner by learner, and come back in reverse.
  // Learners that every row takes stay together and before that.
  const auto* ordinal = dynamic_cast<const OrdinalGate*>(gate());
  const int64_t always = ordinal == nullptr ? 0 : ordinal->least();
  const bundle::Value choice = gate_->lower(builder, x, path);
  const bundle::Value base = always == 0 ? zeros() : lower_learner(builder, x, 0, always, path);
  struct Level {
    bundle::Value output, keep;
  };
  std::vector<Level> levels;
  bundle::Value rows = x, left = choice;
  for (int64_t n = always + 1; n <= learners_; ++n) {
    const std::string at = join_path(path, fmt::format("learner{}", n));
    const bundle::Value keep =
        builder.node("threshold", at + ".keep", {left}, {{"value", static_cast<double>(n) - 0.5}});
    rows = builder.node("compact_rows", at + ".rows", {rows, keep});
    if (n < learners_) left = builder.node("compact_rows", at + ".choice", {left, keep});
    levels.push_back({lower_learner(builder, rows, n - 1, 1, path), keep});
  }
  if (levels.empty()) return base;
  bundle::Value sum = levels.back().output;
  for (size_t i = levels.size(); i-- > 0;) {
    const std::string at =
        join_path(path, fmt::format("learner{}", always + static_cast<int64_t>(i) + 1));
    sum = builder.node("scatter_rows", at + ".sum",
                       {i > 0 ? levels[i - 1].output : base, sum, levels[i].keep},
                       {{"mode", std::string("add")}});
  }
  return sum;
}

// ---- losses ----

at::Tensor prefix_loss(const PrefixMlp& mlp, const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor h = mlp.prefixes(x);
  return at::mse_loss(h, y.reshape({1, -1, y.size(-1)}).expand_as(h));
}

at::Tensor choice_label(const PrefixMlp& mlp, const at::Tensor& x, const at::Tensor& y,
                        double gain) {
  const at::NoGradGuard no_grad;
  const at::Tensor errors = (mlp.prefixes(x) - y.reshape({1, -1, y.size(-1)})).norm(2, -1);
  const int64_t n = mlp.learners();
  const at::Tensor ratio = errors.narrow(0, 0, n) / errors.narrow(0, 1, n).clamp_min(1e-12);
  const at::Tensor enough = (ratio < gain).to(at::kLong);
  // A row of ones at the end stands for N; argmax finds the first of equal ones.
  const at::Tensor order = at::arange(n + 1, 0, -1, enough.options()).unsqueeze(1);
  return (at::cat({enough, at::ones_like(enough.narrow(0, 0, 1))}) * order).argmax(0);
}

at::Tensor choice_loss(const PrefixMlp& mlp, const at::Tensor& x, const at::Tensor& y,
                       double gain) {
  auto* gate = dynamic_cast<OrdinalGate*>(mlp.gate());
  if (gate == nullptr)
    fail(Code::usage, "choice_loss: the prefix_mlp has no ordinal gate to teach");
  const at::Tensor logits = gate->logits(x.reshape({-1, x.size(-1)}));
  return at::cross_entropy_loss(logits, choice_label(mlp, x, y, gain));
}

}  // namespace sluice::lab
