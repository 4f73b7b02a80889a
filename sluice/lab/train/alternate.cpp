#include "sluice/lab/train/alternate.h"

#include <cmath>
#include <set>

#include "sluice/base/error.h"

namespace sluice::lab {
namespace {

/// While one lives, these parameters require no gradient.
class Frozen {
 public:
  void add(const NamedParameters& parameters) {
    for (const auto& [name, parameter] : parameters) {
      if (!parameter.requires_grad()) continue;
      frozen_.push_back(parameter);
      frozen_.back().set_requires_grad(false);
    }
  }
  ~Frozen() {
    for (at::Tensor& parameter : frozen_) parameter.set_requires_grad(true);
  }

 private:
  std::vector<at::Tensor> frozen_;
};

}  // namespace

AlternatingTrainer::AlternatingTrainer(std::vector<Turn> turns, int64_t period)
    : turns_(std::move(turns)), period_(period) {
  if (turns_.size() < 2)
    fail(Code::config, "training in turns: {} turns; at least two are needed", turns_.size());
  if (period < 1)
    fail(Code::config, "training in turns: expected a period of 1 step or more, found {}", period);
  std::set<const void*> seen;
  for (const Turn& turn : turns_) {
    if (turn.parameters.empty() || !turn.loss)
      fail(Code::config, "training in turns: turn '{}' has no {}", turn.name,
           turn.loss ? "parameters" : "loss");
    for (const auto& [name, parameter] : turn.parameters) {
      if (!seen.insert(parameter.unsafeGetTensorImpl()).second)
        fail(Code::config, "training in turns: '{}' of turn '{}' learns in another turn, too", name,
             turn.name);
    }
    optimizers_.push_back(build_optimizer(turn.optimizer, turn.parameters));
  }
}

AlternatingTrainer::~AlternatingTrainer() = default;

size_t AlternatingTrainer::turn_at(int64_t step) const {
  return static_cast<size_t>(step / period_) % turns_.size();
}

double AlternatingTrainer::run_step(int64_t step, double rate) {
  const size_t index = turn_at(step);
  const Turn& turn = turns_[index];
  Frozen frozen;
  for (size_t i = 0; i < turns_.size(); ++i)
    if (i != index) frozen.add(turns_[i].parameters);
  for (const auto& [name, parameter] : turn.parameters) {
    at::Tensor tensor = parameter;
    if (tensor.grad().defined()) tensor.mutable_grad().zero_();
  }
  const at::Tensor loss = turn.loss(step);
  const auto value = loss.item<double>();
  if (!std::isfinite(value))
    fail(Code::numeric, "training in turns: step {} of turn '{}' has a loss of {}", step, turn.name,
         value);
  loss.backward();
  optimizers_[index]->set_rate(rate);
  optimizers_[index]->step();
  return value;
}

}  // namespace sluice::lab
