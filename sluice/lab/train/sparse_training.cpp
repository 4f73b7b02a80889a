#include "sluice/lab/train/sparse_training.h"

#include <torch/types.h>

#include <cmath>
#include <numbers>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/train/sparse_state.h"

namespace sluice::lab {
namespace {

const std::string kSparseTraining = "sparse training";

void require_one_of(const std::string& value, const char* key,
                    const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), value) != known.end()) return;
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  const std::string near = nearest_name(value, known);
  fail(Code::config, "{}: {} = '{}': known are {}{}", kSparseTraining, key, value.substr(0, 60),
       names, near.empty() ? "" : "; did you mean " + near + "?");
}

void check(const SparseOptions& o) {
  require_one_of(o.method, "method", {"set", "rigl", "soft"});
  if (!(o.density > 0 && o.density <= 1)) {
    fail(Code::config,
         "{}: density = {}: the share of weights that stay, above 0 (nothing would be left) and "
         "at most 1 (all)",
         kSparseTraining, o.density);
  }
  require_one_of(o.distribution, "distribution", {"erk", "uniform"});
  require_one_of(o.start, "start", {"random", "magnitude"});
  require_one_of(o.granularity, "granularity", {"weight", "unit"});
  require_one_of(o.estimator, "estimator", {"sigmoid", "straight_through"});
  if (o.every < 1)
    fail(Code::config, "{}: every = {}: steps, at least 1", kSparseTraining, o.every);
  const auto between = [](double value, double low, double high, const char* key) {
    if (!(value >= low && value <= high))
      fail(Code::config, "{}: {} = {}: expected {} to {}", kSparseTraining, key, value, low, high);
  };
  between(o.drop, 0, 1, "drop");
  between(o.until, 0, 1, "until");
  between(o.slope, 1, 1e4, "slope");
  between(o.pressure, 0, 1e6, "pressure");
  between(o.rate, 1e-9, 10, "rate");
  between(o.harden, 0, 1, "harden");
}

/// Weights of linear layers and convolutions that learn, in slot order.
std::vector<std::string> weight_paths(Brick& root, const SparseOptions& options) {
  std::vector<std::string> paths;
  for (const SlotRef& ref : walk(root, options.slots)) {
    const Brick* brick = ref.slot->get().get();
    const bool skipped = std::any_of(options.skip.begin(), options.skip.end(),
                                     [&](const auto& p) { return path_matches(p, ref.path); });
    if (skipped) continue;
    at::Tensor weight;
    if (const auto* linear = dynamic_cast<const Linear*>(brick)) weight = linear->weight;
    if (const auto* conv = dynamic_cast<const Conv2d*>(brick)) weight = conv->weight;
    if (weight.defined() && weight.requires_grad() && weight.numel() > 0)
      paths.push_back(join_path(ref.path, "weight"));
  }
  if (paths.empty()) {
    fail(Code::usage, "{}: no linear layer or convolution that learns under slots = '{}'{}",
         kSparseTraining, options.slots, options.skip.empty() ? "" : " but for those of skip");
  }
  return paths;
}

/// Sum of a weight's dimensions over their product (Mocanu et al. 2018, with kernels: Evci et al.
/// 2020).
double erdos_renyi(const at::Tensor& weight) {
  double sum = 0, product = 1;
  for (const int64_t size : weight.sizes()) {
    sum += static_cast<double>(size);
    product *= static_cast<double>(size);
  }
  return sum / product;
}

}  // namespace

