// The networks of the comparison: dense, with predictors, with static filters; and gates that are
// controls.
#pragma once
#include "sluice/data/dataset.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes::fire_together {

struct Layout {
  std::vector<int64_t> widths;  ///< of the convolutions; with blocks: of the stages
  std::vector<int64_t> pools;   ///< convolutions behind which a 2x2 max pool stands, from 1
  int64_t blocks = 0;           ///< residual blocks of a stage; 0: a plain chain
  int64_t embedding = 32;       ///< inputs a predictor should have, about: few channels keep places
  bool softmax = true;          ///< over what a predictor reads
};

/// No gates yet.
lab::Model make_network(const Layout& layout, const data::ImageSet& data, uint64_t seed);

/// What is fed to the gates: ours (no gradient but the label's), or gates that learn from the task.
enum class Predictor : uint8_t { labelled, from_task };
/// A copy with a gate in every unit, all open at first (bias 2), weights from (seed, path).
lab::Model with_predictors(const lab::Model& model, const Layout& layout, Predictor kind,
                           uint64_t seed);

/// A copy without the filters of smallest L1 norm, the same share of every layer whose outputs are
/// read by one layer only; the smallest such network that has at least `macs` per image.
lab::Model sliced_to(const lab::Model& model, double macs);

/// Around a gate: decides for the image before it in the batch.
class NeighboursGate final : public lab::GateBrick {
 public:
  explicit NeighboursGate(lab::BrickPtr gate);
  std::string kind() const override { return "neighbours_gate"; }
  Json attributes() const override;
  int64_t units() const override { return gate_->units(); }
  at::Tensor decide(const at::Tensor& x, const at::Tensor& unit_macs,
                    lab::Context& context) override;
  Cost cost(const Shape& input) const override { return gate_->cost(input); }
  bundle::Value lower(bundle::Builder&, const bundle::Value&, const std::string&) const override;

 private:
  std::shared_ptr<lab::GateBrick> gate_;
};

/// Around a gate: as many units per image, drawn at random.
class RandomLikeGate final : public lab::GateBrick {
 public:
  RandomLikeGate(lab::BrickPtr gate, uint64_t seed);
  std::string kind() const override { return "random_like_gate"; }
  Json attributes() const override;
  int64_t units() const override { return gate_->units(); }
  at::Tensor decide(const at::Tensor& x, const at::Tensor& unit_macs,
                    lab::Context& context) override;
  Cost cost(const Shape& input) const override { return gate_->cost(input); }
  bundle::Value lower(bundle::Builder&, const bundle::Value&, const std::string&) const override;

 private:
  std::shared_ptr<lab::GateBrick> gate_;
  at::Generator generator_;
};

/// Puts `wrap`(gate, path) into every gated unit of the model.
void replace_gates(lab::Model& model,
                   const std::function<lab::BrickPtr(lab::BrickPtr, const std::string&)>& wrap);

}  // namespace sluice::recipes::fire_together
