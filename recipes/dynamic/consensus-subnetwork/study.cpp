#include "recipes/dynamic/consensus-subnetwork/study.h"

#include <filesystem>
#include <functional>

#include "sluice/base/config.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/progress.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/pass/pass.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/evaluate.h"
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::recipes::consensus_subnetwork {
namespace {

using lab::Model;

lab::PassInput pass_options(Json options, at::Tensor calibration = {}) {
  lab::PassInput input;
  input.options = std::move(options);
  input.calibration = std::move(calibration);
  return input;
}

/// A trained network as it would be deployed: closed units removed, norms folded.
Model deploy(const Model& trained) {
  Model sliced = lab::run_pass(trained, "slice-channels", pass_options(Json::object()));
  return lab::run_pass(sliced, "fold-norm", pass_options(Json::object()));
}

struct Lab {
  const StudyOptions& options;
  data::ImageSet data;
  lab::Feed train, test;

  Lab(const StudyOptions& o, data::ImageSet set)
      : options(o),
        data(std::move(set)),
        train(data.train, data.mean, data.std, o.device),
        test(data.test, data.mean, data.std, o.device) {}

  Model fresh() const {
    Model model = lab::make_model("resnet", options.model, data, options.seed);
    model.root->to(options.device);
    return model;
  }
  lab::TrainOptions training(const std::string& title) const {
    lab::TrainOptions train_options = options.train;
    train_options.seed = options.seed;
    train_options.title = title;
    return train_options;
  }
};

StudyArm finish(Lab& lab, const std::string& name, const std::string& role, const Model& trained,
                double seconds) {
  StudyArm arm;
  arm.name = name;
  arm.role = role;
  arm.train_seconds = seconds;
  arm.model = deploy(trained);
  arm.accuracy = lab::evaluate(arm.model, lab.test).accuracy;
  const Cost cost = arm.model.cost();
  arm.parameters = cost.params;
  arm.macs = static_cast<double>(cost.macs);
  Json measured = Json::object();
  measured["step"] = "measure";
  measured["accuracy"] = arm.accuracy;
  measured["split"] = "test";
  arm.model.add_step(measured);
  arm.bundle_path = lab.options.directory + "/" + name + ".safetensors";
  lab::save_bundle(arm.model, arm.bundle_path);
  arm.bytes = static_cast<int64_t>(std::filesystem::file_size(arm.bundle_path));
  return arm;
}

StudyArm train_plain(Lab& lab, const std::string& name, const std::string& role, Model model) {
  lab::Trainer trainer(model, lab.train, lab.training(name));
  const lab::TrainResult result = trainer.run();
  Json step = Json::object();
  step["step"] = "train";
  step["steps"] = result.steps;
  step["data"] = lab.data.name;
  model.add_step(step);
  return finish(lab, name, role, model, result.seconds);
}

void describe_gates(Lab& lab, StudyArm& arm, const lab::ConsensusResult& result) {
  Model gated = lab::clone(result.gated);
  const lab::LabEvaluation before = lab::evaluate(gated, lab.test, true);
  arm.gated_accuracy = before.accuracy;
  double gap = 0;
  for (const auto& [path, means] : before.gate_means) {
    const at::Tensor flat = means.to(at::kCPU, at::kDouble).contiguous();
    for (int64_t i = 0; i < flat.numel(); ++i) {
      const double m = flat.data_ptr<double>()[i];
      arm.gate_means.push_back(m);
      gap += 4 * m * (1 - m);
    }
  }
  if (!arm.gate_means.empty()) arm.consensus_gap = gap / static_cast<double>(arm.gate_means.size());

  // The freeze alone: the same network with its gates replaced by the majority, nothing trained or
  // re-estimated.
  const int64_t calibration =
      std::min<int64_t>(lab.options.consensus.calibration, lab.train.count());
  Model frozen = lab::run_pass(
      gated, "freeze-gates", pass_options(Json::object(), lab.train.range(0, calibration).inputs));
  const lab::LabEvaluation after = lab::evaluate(frozen, lab.test);
  arm.freeze_flips = before.predictions.ne(after.predictions).to(at::kDouble).mean().item<double>();
  arm.freeze_loss = before.accuracy - after.accuracy;
  arm.gate_history = result.gate_history;
}

/// Share of hidden channels that each residual block keeps; 0 for a block that was dropped.
std::vector<std::pair<std::string, double>> kept_channels(const Model& dense,
                                                          const Model& deployed) {
  std::map<std::string, int64_t> left;
  for (const auto& ref : lab::walk(*deployed.root)) {
    if (ref.slot->empty()) continue;
    for (const auto& group : (**ref.slot).channel_groups())
      left[join_path(ref.path, group.name)] = group.channels;
  }
  std::vector<std::pair<std::string, double>> kept;
  for (const auto& ref : lab::walk(*dense.root)) {
    if (ref.slot->empty() || (**ref.slot).kind() != "residual_block") continue;
    for (const auto& group : (**ref.slot).channel_groups()) {
      const auto found = left.find(join_path(ref.path, group.name));
      const double channels = found == left.end() ? 0 : static_cast<double>(found->second);
      kept.emplace_back(ref.path, channels / static_cast<double>(group.channels));
    }
  }
  return kept;
}

StudyArm train_gated(Lab& lab, const std::string& name, const std::string& role,
                     lab::ConsensusOptions options) {
  const lab::ConsensusResult result =
      lab::train_consensus(lab.fresh(), lab.train, lab.training(name), options);
  StudyArm arm = finish(lab, name, role, result.model, result.training.seconds);
  describe_gates(lab, arm, result);
  arm.kept = kept_channels(lab.fresh(), arm.model);
  return arm;
}

/// The dense network with hidden widths cut evenly until its MACs are those of `target`: what a
/// user would train without gates.
Model same_cost_network(Lab& lab, double target_macs) {
  double low = 0, high = 1;
  Model best = lab.fresh();
  double best_gap = std::abs(static_cast<double>(best.cost().macs) - target_macs);
  for (int i = 0; i < 12; ++i) {
    const double rate = (low + high) / 2;
    const Json options = {{"granularity", "channel"},
                          {"score", "random"},
                          {"rate", rate},
                          {"seed", lab.options.seed}};
    Model pruned = lab::run_pass(lab.fresh(), "prune", pass_options(options));
    Model model = lab::run_pass(pruned, "slice-channels", pass_options(Json::object()));
    const double macs = static_cast<double>(model.cost().macs);
    if (std::abs(macs - target_macs) < best_gap) {
      best_gap = std::abs(macs - target_macs);
      best = std::move(model);
    }
    (macs > target_macs ? low : high) = rate;
  }
  best.provenance = Json::array();
  return best;
}

#if SLUICE_HAS_ENGINE
void measure_on_engine(Lab& lab, Study& study) {
  std::vector<engine::Network> networks;
  for (StudyArm& arm : study.arms) {
    networks.push_back(engine::Network::open(arm.bundle_path));
    const engine::Evaluation evaluation = engine::evaluate(
        networks.back(), {lab.data.test.pixels, lab.data.test.labels, lab.data.mean, lab.data.std});
    arm.macs = evaluation.macs_per_sample;
    arm.accuracy = evaluation.accuracy;

    // The engine must compute what the lab trained.
    const int64_t count = std::min<int64_t>(64, lab.test.count());
    torch::NoGradGuard no_grad;
    lab::Context context;
    arm.model.root->eval();
    const at::Tensor inputs = lab.test.range(0, count).inputs;
    const at::Tensor expected =
        arm.model.forward(inputs, context).to(at::kCPU, at::kFloat).contiguous();
    const at::Tensor given = inputs.to(at::kCPU, at::kFloat).contiguous();
    at::Tensor found = torch::empty_like(expected);
    engine::Session session(networks.back(), {.batch = count});
    session.run({given.data_ptr<float>(), static_cast<size_t>(given.numel())},
                {found.data_ptr<float>(), static_cast<size_t>(found.numel())});
    study.engine_parity =
        std::max(study.engine_parity, ((found - expected).norm() / expected.norm()).item<double>());
  }
  const int all = describe_machine().cores;
  for (const int64_t batch : {int64_t{1}, int64_t{64}}) {
    for (const int threads : {1, all}) {
      std::vector<engine::Session> sessions;
      std::vector<std::function<void()>> calls;
      std::vector<float> input(static_cast<size_t>(batch * numel(networks.front().input_shape())));
      data::to_floats(lab.data.test, 0, batch, lab.data.mean, lab.data.std, input);
      std::vector<float> output(
          static_cast<size_t>(batch * numel(networks.front().output_shape())));
      for (const engine::Network& network : networks)
        sessions.emplace_back(network,
                              engine::Session::Options{.batch = batch, .threads = threads});
      for (engine::Session& session : sessions)
        calls.push_back([&] { session.run(input, output); });
      const std::vector<double> seconds = time_interleaved(calls, 11, 0.02);
      for (size_t i = 0; i < study.arms.size(); ++i) {
        StudyArm& arm = study.arms[i];
        if (threads == 1) (batch == 1 ? arm.latency_batch1 : arm.latency_batch64) = seconds[i];
        if (threads == all)
          (batch == 1 ? arm.latency_batch1_all : arm.latency_batch64_all) = seconds[i];
      }
    }
  }
}
#endif

}  // namespace

const StudyArm& Study::arm(const std::string& name) const {
  for (const StudyArm& arm : arms)
    if (arm.name == name) return arm;
  fail(Code::missing, "the study has no arm '{}'", name);
}

Study run_study(const StudyOptions& options) {
  make_directories(options.directory);
  Lab lab(options, data::load_image_set(options.data_name, options.data));
  Study study;
  study.arms.push_back(train_plain(lab, "dense", "baseline", lab.fresh()));
  study.arms.push_back(train_gated(lab, "consensus", "system", options.consensus));
  study.arms.push_back(train_plain(lab, "small-from-scratch", "baseline",
                                   same_cost_network(lab, study.arms.back().macs)));
  lab::ConsensusOptions without = options.consensus;
  without.polarization_weight = 0;
  study.arms.push_back(train_gated(lab, "no-polarization", "control", without));
  if (options.random_mask) {
    lab::ConsensusOptions random = options.consensus;
    random.mask_rule = "random";
    study.arms.push_back(train_gated(lab, "random-mask", "control", random));
  }
  if (options.block_kept > 0) {
    lab::ConsensusOptions blocks = options.consensus;
    blocks.granularity = "block";
    blocks.kept = options.block_kept;
    study.arms.push_back(train_gated(lab, "consensus-blocks", "system", blocks));
  }
#if SLUICE_HAS_ENGINE
  measure_on_engine(lab, study);
#endif
  return study;
}

std::vector<std::pair<std::string, Figure>> study_figures(const Study& study) {
  std::vector<std::pair<std::string, Figure>> figures;
  const StudyArm& consensus = study.arm("consensus");

  Figure kept;
  kept.kind = Figure::Kind::bars;
  kept.title = "Channels each block keeps";
  kept.y_label = "share kept";
  kept.y_max = 1;
  Series bars{.name = "consensus"};
  for (const auto& [path, share] : consensus.kept) {
    kept.categories.push_back(path);
    bars.y.push_back(share);
  }
  kept.series.push_back(bars);
  figures.emplace_back("kept", kept);

  Figure histogram;
  histogram.kind = Figure::Kind::histogram;
  histogram.title = "How often each gate is open, before the freeze (test data)";
  histogram.x_label = "share of images for which the gate is open";
  histogram.y_label = "gates";
  histogram.x_max = 1;
  histogram.series.push_back({.name = "with polarization", .y = consensus.gate_means});
  histogram.series.push_back({.name = "without", .y = study.arm("no-polarization").gate_means});
  figures.emplace_back("gates", histogram);

  Figure history;
  history.title = "Share of channels kept while training";
  history.x_label = "step";
  history.y_label = "share kept";
  history.y_max = 1;
  std::map<std::string, Series> layers;
  for (const Json& point : consensus.gate_history) {
    for (const auto& [path, share] : point.at("kept").items()) {
      Series& series = layers[path];
      series.name = path.substr(0, path.rfind('.'));
      series.x.push_back(point.at("step").get<double>());
      series.y.push_back(share.get<double>());
    }
  }
  for (auto& [path, series] : layers) history.series.push_back(std::move(series));
  if (!history.series.empty()) figures.emplace_back("history", history);

  Figure trade;
  trade.title = "Accuracy against cost";
  trade.x_label = "MACs per image, share of dense";
  trade.y_label = "test accuracy, %";
  const double dense_macs = study.arm("dense").macs;
  for (const StudyArm& arm : study.arms)
    trade.series.push_back({.name = arm.name,
                            .x = {arm.macs / dense_macs},
                            .y = {100 * arm.accuracy},
                            .points = true});
  trade.x_min = 0.3;
  trade.x_max = 1.1;
  figures.emplace_back("trade-off", trade);
  return figures;
}

StudyOptions study_options(const Json& settings) {
  StudyOptions options;
  json_require_known_keys(
      settings, {"model", "data", "train", "consensus", "seeds", "random_mask", "block_kept"},
      "recipe.toml");
  options.model = json_get<Json>(settings, "model", "recipe.toml");
  const Json data = json_get<Json>(settings, "data", "recipe.toml");
  options.data_name = json_get<std::string>(data, "name", "recipe.toml [data]");
  options.data.train_limit = json_get_or<int64_t>(data, "train_limit", 0, "recipe.toml [data]");
  options.data.test_limit = json_get_or<int64_t>(data, "test_limit", 0, "recipe.toml [data]");
  const Json train = json_get<Json>(settings, "train", "recipe.toml");
  const std::string where = "recipe.toml [train]";
  json_require_known_keys(train, {"steps", "batch", "rate", "weight_decay", "label_smoothing"},
                          where);
  options.train.steps = json_get<int64_t>(train, "steps", where);
  options.train.batch = json_get<int64_t>(train, "batch", where);
  options.train.optimizer.rate = json_get<double>(train, "rate", where);
  options.train.optimizer.weight_decay = json_get_or<double>(train, "weight_decay", 5e-4, where);
  options.train.label_smoothing = json_get_or<double>(train, "label_smoothing", 0.0, where);
  if (settings.contains("consensus"))
    options.consensus = lab::consensus_options(settings.at("consensus"));
  options.random_mask = json_get_or<bool>(settings, "random_mask", true, "recipe.toml");
  options.block_kept = json_get_or<double>(settings, "block_kept", 0.0, "recipe.toml");
  return options;
}

}  // namespace sluice::recipes::consensus_subnetwork
