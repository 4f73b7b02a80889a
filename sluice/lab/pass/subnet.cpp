#include "sluice/lab/pass/subnet.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

constexpr size_t kLevels = 26;  // letters
constexpr size_t kKnobs = 48;

struct SpaceLayer {
  std::string path;
  NestedLayer* nested;
};

std::vector<SpaceLayer> nested_layers(const Model& model) {
  std::vector<SpaceLayer> result;
  for (const BrickRef& ref : all_bricks(model)) {
    if (auto* layer = dynamic_cast<NestedLayer*>(ref.brick.get())) {
      result.push_back({ref.path, layer});
    }
  }
  return result;
}

std::vector<NestedChain*> nested_chains(const Model& model) {
  std::vector<NestedChain*> result;
  for (const BrickRef& ref : all_bricks(model)) {
    if (auto* chain = dynamic_cast<NestedChain*>(ref.brick.get())) result.push_back(chain);
  }
  return result;
}

/// How many units come into each nested layer.
class Widths final : public SlotWatcher {
 public:
  void after(const std::string& path, const Brick& brick, const at::Tensor& x,
             at::Tensor&) override {
    if (const auto* layer = dynamic_cast<const NestedLayer*>(&brick)) {
      widths[path] = layer->width_of(x);
    }
  }
  std::map<std::string, int64_t> widths;
};

void apply(const SubnetSpace& space, const std::vector<Subnet>& subnets,
           const std::vector<SpaceLayer>& layers, const std::vector<NestedChain*>& chains) {
  const auto count = static_cast<int64_t>(subnets.size());
  for (const SpaceLayer& layer : layers) {
    NestedSizes sizes{count, {}, {}};
    if (layer.nested->elastic()) {
      size_t knob = 0;
      while (knob < space.knobs.size() && !path_matches(space.knobs[knob], layer.path)) ++knob;
      for (const Subnet& subnet : subnets) {
        const double share = knob == space.knobs.size()
                                 ? 1.0
                                 : space.widths[static_cast<size_t>(subnet.levels[knob])];
        sizes.rows.push_back(space.units(share, layer.nested->outputs(), layer.path));
      }
    }
    layer.nested->set_sizes(std::move(sizes));
  }
  for (NestedChain* chain : chains) {
    std::vector<int64_t> exits;
    for (const Subnet& subnet : subnets) {
      exits.push_back(subnet.depth == 0 ? chain->length() : subnet.depth);
    }
    chain->set_exits(space.depths.empty() ? std::vector<int64_t>{} : std::move(exits));
  }
}

template <class T>
std::vector<T> permuted(const std::vector<T>& values, const std::vector<size_t>& order) {
  std::vector<T> result;
  for (const size_t i : order) result.push_back(values[i]);
  return result;
}

}  // namespace

// ---- SubnetSpace ----

void SubnetSpace::check() const {
  const auto bad = [](const char* field, const auto& list, const std::string& expected) {
    fail(Code::config, "{}: expected {}, found [{}]", field, expected, fmt::join(list, ", "));
  };
  const auto ascending = [](const auto& list) {
    return std::adjacent_find(list.begin(), list.end(), std::greater_equal<>()) == list.end();
  };
  if (widths.empty() || widths.size() > kLevels || !ascending(widths) || !(widths.front() > 0) ||
      widths.back() != 1) {
    bad("widths", widths, "1 to 26 ascending shares above 0, the last of them 1");
  }
  if (!ascending(depths) || (!depths.empty() && depths.front() < 1)) {
    bad("depths", depths, "ascending numbers of blocks from 1");
  }
  if (knobs.empty() || knobs.size() > kKnobs) {
    fail(Code::config, "knobs: expected 1 to {} patterns, found {}", kKnobs, knobs.size());
  }
  if (multiple < 1) fail(Code::config, "multiple: expected at least 1, found {}", multiple);
}

Subnet SubnetSpace::full() const {
  return {std::vector<int64_t>(knobs.size(), static_cast<int64_t>(widths.size()) - 1),
          depths.empty() ? 0 : depths.back()};
}

