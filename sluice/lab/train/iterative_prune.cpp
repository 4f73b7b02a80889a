#include "sluice/lab/train/iterative_prune.h"

#include <torch/types.h>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/lab/train/state_file.h"

namespace sluice::lab {
namespace {

constexpr int kVersion = 1;
constexpr const char* kKey = "sluice.iterative_prune";

Json describe(const IterativePruneOptions& o) {
  Json rates = Json::array();
  for (const auto& [pattern, rate] : o.rates.rates) rates.push_back({pattern, rate});
  return {{"rounds", o.rounds},
          {"rates", rates},
          {"scope", o.scope == PruneScope::layer ? "layer" : "global"},
          {"rewind_to", o.rewind_to},
          {"fingerprint", o.fingerprint}};
}

void save(const IterativePruneOptions& o, const std::vector<PruneRound>& rounds,
          const MaskSet& next, const Brick& root, const Snapshots& snapshots) {
  StateFile file;
  Json done = Json::array();
  for (const auto& round : rounds) {
    done.push_back({{"round", round.round}, {"density", round.density}, {"result", round.result}});
    for (const auto& [path, mask] : round.masks.masks())
      file.tensors[fmt::format("round.{}/{}", round.round, path)] = mask.to(torch::kByte);
  }
  for (const auto& [path, mask] : next.masks())
    file.tensors["next/" + path] = mask.to(torch::kByte);
  for (const auto& [name, tensor] : named_state(root)) file.tensors["model/" + name] = tensor;
  file.add_section("snapshot/", snapshots.flattened());
  file.document = {{"version", kVersion}, {"options", describe(o)}, {"rounds", done}};
  write_state_file(o.state_file, kKey, file);
}

MaskSet masks_from(const std::map<std::string, at::Tensor>& stored, const MaskSet& like,
                   const std::string& what) {
  MaskSet out;
  for (const auto& [path, mask] : like.masks()) {
    const auto found = stored.find(path);
    if (found == stored.end() || found->second.sizes() != mask.sizes())
      fail(Code::format, "{}: mask of '{}' is missing or has another shape than {}", what, path,
           to_string(mask.sizes().vec()));
    out.set(path, found->second.to(mask.options()));
  }
  return out;
}

}  // namespace

void Snapshots::take(const std::string& name, const Brick& root) {
  auto& values = snapshots_[name];
  values.clear();
  for (const auto& [path, tensor] : named_state(root)) values[path] = tensor.detach().clone();
}

const std::map<std::string, at::Tensor>& Snapshots::at(const std::string& name) const {
  const auto found = snapshots_.find(name);
  if (found != snapshots_.end()) return found->second;
  std::string known;
  for (const auto& [other, values] : snapshots_) known += (known.empty() ? "" : ", ") + other;
  fail(Code::missing, "no snapshot '{}' was taken; there are: {}", name,
       known.empty() ? "none" : known);
}

void Snapshots::restore(const std::string& name, Brick& root) const { load_state(root, at(name)); }

std::map<std::string, at::Tensor> Snapshots::flattened() const {
  std::map<std::string, at::Tensor> out;
  for (const auto& [name, values] : snapshots_)
    for (const auto& [path, tensor] : values) out[name + "/" + path] = tensor;
  return out;
}

void Snapshots::restore_flattened(const std::map<std::string, at::Tensor>& flattened) {
  snapshots_.clear();
  for (const auto& [name, tensor] : flattened) {
    const auto slash = name.find('/');
    if (slash == std::string::npos)
      fail(Code::format, "snapshot tensor '{}': expected <snapshot>/<tensor>", name);
    snapshots_[name.substr(0, slash)][name.substr(slash + 1)] = tensor;
  }
}

MaskSet full_masks(const Brick& root, const PruneRates& rates) {
  // Which weights those are is prune_masks' to say.
  const MaskSet pruned = prune_masks(root, {}, rates, magnitude_score(), PruneScope::layer);
  MaskSet out;
  for (const auto& [path, mask] : pruned.masks()) out.set(path, torch::ones_like(mask));
  return out;
}

std::vector<PruneRound> iterative_prune(Model& model, const IterativePruneOptions& options,
                                        const TrainRound& train, Snapshots& snapshots) {
  if (options.rounds < 1)
    fail(Code::config, "iterative pruning rounds {}: at least 1", options.rounds);
  auto& root = *model.root;
  MaskSet masks = full_masks(root, options.rates);
  std::vector<PruneRound> rounds;
  if (!options.state_file.empty() && file_exists(options.state_file)) {
    const auto& path = options.state_file;
    const auto file = read_state_file(path, kKey, "the state of iterative pruning", kVersion);
    const auto stored = json_get<Json>(file.document, "options", path);
    if (stored != describe(options))
      fail(Code::config, "{}: made with {}, this run has {}. Remove the file to start anew.", path,
           stored.dump(), describe(options).dump());
    for (const auto& entry : json_get<Json>(file.document, "rounds", path)) {
      const auto index = static_cast<int64_t>(rounds.size());
      if (json_get<int64_t>(entry, "round", path) != index)
        fail(Code::format, "{}: round {} is not where it belongs", path, index);
      rounds.push_back({index, json_get<double>(entry, "density", path),
                        masks_from(file.section(fmt::format("round.{}/", index)), masks, path),
                        json_get<Json>(entry, "result", path)});
    }
    load_state(root, file.section("model/"));
    snapshots.restore_flattened(file.section("snapshot/"));
    masks = masks_from(file.section("next/"), masks, path);
  } else {
    snapshots.take("init", root);
  }

  for (auto round = static_cast<int64_t>(rounds.size()); round <= options.rounds; ++round) {
    if (round > 0) {
      if (!snapshots.has(options.rewind_to))
        fail(Code::state, "iterative pruning rewinds to '{}', which round 0 did not take",
             options.rewind_to);
      snapshots.restore(options.rewind_to, root);
      masks.apply(root);
    }
    Json result = train(model, masks, round, snapshots);
    rounds.push_back({round, masks.density(), masks, std::move(result)});
    if (round < options.rounds)
      masks = prune_masks(root, masks, options.rates, options.score, options.scope);
    if (!options.state_file.empty()) save(options, rounds, masks, root, snapshots);
  }
  return rounds;
}

}  // namespace sluice::lab