SparseOptions sparse_options(const Json& json) {
  json_require_known_keys(
      json,
      {"method", "density", "slots", "skip", "distribution", "start", "every", "drop", "until",
       "granularity", "estimator", "slope", "pressure", "rate", "harden"},
      kSparseTraining);
  SparseOptions o;
  const auto read = [&]<class T>(const char* key, T& value) {
    value = json_get_or<T>(json, key, value, kSparseTraining);
  };
  read("method", o.method);
  read("density", o.density);
  read("slots", o.slots);
  read("skip", o.skip);
  read("distribution", o.distribution);
  read("start", o.start);
  read("every", o.every);
  read("drop", o.drop);
  read("until", o.until);
  read("granularity", o.granularity);
  read("estimator", o.estimator);
  read("slope", o.slope);
  read("pressure", o.pressure);
  read("rate", o.rate);
  read("harden", o.harden);
  check(o);
  const bool soft = o.method == "soft";
  for (const auto& [key, value] : json.items()) {
    const auto is = [&](std::initializer_list<const char*> keys) {
      return std::find(keys.begin(), keys.end(), key) != keys.end();
    };
    if (is({"distribution", "start", "every", "drop", "until"}) && soft)
      fail(Code::config, "{}: {} is of methods set and rigl, the method is soft", kSparseTraining,
           key);
    if (is({"granularity", "estimator", "slope", "pressure", "rate", "harden"}) && !soft)
      fail(Code::config, "{}: {} is of method soft, the method is {}", kSparseTraining, key,
           o.method);
  }
  return o;
}

std::map<std::string, int64_t> sparse_counts(const std::map<std::string, at::Tensor>& weights,
                                             double density, const std::string& distribution) {
  int64_t all = 0;
  for (const auto& [path, weight] : weights) all += weight.numel();
  const auto total = static_cast<int64_t>(std::llround(density * static_cast<double>(all)));
  if (total < static_cast<int64_t>(weights.size())) {
    fail(Code::config, "{}: density = {} of {} weights is {}, fewer than one in each of {} layers",
         kSparseTraining, density, all, total, weights.size());
  }
  // Layers that would exceed density 1 are dense, and the rest share what remains.
  std::map<std::string, double> wanted;
  std::map<std::string, bool> dense;
  for (bool again = true; again;) {
    again = false;
    double left = density * static_cast<double>(all), share = 0;
    for (const auto& [path, weight] : weights) {
      const auto n = static_cast<double>(weight.numel());
      if (dense[path]) {
        left -= n;
      } else {
        share += n * (distribution == "erk" ? erdos_renyi(weight) : 1);
      }
    }
    for (const auto& [path, weight] : weights) {
      const auto n = static_cast<double>(weight.numel());
      const double scale = distribution == "erk" ? erdos_renyi(weight) : 1;
      wanted[path] = dense[path] ? n : left * n * scale / share;
      if (!dense[path] && wanted[path] > n) again = dense[path] = true;
    }
  }
  // Whole numbers whose sum is exact: the largest remainders are rounded up.
  std::map<std::string, int64_t> counts;
  int64_t given = 0;
  for (const auto& [path, value] : wanted) {
    counts[path] = std::clamp<int64_t>(static_cast<int64_t>(std::floor(value + 1e-9)), 1,
                                       weights.at(path).numel());
    given += counts[path];
  }
  while (given != total) {
    const int64_t step = given < total ? 1 : -1;
    std::string best;
    double most = -1e300;
    for (const auto& [path, count] : counts) {
      if (count + step < 1 || count + step > weights.at(path).numel()) continue;
      const double gap = static_cast<double>(step) * (wanted[path] - static_cast<double>(count));
      if (gap > most) {
        most = gap;
        best = path;
      }
    }
    counts[best] += step;
    given += step;
  }
  return counts;
}

std::map<std::string, at::Tensor> SparseTraining::State::weights() const {
  std::map<std::string, at::Tensor> all;
  for (const auto& item : model.root->named_parameters()) all.emplace(item.key(), item.value());
  std::map<std::string, at::Tensor> found;
  for (const std::string& path : paths) {
    const auto entry = all.find(path);
    if (entry == all.end())
      fail(Code::state, "{}: '{}' is gone from the network", kSparseTraining, path);
    found.emplace(path, entry->second);
  }
  return found;
}

bool SparseTraining::State::changes_after(int64_t at) const {
  return !soft && options.method != "soft" && (at + 1) % options.every == 0 &&
         static_cast<double>(at + 1) < options.until * static_cast<double>(steps);
}

