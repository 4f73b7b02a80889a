// Training and measuring the arms of one seed.
#pragma once
#include "recipes/dynamic/fire-together-wire-together/plan.h"
#include "sluice/lab/gate/label.h"

namespace sluice::recipes::fire_together {

/// One network on the test split.
struct Measured {
  double accuracy = 0;   ///< percent
  double macs = 0;       ///< metered, per image, predictors included
  double agreement = 0;  ///< percent of the decisions that are as the label; 0 without a label
  at::Tensor masks;      ///< [images, filters of all layers], of the first images; undefined: none
  at::Tensor labels;     ///< of these images
  std::vector<double> starts;  ///< where each layer's filters begin in `masks`, and the end
};

class Study {
 public:
  Study(const Plan& plan, const data::ImageSet& data, c10::Device device, uint64_t seed);

  lab::Model pretrain();
  /// The rest train a copy of what they get, all for the same steps over the same batches.
  lab::Model tune(const std::string& title, const lab::Model& model);
  /// Predictors learn the label of `rule` for their part of the steps, then stay.
  lab::Model wire(const std::string& title, const lab::Model& gated, const lab::LabelRule& rule);
  /// Gates learn from the task and an L1 penalty, whose strength follows the metered MACs until
  /// they are `macs`; for as long as predictors of the other arms learn.
  lab::Model penalize(const std::string& title, const lab::Model& gated, double macs);

  /// MACs per image of masks after `rule`, before training.
  double preview(const lab::Model& gated, const lab::LabelRule& rule) const;
  Measured measure(lab::Model& model, const lab::LabelRule& rule = {}) const;

  uint64_t seed() const { return seed_; }

 private:
  lab::TrainOptions options(const lab::TrainOptions& base, int64_t epochs,
                            const std::string& title) const;
  const Plan& plan_;
  c10::Device device_;
  uint64_t seed_;
  lab::Feed train_, test_;
  const data::ImageSet& data_;
};

/// How differently images are masked: 1 - |a and b| / |a or b|, mean over pairs of images of one
/// class and of different classes.
struct MaskDistance {
  double within = 0, between = 0;
  /// How much further masks of different classes are apart, as a share; 0 where none differ.
  double excess() const { return within > 0 ? between / within - 1 : 0; }
};
MaskDistance mask_distance(const Measured& measured);

}  // namespace sluice::recipes::fire_together