std::vector<Subnet> SubnetSpace::uniform() const {
  check();
  std::vector<Subnet> result;
  const std::vector<int64_t> ends = depths.empty() ? std::vector<int64_t>{0} : depths;
  for (const int64_t depth : ends) {
    for (size_t level = 0; level < widths.size(); ++level) {
      result.push_back({std::vector<int64_t>(knobs.size(), static_cast<int64_t>(level)), depth});
    }
  }
  return result;
}

std::vector<Subnet> SubnetSpace::graded() const {
  check();
  if (knobs.size() < 2) {
    fail(Code::usage, "graded mixtures: expected several knobs, one per layer, found {}",
         knobs.size());
  }
  if (!depths.empty()) {
    fail(Code::usage, "graded mixtures: a network whose layers all run; leave depths out");
  }
  std::vector<Subnet> result;
  for (size_t level = 0; level + 1 < widths.size(); ++level) {
    for (size_t above = 0; above < knobs.size(); ++above) {
      Subnet subnet{std::vector<int64_t>(knobs.size(), static_cast<int64_t>(level)), 0};
      std::fill(subnet.levels.end() - static_cast<std::ptrdiff_t>(above), subnet.levels.end(),
                static_cast<int64_t>(level) + 1);
      result.push_back(std::move(subnet));
    }
  }
  result.push_back(full());
  return result;
}

std::vector<Subnet> SubnetSpace::all() const {
  check();
  const double combinations =
      std::pow(static_cast<double>(widths.size()), static_cast<double>(knobs.size())) *
      static_cast<double>(std::max<size_t>(1, depths.size()));
  if (combinations > static_cast<double>(bundle::kMaxSizes)) {
    fail(Code::limit, "a space of {:.0f} sub-networks; a network has at most {} sizes",
         combinations, bundle::kMaxSizes);
  }
  std::vector<Subnet> result;
  const std::vector<int64_t> ends = depths.empty() ? std::vector<int64_t>{0} : depths;
  for (const int64_t depth : ends) {
    Subnet subnet{std::vector<int64_t>(knobs.size(), 0), depth};
    for (;;) {
      result.push_back(subnet);
      size_t knob = 0;
      while (knob < knobs.size() && ++subnet.levels[knob] == static_cast<int64_t>(widths.size())) {
        subnet.levels[knob++] = 0;
      }
      if (knob == knobs.size()) break;
    }
  }
  return result;
}

std::string SubnetSpace::encode(const Subnet& subnet) const {
  const bool known =
      subnet.levels.size() == knobs.size() &&
      std::all_of(subnet.levels.begin(), subnet.levels.end(),
                  [&](int64_t level) {
                    return level >= 0 && level < static_cast<int64_t>(widths.size());
                  }) &&
      (depths.empty() ? subnet.depth == 0
                      : std::find(depths.begin(), depths.end(), subnet.depth) != depths.end());
  if (!known) {
    fail(Code::usage,
         "a sub-network of levels [{}] and depth {} is not in the space of {} widths, {} knobs and "
         "depths [{}]",
         fmt::join(subnet.levels, ", "), subnet.depth, widths.size(), knobs.size(),
         fmt::join(depths, ", "));
  }
  std::string name;
  if (knobs.size() == 1) {
    name = fmt::format("w{:g}", 100 * widths[static_cast<size_t>(subnet.levels[0])]);
  } else {
    name = "m";
    for (const int64_t level : subnet.levels) name += static_cast<char>('a' + level);
  }
  return depths.empty() ? name : fmt::format("{}-d{}", name, subnet.depth);
}

