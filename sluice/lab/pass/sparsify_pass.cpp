// The pass sparsify-activations: options, report, and what it does to norms and the stream first.
#include <algorithm>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/sparse_linear.h"
#include "sluice/lab/pass/sparsify.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

struct PassOptions {
  std::vector<double> sparsity;  ///< one per size, the last 0; or one in all
  std::string score, select, budget;
  std::vector<std::string> norms;  ///< patterns
  bool rotate;
  SparsifyOptions sparsify;
};

std::string choice(const Json& options, const char* key, const char* fallback,
                   std::initializer_list<std::string_view> known) {
  auto value = json_get_or<std::string>(options, key, fallback, kSparsifyPass);
  if (std::find(known.begin(), known.end(), value) != known.end()) return value;
  std::string list;
  for (const std::string_view each : known) list.append(list.empty() ? "" : ", ").append(each);
  fail(Code::config, "{}: {}: expected one of {}, found '{}'", kSparsifyPass, key, list,
       value.substr(0, 60));
}

/// From `sparsity`, or from the shares that are kept: a number, or a list that makes sizes.
std::vector<double> read_sparsity(const Json& options) {
  if (!options.contains("keep")) {
    return {require_sparsity(json_get_or<double>(options, "sparsity", 0.5, kSparsifyPass))};
  }
  if (options.contains("sparsity")) {
    fail(Code::config, "{}: keep and sparsity say the same thing; give one of them", kSparsifyPass);
  }
  std::vector<double> keep;
  if (options.at("keep").is_array()) {
    keep = json_get<std::vector<double>>(options, "keep", kSparsifyPass);
  } else {
    keep = {json_get<double>(options, "keep", kSparsifyPass)};
  }
  const bool ascending = std::is_sorted(keep.begin(), keep.end(), std::less_equal<>());
  if (keep.empty() || !(keep.front() > 0 && keep.back() <= 1) || !ascending ||
      (keep.size() > 1 && keep.back() != 1)) {
    fail(Code::config,
         "{}: keep: expected a share above 0 and up to 1, or a list of several that ascend and end "
         "with 1, found {}",
         kSparsifyPass, options.at("keep").dump().substr(0, 80));
  }
  std::vector<double> sparsity;
  for (const double share : keep) sparsity.push_back(1 - share);
  return sparsity;
}

PassOptions read_options(const Model& model, const Json& options) {
  json_require_known_keys(
      options,
      {"sparsity", "keep", "score", "select", "budget", "rotate", "norms", "dense_first", "slots"},
      kSparsifyPass);
  PassOptions result;
  result.sparsity = read_sparsity(options);
  result.score = choice(options, "score", "wina", {"wina", "magnitude"});
  result.select = choice(options, "select", "threshold", {"threshold", "topk"});
  result.budget = choice(options, "budget", "uniform", {"uniform", "greedy"});
  result.rotate = json_get_or<bool>(options, "rotate", false, kSparsifyPass);
  if (const auto norms = options.find("norms"); norms != options.end() && norms->is_string()) {
    result.norms = {norms->get<std::string>()};
  } else {
    result.norms = json_get_or<std::vector<std::string>>(options, "norms", {"**"}, kSparsifyPass);
  }
  result.sparsify.slots = json_get_or<std::string>(options, "slots", "**", kSparsifyPass);
  result.sparsify.exact = result.select == "topk";
  // The first hundredth of a run; attention leans on these tokens.
  const int64_t tokens = model.input_shape.empty() ? 1 : model.input_shape.front();
  result.sparsify.dense_first = json_get_or<int64_t>(
      options, "dense_first", std::max<int64_t>(1, tokens / 100), kSparsifyPass);
  if (result.sparsify.dense_first < 0 || result.sparsify.dense_first > (1 << 24)) {
    fail(Code::config, "{}: dense_first: expected 0 to {}, found {}", kSparsifyPass, 1 << 24,
         result.sparsify.dense_first);
  }
  return result;
}

/// Deviation over mean of a layer's column norms: at 0 the score of WINA is that of TEAL.
double spread_of(const Linear& layer) {
  const at::Tensor norms = column_norms(layer).to(at::kDouble);
  const double mean = norms.mean().item<double>();
  return mean > 0 ? norms.std(/*unbiased=*/false).item<double>() / mean : 0;
}

/// By size and projection.
std::vector<std::vector<double>> levels_for(const ActivationSparsifier& sparsifier,
                                            const PassOptions& options) {
  std::vector<std::vector<double>> levels;
  std::vector<double> targets;
  for (const double sparsity : options.sparsity) {
    levels.push_back(sparsifier.uniform(sparsity));
    if (sparsity > 0) targets.push_back(sparsity);
  }
  if (options.budget != "greedy" || targets.empty()) return levels;
  std::reverse(targets.begin(), targets.end());  // shares ascend, so what is left out descends
  const auto greedy = sparsifier.greedy(targets);
  for (size_t i = 0; i < greedy.size(); ++i) levels[greedy.size() - 1 - i] = greedy[i];
  return levels;
}

