// Heads and gates on cached features: warm-up, then in turns (Regol et al. 2024, section 4).
#include <torch/types.h>

#include <cmath>

#include "recipes/dynamic/jei-dnn/study.h"
#include "sluice/base/progress.h"
#include "sluice/base/random.h"
#include "sluice/lab/train/alternate.h"

namespace sluice::recipes::jei_dnn {
namespace {

template <class Bricks>
lab::NamedParameters parameters_of(const Bricks& bricks) {
  lab::NamedParameters result;
  for (size_t i = 0; i < bricks.size(); ++i) {
    for (const auto& item : bricks[i]->named_parameters())
      result.emplace_back(fmt::format("{}.{}", i, item.key()), item.value());
  }
  return result;
}

void zero_gradients(const lab::NamedParameters& parameters) {
  for (const auto& [name, parameter] : parameters) {
    at::Tensor tensor = parameter;
    if (tensor.grad().defined()) tensor.mutable_grad().zero_();
  }
}

/// Rows of the features in an order that depends on (seed, epoch).
class Batches {
 public:
  Batches(const Features& features, int64_t batch, uint64_t seed)
      : features_(features), batch_(batch), seed_(seed) {}
  int64_t per_epoch() const { return features_.labels.size(0) / batch_; }
  Features at(int64_t step) {
    const int64_t epoch = step / per_epoch();
    if (epoch != epoch_) {
      auto generator = at::make_generator<at::CPUGeneratorImpl>(
          derive_seed(seed_, "order", static_cast<uint64_t>(epoch)));
      order_ =
          at::randperm(features_.labels.size(0), generator, at::TensorOptions().dtype(at::kLong))
              .to(features_.labels.device());
      epoch_ = epoch;
    }
    const at::Tensor rows = order_.narrow(0, step % per_epoch() * batch_, batch_);
    Features part;
    for (const at::Tensor& each : features_.pooled)
      part.pooled.push_back(each.index_select(0, rows));
    part.last = features_.last.index_select(0, rows);
    part.labels = features_.labels.index_select(0, rows);
    return part;
  }