Subnet SubnetSpace::decode(const std::string& name) const {
  const auto wrong = [&] {
    std::vector<std::string> known;
    for (const double width : widths) known.push_back(fmt::format("w{:g}", 100 * width));
    const std::string head = knobs.size() == 1
                                 ? fmt::format("one of {}", fmt::join(known, ", "))
                                 : fmt::format("m and {} letters from a to {}", knobs.size(),
                                               static_cast<char>('a' + widths.size() - 1));
    const std::string tail =
        depths.empty() ? "" : fmt::format(", then -d and one of {}", fmt::join(depths, ", "));
    fail(Code::usage, "no sub-network '{}'; expected {}{}, as in '{}'", name.substr(0, 60), head,
         tail, encode(full()));
  };
  Subnet subnet{std::vector<int64_t>(knobs.size(), 0), 0};
  const size_t dash = name.find("-d");
  if (depths.empty() != (dash == std::string::npos)) wrong();
  if (!depths.empty()) {
    const char* end = name.data() + name.size();
    const auto read = std::from_chars(name.data() + dash + 2, end, subnet.depth);
    if (read.ec != std::errc() || read.ptr != end ||
        std::find(depths.begin(), depths.end(), subnet.depth) == depths.end()) {
      wrong();
    }
  }
  const std::string head = name.substr(0, dash);
  if (knobs.size() > 1) {
    if (head.size() != knobs.size() + 1 || head[0] != 'm') wrong();
    for (size_t knob = 0; knob < knobs.size(); ++knob) {
      subnet.levels[knob] = head[knob + 1] - 'a';
      if (subnet.levels[knob] < 0 || subnet.levels[knob] >= static_cast<int64_t>(widths.size())) {
        wrong();
      }
    }
    return subnet;
  }
  for (size_t level = 0; level < widths.size(); ++level) {
    if (head != fmt::format("w{:g}", 100 * widths[level])) continue;
    subnet.levels[0] = static_cast<int64_t>(level);
    return subnet;
  }
  wrong();
  return subnet;
}

int64_t SubnetSpace::units(double share, int64_t units, const std::string& path) const {
  const double exact = share * static_cast<double>(units) / static_cast<double>(multiple);
  const auto whole = static_cast<int64_t>(std::llround(exact));
  if (share == 1 && units % multiple != 0) {
    fail(Code::shape, "{}: {} units are no multiple of {}", path, units, multiple);
  }
  if (whole < 1 || std::abs(exact - static_cast<double>(whole)) > 1e-6) {
    fail(Code::shape,
         "{}: a width of {:g} of {} units is {:g}, which cuts {}; expected a whole number{}", path,
         share, units, share * static_cast<double>(units),
         multiple > 1 ? fmt::format("a group of {}", multiple) : std::string("one of them"),
         multiple > 1 ? fmt::format(" of groups of {}", multiple) : std::string());
  }
  return whole * multiple;
}

// ---- set_sizes ----

std::vector<std::string> block_knobs(const Model& model) {
  const auto* root = dynamic_cast<const TextRoot*>(model.root.get());
  if (root == nullptr) {
    fail(Code::unsupported, "knobs of blocks: expected a transformer, found a {}",
         model.root->kind());
  }
  std::vector<std::string> knobs;
  for (const auto& slot : root->slot("blocks")->slots()) {
    knobs.push_back(fmt::format("blocks.{}.**", slot->name()));
  }
  if (knobs.size() > kKnobs) {
    fail(Code::limit, "knobs of blocks: {} blocks; at most {} knobs", knobs.size(), kKnobs);
  }
  return knobs;
}