/// One network of several sizes.
Json sparsify_sizes(Model& model, const PassInput& input, const PassOptions& options,
                    const ActivationSparsifier& sparsifier) {
  std::vector<double> keep;
  for (const double sparsity : options.sparsity) keep.push_back(1 - sparsity);
  Model sized = sparsifier.at_sizes(levels_for(sparsifier, options), keep);
  // A token at a time, as decoders run. Of texts that run whole the engine reads what any of
  // several tokens asks for: how much that is, only it can measure.
  if (model.task.kind == "generate") measure_shares(sized, input, kSparsify);
  Json sizes = Json::array();
  for (size_t size = 0; size < sized.sizes.size(); ++size) {
    double all = 0, read = 0;
    const auto kept = kept_shares(sized, input, kSparsify, static_cast<int64_t>(size));
    for (size_t i = 0; i < sparsifier.paths().size(); ++i) {
      all += sparsifier.sizes()[i];
      read += kept.at(sparsifier.paths()[i]) * sparsifier.sizes()[i];
    }
    const bundle::SizeEntry& entry = sized.sizes[size];
    Json facts = {{"name", entry.name}, {"kept", read / all}};
    if (const auto share = bundle::measured(entry, bundle::kCostShare))
      facts["cost_share"] = *share;
    sizes.push_back(std::move(facts));
  }
  for (const std::string& path : sparsifier.paths()) {
    slot_of(model, path).exchange(slot_of(sized, path).get());
  }
  model.sizes = sized.sizes;
  return {{"projections", sparsifier.paths().size()},
          {"score", options.score},
          {"select", options.select},
          {"budget", options.budget},
          {"dense_first", options.sparsify.dense_first},
          {"sizes", std::move(sizes)}};
}

}  // namespace

Json sparsify_activations(Model& model, const PassInput& input) {
  const PassOptions options = read_options(model, input.options);
  Json rotation;
  if (options.rotate) {
    PassInput by_columns;
    by_columns.options = {{"by", "columns"}};
    rotation = rotate_residual(model, by_columns);
  } else {
    PassInput none;
    fold_norm(model, none);  // what is spread over a norm's scale belongs to the columns behind it
  }
  const InputFactors factors = [&](const std::string& path, const Linear& layer) -> at::Tensor {
    const bool counts =
        std::any_of(options.norms.begin(), options.norms.end(),
                    [&](const std::string& pattern) { return path_matches(pattern, path); });
    return options.score == "wina" && counts ? column_norms(layer) : at::Tensor();
  };
  const ActivationSparsifier sparsifier(model, input, options.sparsify, factors);
  if (options.sparsity.size() > 1) return sparsify_sizes(model, input, options, sparsifier);
  std::vector<double> levels = levels_for(sparsifier, options).front();
  Model sparse = sparsifier.at(levels);
  const std::map<std::string, double> kept = kept_shares(sparse, input, kSparsify);
  Json layers = Json::object();
  double all = 0, read = 0, spread = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    const std::string& path = sparsifier.paths()[i];
    const auto& layer = slot_of(model, path).as<Linear>();
    const double own = spread_of(layer);
    const double share = kept.contains(path) ? kept.at(path) : 1.0;
    Json facts = {{"sparsity", levels[i]}, {"kept", share}, {"norm_spread", own}};
    const auto* brick = dynamic_cast<const SparseLinear*>(slot_of(sparse, path).get().get());
    facts["threshold"] =
        brick == nullptr ? 0.0 : static_cast<double>(brick->options().select.threshold);
    layers[path] = std::move(facts);
    all += sparsifier.sizes()[i];
    read += share * sparsifier.sizes()[i];
    spread += own / static_cast<double>(levels.size());
    Slot& slot = slot_of(model, path);
    if (brick != nullptr) slot.exchange(slot_of(sparse, path).get());
  }
  Json report = {{"projections", levels.size()},
                 {"score", options.score},
                 {"select", options.select},
                 {"budget", options.budget},
                 {"dense_first", options.sparsify.dense_first},
                 {"kept", read / all},
                 {"dense_macs_per_token", all},
                 {"sparse_macs_per_token", read},
                 {"norm_spread", spread},
                 {"layers", std::move(layers)}};
  if (options.rotate) report["rotation"] = std::move(rotation);
  if (options.score == "wina" && spread < 0.05) {
    report["note"] =
        "the columns' norms are nearly equal: scores are those of magnitude, nothing is gained by "
        "them";
  }
  return report;
}

}  // namespace sluice::lab