 private:
  const Features& features_;
  int64_t batch_, epoch_ = -1;
  uint64_t seed_;
  at::Tensor order_;
};

at::Tensor head_loss(const Features& features, const Heads& heads, size_t l) {
  lab::Context context;
  return at::cross_entropy_loss(heads[l]->forward(features.pooled[l], context), features.labels);
}

/// 0 and 1 for every gate: exits before the best one stay shut, it and all behind it open.
at::Tensor gate_labels(const at::Tensor& best, int64_t gates) {
  const at::Tensor index = at::arange(gates, best.options());
  return index.unsqueeze(0) >= best.unsqueeze(1);
}

/// Shut labels per open one, by gate; 1 for a gate without open ones.
at::Tensor positive_weights(const at::Tensor& labels) {
  const at::Tensor open = labels.to(at::kFloat).sum(0);
  const at::Tensor shut = double(labels.size(0)) - open;
  return at::where(open > 0, shut / open.clamp_min(1), at::ones_like(open));
}

}  // namespace

void warm_up(const Plan& plan, const Features& train, const Features& validation, Heads& heads,
             uint64_t seed) {
  lab::OptimizerOptions options;
  options.rate = plan.rate;
  options.weight_decay = plan.weight_decay;
  const auto parameters = parameters_of(heads);
  const auto optimizer = lab::build_optimizer(options, parameters);
  Batches batches(train, plan.batch, derive_seed(seed, "warm"));
  std::vector<double> least(heads.size(), INFINITY);
  std::vector<int64_t> since(heads.size(), 0);
  Heads best = copy_of(heads);
  Progress progress("jei-dnn: heads", plan.warm_epochs, "epochs");
  for (int64_t epoch = 0; epoch < plan.warm_epochs; ++epoch) {
    for (int64_t i = 0; i < batches.per_epoch(); ++i) {
      const Features batch = batches.at(epoch * batches.per_epoch() + i);
      zero_gradients(parameters);
      at::Tensor loss;
      for (size_t l = 0; l < heads.size(); ++l) {
        if (since[l] >= plan.patience) continue;  // finished: its best weights are kept below
        const at::Tensor one = head_loss(batch, heads, l);
        loss = loss.defined() ? loss + one : one;
      }
      loss.backward();
      optimizer->step();
    }
    bool all_done = true;
    for (size_t l = 0; l < heads.size(); ++l) {
      if (since[l] >= plan.patience) continue;
      const torch::NoGradGuard no_grad;
      const double loss = head_loss(validation, heads, l).item<double>();
      since[l] = loss < least[l] ? 0 : since[l] + 1;
      if (loss < least[l]) {
        least[l] = loss;
        best[l] = copy_of({heads[l]}).front();
      }
      all_done = all_done && since[l] >= plan.patience;
    }
    progress.update(epoch + 1);
    if (all_done) break;
  }
  heads = best;
}

Joint train_jointly(const Plan& plan, const Features& train, const Features& validation,
                    const Heads& warm, const std::vector<double>& cost, const JointOptions& options,
                    uint64_t seed) {
  Joint joint;
  joint.lambda = options.lambda;
  joint.heads = copy_of(warm);
  joint.gates = fresh_gates(warm.size(), derive_seed(seed, "gates"), train.last.device());
  const auto count = static_cast<int64_t>(joint.gates.size());
  lab::OptimizerOptions sgd;
  sgd.rate = plan.rate;
  sgd.weight_decay = plan.weight_decay;
  Batches batches(train, plan.batch, derive_seed(seed, "joint"));
  const int64_t steps = plan.epochs * batches.per_epoch();
  at::Tensor weights = at::ones({count}, train.last.options());
  const auto heads_learn = [&](int64_t step) {
    const Features batch = batches.at(step);
    lab::Context context;
    std::vector<at::Tensor> logits;
    for (size_t l = 0; l < joint.heads.size(); ++l)
      logits.push_back(joint.heads[l]->forward(batch.pooled[l], context));
    logits.push_back(batch.last);
    const Answers said{at::stack(logits, 1), batch.labels, cost};
    const at::Tensor losses = exit_losses(said);
    const at::Tensor loss = losses.sum(1).mean();
    if (!options.weighted) return loss;
    const at::Tensor mass =
        lab::exit_mass(gate_values({said.logits.detach(), batch.labels, cost}, joint.gates));
    const at::Tensor answered = (mass * losses).sum(1).mean();
    return answered * (loss / answered.clamp_min(1e-12)).detach();
  };
  const auto gates_learn = [&](int64_t step) {
    const Answers said = answers(batches.at(step), joint.heads, cost);
    at::Tensor best = cheapest_exit(exit_losses(said), cost, options.lambda);
    if (options.permuted) {
      auto generator = at::make_generator<at::CPUGeneratorImpl>(
          derive_seed(seed, "permute", static_cast<uint64_t>(step)));
      best = best.index_select(
          0, at::randperm(best.size(0), generator, at::TensorOptions().dtype(at::kLong))
                 .to(best.device()));
    }
    lab::Context context;
    std::vector<at::Tensor> scores;
    for (size_t l = 0; l < joint.gates.size(); ++l)
      scores.push_back(joint.gates[l]->forward(said.logits.select(1, int64_t(l)), context));
    const at::Tensor labels = gate_labels(best, count).to(at::kFloat);
    return at::binary_cross_entropy_with_logits(at::cat(scores, 1), labels, {}, weights);
  };
  lab::AlternatingTrainer trainer({{"heads", parameters_of(joint.heads), sgd, heads_learn},
                                   {"gates", parameters_of(joint.gates), sgd, gates_learn}},
                                  plan.phase);
  Progress progress(fmt::format("jei-dnn: lambda {:.3g}", options.lambda), plan.epochs, "epochs");
  for (int64_t step = 0; step < steps; ++step) {
    const double turn = 0.5 * (1 + std::cos(M_PI * double(step) / double(steps)));
    trainer.run_step(step, plan.final_rate + (plan.rate - plan.final_rate) * turn);
    if ((step + 1) % batches.per_epoch() != 0) continue;
    const Answers held_out = answers(validation, joint.heads, cost);
    weights = positive_weights(
        gate_labels(cheapest_exit(exit_losses(held_out), cost, options.lambda), count));
    progress.update((step + 1) / batches.per_epoch());
  }
  const at::Tensor mass =
      lab::exit_mass(gate_values(answers(validation, joint.heads, cost), joint.gates)).mean(0);
  for (int64_t l = 0; l < mass.size(0); ++l) joint.mass.push_back(mass[l].item<double>());
  return joint;
}

}  // namespace sluice::recipes::jei_dnn