void set_sizes(Model& model, const SubnetSpace& space, std::vector<Subnet> subnets) {
  space.check();
  const std::vector<SpaceLayer> layers = nested_layers(model);
  const std::vector<NestedChain*> chains = nested_chains(model);
  if (layers.empty() && chains.empty()) {
    fail(Code::unsupported, "the network has no nested layer; pass nest makes them");
  }
  if (!space.depths.empty()) {
    if (chains.empty()) {
      fail(Code::unsupported, "depths: the network has no chain of blocks that could end early");
    }
    for (const NestedChain* chain : chains) {
      if (space.depths.back() != chain->length()) {
        fail(Code::shape, "depths: the last is {}; expected all {} blocks of the network",
             space.depths.back(), chain->length());
      }
    }
  }
  if (subnets.empty() || subnets.size() > bundle::kMaxSizes) {
    fail(Code::limit, "a network has 1 to {} sizes, found {}", bundle::kMaxSizes, subnets.size());
  }
  std::vector<std::string> names;
  for (const Subnet& subnet : subnets) names.push_back(space.encode(subnet));
  if (const std::set<std::string> unique(names.begin(), names.end());
      unique.size() != names.size()) {
    fail(Code::usage, "sizes: a sub-network is there twice among {}", fmt::join(names, ", "));
  }
  if (std::find(subnets.begin(), subnets.end(), space.full()) == subnets.end()) {
    fail(Code::usage, "sizes: the whole network, '{}', must be one of them",
         space.encode(space.full()));
  }
  apply(space, subnets, layers, chains);

  // Each size by itself, as it runs: what comes into each layer, and what it costs.
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(*model.root);
  const at::Tensor x = probe_input(model, 1, derive_seed(0, "set_sizes"), model.input_shape[0]);
  std::map<std::string, std::vector<int64_t>> columns;
  std::vector<double> macs;
  for (size_t i = 0; i < subnets.size(); ++i) {
    Widths widths;
    Meter meter;
    Context context;
    context.size = static_cast<int64_t>(i);
    context.watcher = &widths;
    context.meter = &meter;
    model.root->forward(x, context);
    for (const SpaceLayer& layer : layers) {
      const auto found = widths.widths.find(layer.path);  // not there: this size leaves it out
      columns[layer.path].push_back(found == widths.widths.end() ? layer.nested->inputs()
                                                                 : found->second);
    }
    macs.push_back(static_cast<double>(meter.macs()));
  }
  std::vector<size_t> order(subnets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (macs[a] != macs[b]) return macs[a] < macs[b];
    return subnets[b] == space.full() && subnets[a] != space.full();
  });
  if (subnets[order.back()] != space.full()) {
    fail(Code::unsupported, "size '{}' costs more than the whole network", names[order.back()]);
  }
  apply(space, permuted(subnets, order), layers, chains);
  for (const SpaceLayer& layer : layers) {
    NestedSizes sizes = layer.nested->sizes();
    sizes.columns = permuted(columns.at(layer.path), order);
    layer.nested->set_sizes(std::move(sizes));
  }
  model.sizes.clear();
  for (const size_t i : order) {
    model.sizes.push_back({names[i], static_cast<int64_t>(macs[i]), {}});
  }
}

// ---- SizeSampler ----

void SizeSampler::check() const {
  if (kind != "uniform" && kind != "all" && kind != "sandwich") {
    const std::string near = nearest_name(kind, {"uniform", "all", "sandwich"});
    fail(Code::config, "sampling of sizes '{}': known are uniform, all, sandwich{}",
         kind.substr(0, 60), near.empty() ? "" : "; did you mean " + near + "?");
  }
  if (kind == "all") return;
  const int64_t least = kind == "sandwich" ? std::min<int64_t>(2, sizes) : 1;
  if (draws < least || draws > static_cast<int64_t>(bundle::kMaxSizes)) {
    fail(Code::config, "draws of sizes: expected {} to {}, found {}", least, bundle::kMaxSizes,
         draws);
  }
}

std::vector<int64_t> SizeSampler::at_step(int64_t step) const {
  check();
  std::vector<int64_t> chosen;
  if (kind == "all") {
    chosen.resize(static_cast<size_t>(sizes));
    std::iota(chosen.begin(), chosen.end(), int64_t{0});
    return chosen;
  }
  if (kind == "sandwich") {
    chosen = {0};
    if (sizes > 1) chosen.push_back(sizes - 1);
  }
  // Not a distribution of the standard library: they differ from one to the next.
  std::mt19937_64 engine(derive_seed(seed, "sizes", static_cast<uint64_t>(step)));
  while (static_cast<int64_t>(chosen.size()) < draws) {
    chosen.push_back(static_cast<int64_t>(engine() % static_cast<uint64_t>(sizes)));
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace sluice::lab
