// acmize: feed-forward networks, and projections of attention, become layers of which every row
// uses as much as it needs (Adaptive Computation Modules, Wojcik et al. 2023).
#include <algorithm>
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/prefix_mlp.h"
#include "sluice/lab/gate/ordinal.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

const std::string kAcmize = "pass acmize";

struct AcmizeOptions {
  int64_t learners, hidden, choice;
  double factor;
  bool projections;
  std::string slots;
  uint64_t seed;
};

AcmizeOptions read_options(const Json& options) {
  json_require_known_keys(
      options, {"learners", "factor", "choice", "hidden", "projections", "slots", "seed"}, kAcmize);
  AcmizeOptions result;
  result.learners = require_range(json_get_or<int64_t>(options, "learners", 4, kAcmize), 1, 256,
                                  "learners", kAcmize);
  result.factor = require_range(json_get_or<double>(options, "factor", 1.0, kAcmize), 0.01, 100.0,
                                "factor", kAcmize);
  result.choice = require_range(json_get_or<int64_t>(options, "choice", -1, kAcmize), -1,
                                result.learners, "choice", kAcmize);
  result.hidden = require_range(json_get_or<int64_t>(options, "hidden", 16, kAcmize), 1, 65536,
                                "hidden", kAcmize);
  result.projections = json_get_or<bool>(options, "projections", false, kAcmize);
  result.slots = json_get_or<std::string>(options, "slots", "**", kAcmize);
  result.seed = static_cast<uint64_t>(json_get_or<int64_t>(options, "seed", 0, kAcmize));
  return result;
}

void draw(Linear& layer, double fan_in, uint64_t seed, const std::string& path) {
  const double bound = 1 / std::sqrt(fan_in);
  const at::NoGradGuard no_grad;
  fill_uniform(layer.weight, bound, derive_seed(seed, path + ".weight"));
  if (layer.bias.defined()) fill_uniform(layer.bias, bound, derive_seed(seed, path + ".bias"));
}

BrickPtr make_gate(const AcmizeOptions& options, int64_t inputs, int64_t least,
                   const std::string& path) {
  if (options.choice >= 0) {
    return std::make_shared<ConstantChoice>(options.learners + 1, std::max(least, options.choice));
  }
  const std::vector<int64_t> hidden = {options.hidden, options.hidden};
  const Json score = {
      {"kind", "mlp"}, {"inputs", inputs}, {"units", options.learners + 1}, {"hidden", hidden}};
  auto gate = std::make_shared<OrdinalGate>(Json{{"score", score}, {"least", least}});
  const at::NoGradGuard no_grad;
  for (const auto& item : gate->named_parameters()) {
    at::Tensor values = item.value();
    const double fan_in = static_cast<double>(values.dim() > 1 ? values.size(1) : options.hidden);
    fill_uniform(values, 1 / std::sqrt(fan_in), derive_seed(options.seed, path + "." + item.key()));
  }
  return gate;
}

/// In place of a brick from [.., inputs] to [.., outputs] whose learners have `width` neurons each.
BrickPtr module_for(const AcmizeOptions& options, PrefixMlpSizes sizes, int64_t least,
                    const std::string& path) {
  const WithoutInit without_init;
  sizes.learners = options.learners;
  sizes.width = std::max<int64_t>(1, sizes.width);
  auto mlp = make_prefix_mlp(sizes);
  draw(mlp->slot("up").as<Linear>(), static_cast<double>(sizes.inputs), options.seed, path + ".up");
  draw(mlp->slot("down").as<Linear>(), static_cast<double>(sizes.width), options.seed,
       path + ".down");
  mlp->slot("gate").exchange(make_gate(options, sizes.inputs, least, path + ".gate"));
  return mlp;
}

}  // namespace

Json acmize(Model& model, const PassInput& input) {
  const AcmizeOptions options = read_options(input.options);
  Json replaced = Json::object();
  const auto replace = [&](const SlotRef& ref, const PrefixMlpSizes& sizes, int64_t least,
                           const Shape& shape) {
    const Brick& old = **ref.slot;
    const int64_t before = old.cost(shape).macs;
    BrickPtr made = placed_like(module_for(options, sizes, least, ref.path), old);
    const auto& mlp = dynamic_cast<const PrefixMlp&>(*made);
    replaced[ref.path] = {{"macs_before", before},
                          {"macs_of_learner", mlp.macs_of_learner()},
                          {"macs_of_gate", mlp.gate()->cost(shape).macs}};
    ref.slot->exchange(std::move(made));
  };
  for (const SlotRef& ref : walk(*model.root)) {
    if (ref.slot->empty() || !path_matches(options.slots, ref.path)) continue;
    if (const auto* ffn = dynamic_cast<const Ffn*>(ref.slot->get().get())) {
      const auto* up = dynamic_cast<const Linear*>(ffn->slot("up").get().get());
      const auto* down = dynamic_cast<const Linear*>(ffn->slot("down").get().get());
      if (up == nullptr || down == nullptr) {
        fail(Code::unsupported, "{}: {}: layers of a {} are replaced, not of a {}", kAcmize,
             ref.path, "linear",
             up == nullptr ? (*ffn->slot("up")).kind() : (*ffn->slot("down")).kind());
      }
      // Of equal cost; for two layers that is a share of their neurons.
      const auto macs = static_cast<double>(ffn->cost({up->inputs()}).macs);
      const double both = static_cast<double>(up->inputs() + down->outputs());
      const auto width = static_cast<int64_t>(
          std::llround(options.factor * macs / both / static_cast<double>(options.learners)));
      replace(ref, {up->inputs(), down->outputs(), 1, width, ffn->activation()}, 0, {up->inputs()});
      continue;
    }
    const auto* linear = dynamic_cast<const Linear*>(ref.slot->get().get());
    if (!options.projections || linear == nullptr ||
        dynamic_cast<const Attention*>(ref.owner) == nullptr)
      continue;
    // Parameters as the layer's, biases of the hidden part included.
    const auto in = static_cast<double>(linear->inputs()),
               out = static_cast<double>(linear->outputs());
    const auto width =
        static_cast<int64_t>(std::llround(options.factor / static_cast<double>(options.learners) *
                                          (in * out + out) / (in + out + 1)));
    replace(ref, {linear->inputs(), linear->outputs(), 1, width, "identity"}, 1,
            {linear->inputs()});
  }
  if (replaced.empty()) {
    fail(Code::usage, "{}: no feed-forward network{} under '{}'", kAcmize,
         options.projections ? " or projection" : "", options.slots);
  }
  return {{"learners", options.learners}, {"replaced", replaced}};
}

}  // namespace sluice::lab
