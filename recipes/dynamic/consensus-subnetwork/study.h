// One comparison: a dense residual network, the consensus sub-network of one gated training run,
// the same MACs trained from scratch, and the controls. Shared by the recipe and by `sluice
// quickstart`.
#pragma once
#include <c10/core/Device.h>

#include <optional>
#include <string>
#include <vector>

#include "sluice/base/plot.h"
#include "sluice/lab/train/consensus.h"

namespace sluice::recipes::consensus_subnetwork {

struct StudyOptions {
  Json model = Json::object();  ///< options of the reference network "resnet"
  data::LoadOptions data;
  std::string data_name = "fashion-mnist";
  lab::TrainOptions train;
  lab::ConsensusOptions consensus;
  c10::Device device{c10::kCPU};
  uint64_t seed = 1;
  std::string directory;        ///< bundles go here
  bool random_mask = true;      ///< also train the random-mask control
  double block_kept = 0;        ///< > 0: also the block variant with this share kept
  std::vector<int> threads{1};  ///< thread counts for the engine's latencies
};

/// What one network of the study is and does. Fields that were not measured stay unset.
struct StudyArm {
  std::string name, role;  ///< role as in a report
  lab::Model model;        ///< as deployed: sliced, norms folded
  std::string bundle_path;
  double accuracy = 0;  ///< on test data
  int64_t parameters = 0, bytes = 0;
  double macs = 0;  ///< per image: metered by the engine, else the model's own count
  double train_seconds = 0;
  std::optional<double> latency_batch1,
      latency_batch64;  ///< seconds per run, one thread, median of interleaved rounds
  std::optional<double> latency_batch1_all, latency_batch64_all;  ///< the same with all cores
  // Gated arms only:
  std::optional<double>
      consensus_gap;  ///< mean of 4 m (1 - m) over gates on test data before the freeze
  std::optional<double> freeze_flips;  ///< share of test predictions that the freeze alone changes
  std::optional<double> gated_accuracy;  ///< before the freeze
  std::optional<double>
      freeze_loss;  ///< accuracy lost by the freeze alone, before any further training
  std::vector<double> gate_means;  ///< m_j of every gate on test data before the freeze
  Json gate_history;               ///< of train_consensus
  std::vector<std::pair<std::string, double>> kept;  ///< share of channels kept, by layer
};

struct Study {
  std::vector<StudyArm>
      arms;  ///< dense, consensus, small-from-scratch, no-polarization, then the optional ones
  double engine_parity = 0;  ///< largest relative difference of lab and engine logits over the arms
  std::string device;
  const StudyArm& arm(const std::string& name) const;
};

Study run_study(const StudyOptions& options);

/// Pictures of a study: kept channels per layer, histograms of gate means with and without
/// polarization, kept share over steps, accuracy against MACs.
std::vector<std::pair<std::string, Figure>> study_figures(const Study& study);

/// Reads {model, data, train, consensus} settings of recipe.toml into options.
StudyOptions study_options(const Json& settings);

}  // namespace sluice::recipes::consensus_subnetwork
