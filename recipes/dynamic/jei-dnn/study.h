// Backbone, features of its exits, and the training of heads and gates on them.
#pragma once
#include <c10/core/Device.h>

#include <memory>
#include <string>
#include <vector>

#include "recipes/dynamic/jei-dnn/policy.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/exits.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::jei_dnn {

struct Plan {
  std::string data;
  data::LoadOptions load;
  std::vector<int64_t> widths;
  int64_t blocks = 3, backbone_epochs = 4, backbone_batch = 128;
  double backbone_rate = 0.1, validation = 0.1;
  int64_t warm_epochs = 15, patience = 2, epochs = 10, phase = 200, batch = 64, refine = 3;
  double rate = 0.01, final_rate = 2e-4, weight_decay = 5e-4, target_cost = 0.5;
  std::vector<double> lambdas;
};
Plan read_plan(const Json& settings);

/// What the heads read, computed once by the frozen backbone.
struct Features {
  std::vector<at::Tensor> pooled;  ///< by early exit, [N, D]
  at::Tensor last;                 ///< [N, classes] logits of the backbone's own head
  at::Tensor labels;               ///< [N]
};

using Heads = std::vector<std::shared_ptr<lab::Linear>>;
using Gates = std::vector<std::shared_ptr<lab::ExitGate>>;

struct Splits {
  data::Split train, validation;
};
Splits split(const Plan& plan, const data::ImageSet& data, uint64_t seed);

/// A residual network, trained; flat: stem, block1, ..., blockL, pool, fc.
lab::Model train_backbone(const Plan& plan, const data::ImageSet& data, const data::Split& train,
                          uint64_t seed, c10::Device device);
/// The pooling of the head behind a block whose output is [C, H, W].
std::shared_ptr<lab::Sequential> exit_pool(const Shape& shape);
Features make_features(const Plan& plan, lab::Model& backbone, const data::ImageSet& data,
                       const data::Split& split, c10::Device device);
/// Backbone, heads and gates as one chain of exits; everything copied.
lab::Model make_chain(const lab::Model& backbone, const Heads& heads, const Gates& gates,
                      const std::string& rule);
/// By exit, in shares of the backbone's MACs.
std::vector<double> exit_costs(const lab::Model& backbone, const lab::Model& chain);

Heads fresh_heads(const Features& features, uint64_t seed);
Gates fresh_gates(size_t count, uint64_t seed, c10::Device device);
/// Gates that leave by thresholds.
Gates threshold_gates(Score score, const std::vector<double>& thresholds);
Heads copy_of(const Heads& heads);
/// Sum of cross-entropies until each head's validation loss has not fallen for `patience` epochs.
void warm_up(const Plan& plan, const Features& train, const Features& validation, Heads& heads,
             uint64_t seed);

Answers answers(const Features& features, const Heads& heads, const std::vector<double>& cost);
/// sigmoid of the gates, [N, L - 1].
at::Tensor gate_values(const Answers& answers, const Gates& gates);

struct JointOptions {
  double lambda = 0.7;
  bool weighted = true;   ///< heads learn from the samples that leave there
  bool permuted = false;  ///< control: the gates' labels are those of other samples of the batch
};
/// Heads and gates together, in turns.
struct Joint {
  double lambda = 0;
  Heads heads;
  Gates gates;
  std::vector<double> mass;  ///< mean P_l on validation data at the end
};
Joint train_jointly(const Plan& plan, const Features& train, const Features& validation,
                    const Heads& warm, const std::vector<double>& cost, const JointOptions& options,
                    uint64_t seed);

}  // namespace sluice::recipes::jei_dnn
