// Training and measuring the arms of one seed.
#pragma once
#include "recipes/dynamic/adaptive-computation-modules/plan.h"
#include "sluice/lab/brick/prefix_mlp.h"
#include "sluice/lab/gate/ordinal.h"

namespace sluice::recipes::acm {

inline constexpr const char* kLayers = "blocks.*.ffn";  ///< what becomes modules

/// A network with modules in place of its feed-forward networks, on the test split.
struct Measured {
  double accuracy = 0;  ///< percent
  double share = 0;     ///< of the dense feed-forward MACs, gates included; metered
  int64_t tokens = 0;   ///< of an image
  double macs = 0;      ///< of the whole network, per image; metered
  /// Mean learners of the patches without a garment over those of patches that it covers by half.
  double background_share = 0;
  at::Tensor histogram;  ///< [layers, choices]: how often each was taken
  at::Tensor loads;      ///< [images, tokens]: learners summed over layers, of the first images
};

class Study {
 public:
  Study(const Plan& plan, const data::ImageSet& data, c10::Device device, uint64_t seed);

  lab::Model train_dense();
  /// A fresh set of modules; with `choice` >= 0 that many learners for every token, no gates.
  lab::Model modules(const lab::Model& dense, int64_t choice = -1) const;
  /// Phase 1: every prefix of every module is drawn to the layer that it replaces.
  void distill(const lab::Model& dense, lab::Model& model);
  /// Phase 2: gates learn where one learner more stops helping.
  void teach_gates(const lab::Model& dense, lab::Model& model);
  /// Phase 3: everything learns the task; with `budget` > 0 under the three losses of the gates.
  lab::Model tune(const std::string& title, const lab::Model& model, double budget);

  Measured measure(lab::Model& model) const;
  double accuracy(lab::Model& model) const;
  /// By layer: relative error |h_k - y| / |y| for k = 0..N on test images.
  std::vector<std::vector<double>> prefix_errors(const lab::Model& dense, lab::Model& model) const;

 private:
  int64_t steps(double epochs, int64_t batch) const;
  const Plan& plan_;
  const data::ImageSet& data_;
  c10::Device device_;
  uint64_t seed_;
  lab::Feed train_, test_;
};

/// Puts `wrap`(gate) into every module of a copy.
lab::Model with_gates(const lab::Model& model,
                      const std::function<lab::BrickPtr(lab::BrickPtr)>& wrap);

/// Around a gate: the same choices, but dealt to other tokens of the batch.
class DealtGate final : public lab::ChoiceGate {
 public:
  DealtGate(lab::BrickPtr gate, uint64_t seed);
  std::string kind() const override { return "dealt_gate"; }
  Json attributes() const override;
  int64_t choices() const override { return gate_->choices(); }
  at::Tensor choose(const at::Tensor& x, const at::Tensor& macs, lab::Context& context) override;
  Cost cost(const Shape& input) const override { return gate_->cost(input); }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override;

 private:
  std::shared_ptr<lab::ChoiceGate> gate_;
  at::Generator generator_;
};

/// Draws every choice from one histogram, at the price of the gate it stands for.
class HistogramGate final : public lab::ChoiceGate {
 public:
  HistogramGate(lab::BrickPtr gate, at::Tensor shares, uint64_t seed);
  std::string kind() const override { return "histogram_gate"; }
  Json attributes() const override;
  int64_t choices() const override { return gate_->choices(); }
  at::Tensor choose(const at::Tensor& x, const at::Tensor& macs, lab::Context& context) override;
  Cost cost(const Shape& input) const override { return gate_->cost(input); }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override;

 private:
  std::shared_ptr<lab::ChoiceGate> gate_;
  at::Tensor shares_;
  at::Generator generator_;
};

}  // namespace sluice::recipes::acm