void SparseTraining::State::before_step(int64_t at) {
  if (soft && !soft->masked()) soft->mask(weights(), at);
}

void SparseTraining::State::after_backward(int64_t at) {
  if (soft) {
    soft->learn(weights(), at);
    return;
  }
  if (options.method == "rigl" && changes_after(at)) {
    for (const auto& [path, weight] : weights()) {
      const at::Tensor gradient = weight.grad();
      growth[path] = gradient.defined()
                         ? gradient.detach().abs().to(at::kCPU, at::kDouble).flatten().clone()
                         : at::zeros({weight.numel()}, at::kDouble);
    }
  }
  masks.apply_to_gradients(*model.root);
}

void SparseTraining::State::after_step(int64_t at) {
  step = at + 1;
  if (soft) {
    const auto hard_at =
        std::max<int64_t>(1, std::llround(options.harden * static_cast<double>(steps)));
    if (step < hard_at) return;
    masks = soft->harden();
    soft.reset();
    ++updates;
  }
  // Some optimizers move weights that have no gradient (Muon).
  apply();
  if (!changes_after(at)) return;
  regrow(at);
  apply();
}

void SparseTraining::State::regrow(int64_t at) {
  const double end = options.until * static_cast<double>(steps);
  const double fraction =
      options.drop / 2 * (1 + std::cos(std::numbers::pi * static_cast<double>(at + 1) / end));
  for (const auto& [path, weight] : weights()) {
    const at::Tensor old = (masks.masks().at(path) != 0).to(at::kCPU).flatten();
    const auto kept = old.sum().item<int64_t>();
    const auto change =
        std::min<int64_t>({static_cast<int64_t>(std::llround(fraction * static_cast<double>(kept))),
                           weight.numel() - kept});
    if (change < 1) continue;
    constexpr double kBelow = -1;  // all scores are at least 0
    at::Tensor magnitude = weight.detach().abs().to(at::kCPU, at::kDouble).flatten();
    magnitude = at::where(old, magnitude, at::full_like(magnitude, kBelow));
    const at::Tensor stay = highest(magnitude, kept - change);
    at::Tensor score;
    if (options.method == "rigl") {
      score = growth.at(path);
    } else {
      score = at::empty({weight.numel()}, at::kDouble);
      fill_uniform(score, 1.0, derive_seed(derive_seed(seed, "grow", uint64_t(at)), path));
      score = score.abs();
    }
    score = at::where(stay, at::full_like(score, kBelow), score);
    const at::Tensor mask = stay.logical_or(highest(score, change));
    masks.set(path, mask.view(weight.sizes()).to(weight.options().requires_grad(false)));
  }
  growth.clear();
  ++updates;
}

void SparseTraining::State::apply() {
  masks.apply(*model.root);
  if (trainer == nullptr) return;
  // A weight that is grown later starts with moments of 0, whatever it was before.
  const at::NoGradGuard no_grad;
  for (auto& [name, moment] : trainer->moments()) {
    const auto mask = masks.masks().find(name.substr(0, name.find_last_of('.')));
    if (mask != masks.masks().end() && moment.sizes() == mask->second.sizes())
      moment.mul_(mask->second.to(moment.options()));
  }
}

SparseTraining::SparseTraining(Model& model, SparseOptions options, int64_t steps, uint64_t seed)
    : state_(std::make_shared<State>(State{model, std::move(options), steps, seed})) {
  State& s = *state_;
  check(s.options);
  s.paths = weight_paths(*model.root, s.options);
  const auto weights = s.weights();
  if (s.options.method == "soft") {
    s.soft = std::make_unique<SoftMasks>(weights, s.options, steps);
    return;
  }
  for (const auto& [path, count] :
       sparse_counts(weights, s.options.density, s.options.distribution)) {
    const at::Tensor& weight = weights.at(path);
    at::Tensor score = weight.detach().abs().to(at::kCPU, at::kDouble).flatten();
    if (s.options.start == "random")
      fill_uniform(score, 1.0, derive_seed(derive_seed(seed, "sparse"), path));
    s.masks.set(
        path, highest(score, count).view(weight.sizes()).to(weight.options().requires_grad(false)));
  }
  s.apply();
}

