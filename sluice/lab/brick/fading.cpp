#include "sluice/lab/brick/fading.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {

FadingActivation::FadingActivation(const std::string& function)
    : amount(register_buffer("amount", at::zeros({1}))), function_(function) {
  const Activation check(function);  // throws for an unknown name
}

Json FadingActivation::attributes() const { return {{"function", function_}}; }

BrickPtr make_fading_activation(const Json& attributes) {
  const AttributeReader read(attributes, "fading_activation", {"function"});
  return std::make_shared<FadingActivation>(read.text("function", "relu"));
}

at::Tensor FadingActivation::forward(const at::Tensor& x, Context&) {
  // Exactly x at 1 and f(x) at 0.
  return at::lerp(activate(function_, x), x, amount.to(x.scalar_type()));
}

bundle::Value FadingActivation::lower(bundle::Builder& builder, const bundle::Value& x,
                                      const std::string& path) const {
  const double now = value();
  if (now == 1) return x;
  const std::string node = node_path_of(path, *this);
  if (now == 0) return builder.node("activation", node, {x}, {{"kind", function_}});
  if (function_ != "relu") {
    fail(Code::unsupported, "{}: {} that has faded by {:g} has no node in the engine", node,
         function_, now);
  }
  return builder.node("unary", node, {x}, {{"kind", std::string("leaky_relu")}, {"alpha", now}});
}

void FadingActivation::set_amount(double value) {
  require_range(value, 0.0, 1.0, "amount", "fading_activation");
  const at::NoGradGuard no_grad;
  amount.fill_(value);
}

double FadingActivation::value() const { return amount.item<double>(); }

int64_t set_fade(Brick& root, double amount) {
  require_range(amount, 0.0, 1.0, "amount", "fading_activation");
  int64_t count = 0;
  const auto set = [&](Brick* brick) {
    if (auto* fading = dynamic_cast<FadingActivation*>(brick)) {
      fading->set_amount(amount);
      ++count;
    }
  };
  set(&root);
  for (const SlotRef& ref : walk(root)) set(ref.slot->get().get());
  return count;
}

}  // namespace sluice::lab