SparseTraining::~SparseTraining() = default;

void SparseTraining::attach(TrainHooks& hooks) {
  const auto s = state_;
  hooks.before_step = [s, first = hooks.before_step](int64_t step, Context& context) {
    if (first) first(step, context);
    s->before_step(step);
  };
  hooks.after_backward = [s, first = hooks.after_backward](int64_t step) {
    if (first) first(step);
    s->after_backward(step);
  };
  hooks.after_step = [s, first = hooks.after_step](int64_t step) {
    if (first) first(step);
    s->after_step(step);
  };
  if (hooks.validate) {
    hooks.validate = [s, first = hooks.validate] {
      if (!s->soft) return first();
      s->soft->mask(s->weights(), s->step);
      const double loss = first();
      s->soft->restore(s->weights());
      return loss;
    };
  }
  hooks.save_extra = [s, first = hooks.save_extra] {
    ExtraState extra = first ? first() : ExtraState();
    for (const auto& [path, mask] : s->masks.masks())
      extra["sparse.mask/" + path] = mask.to(at::kByte);
    if (s->soft)
      for (const auto& [name, tensor] : s->soft->state()) extra["sparse.soft/" + name] = tensor;
    extra["sparse.count"] = torch::tensor({s->updates, s->step}, torch::kInt64);
    return extra;
  };
  hooks.load_extra = [s, first = hooks.load_extra](const ExtraState& extra) {
    std::map<std::string, at::Tensor> masks, soft;
    ExtraState others;
    const auto weights = s->weights();
    for (const auto& [name, tensor] : extra) {
      if (name.starts_with("sparse.mask/")) {
        masks[name.substr(12)] = tensor;
      } else if (name.starts_with("sparse.soft/")) {
        soft[name.substr(12)] = tensor;
      } else if (name != "sparse.count") {
        others[name] = tensor;
      }
    }
    const auto count = extra.find("sparse.count");
    if (count == extra.end() || count->second.numel() != 2 ||
        count->second.scalar_type() != at::kLong ||
        (masks.empty() ? soft.empty() : masks.size() != weights.size())) {
      fail(Code::format, "{}: the checkpoint does not hold the masks of {} weights",
           kSparseTraining, weights.size());
    }
    s->masks = {};
    for (const auto& [path, mask] : masks) {
      const auto weight = weights.find(path);
      if (weight == weights.end() || weight->second.sizes() != mask.sizes()) {
        fail(Code::format, "{}: mask of '{}' in the checkpoint: {} for {}", kSparseTraining, path,
             to_string(mask.sizes().vec()),
             weight == weights.end() ? "no such weight" : to_string(weight->second.sizes().vec()));
      }
      s->masks.set(path, mask.to(weight->second.options().requires_grad(false)));
    }
    if (masks.empty()) {
      s->soft = std::make_unique<SoftMasks>(weights, s->options, s->steps);
      s->soft->load_state(soft);
    } else {
      s->soft.reset();
    }
    s->updates = count->second[0].item<int64_t>();
    s->step = count->second[1].item<int64_t>();
    if (first) first(others);
  };
}

void SparseTraining::follow(Trainer& trainer) { state_->trainer = &trainer; }
const MaskSet& SparseTraining::masks() const { return state_->masks; }
int64_t SparseTraining::updates() const { return state_->updates; }

double SparseTraining::density() const {
  return state_->soft ? state_->soft->density(state_->step) : state_->masks.density();
}

Json SparseTraining::report() const {
  Json layers = Json::object();
  for (const auto& [path, density] : state_->masks.density_by_path()) layers[path] = density;
  return {{"method", state_->options.method},
          {"density", density()},
          {"updates", state_->updates},
          {"layers", layers}};
}

}  // namespace sluice::lab
