// set-sizes: another table of sizes for a nested network. pick-size: back to an ordinary network of
// one size.
#include "sluice/lab/pass/nest_sizes.h"

#include <algorithm>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/exit_network.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/sparse_linear.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {

const std::vector<std::string> kMixtures = {"uniform", "graded", "all"};

std::string one_of(const Json& options, const char* key, std::vector<std::string> known,
                   const std::string& what) {
  auto value = json_get_or<std::string>(options, key, known.front(), what);
  if (std::find(known.begin(), known.end(), value) == known.end()) {
    const std::string near = nearest_name(value, known);
    fail(Code::config, "{}: {}: unknown '{}'{}; known: {}", what, key, value.substr(0, 60),
         near.empty() ? "" : fmt::format(", did you mean '{}'?", near),
         fmt::format("{}", Json(known).dump()));
  }
  return value;
}

SubnetSpace read_space(const Json& options, const Model& model, const std::string& what) {
  SubnetSpace space;
  space.widths = json_get_or<std::vector<double>>(options, "widths", {0.25, 0.5, 0.75, 1.0}, what);
  space.depths = json_get_or<std::vector<int64_t>>(options, "depths", {}, what);
  space.multiple = json_get_or<int64_t>(options, "multiple", 1, what);
  if (const auto knobs = options.find("knobs"); knobs != options.end() && knobs->is_array()) {
    space.knobs = json_get<std::vector<std::string>>(options, "knobs", what);
  } else if (one_of(options, "knobs", {"one", "blocks"}, what) == "blocks") {
    space.knobs = block_knobs(model);
  }
  return space;
}

std::vector<Subnet> mixtures_of(const SubnetSpace& space, const std::string& kind) {
  if (kind == "graded") return space.graded();
  return kind == "all" ? space.all() : space.uniform();
}

Json table_of_sizes(const Model& model) {
  Json sizes = Json::array();
  for (const bundle::SizeEntry& entry : model.sizes) {
    sizes.push_back({{"name", entry.name}, {"macs", entry.macs}});
  }
  return sizes;
}

Json set_sizes(Model& model, const PassInput& input) {
  const std::string what = "pass set-sizes";
  json_require_known_keys(input.options,
                          {"widths", "depths", "multiple", "knobs", "mixtures", "sizes"}, what);
  if (model.sizes.empty()) {
    fail(Code::state, "{}: the network is not nested; pass nest makes it so", what);
  }
  const SubnetSpace space = read_space(input.options, model, what);
  std::vector<Subnet> subnets;
  try {
    if (input.options.contains("sizes")) {
      for (const auto& name : json_get<std::vector<std::string>>(input.options, "sizes", what)) {
        subnets.push_back(space.decode(name));
      }
      if (std::find(subnets.begin(), subnets.end(), space.full()) == subnets.end()) {
        subnets.push_back(space.full());
      }
    } else {
      subnets = mixtures_of(space, one_of(input.options, "mixtures", kMixtures, what));
    }
    set_sizes(model, space, std::move(subnets));
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", what, error.what()));
  }
  return {{"sizes", table_of_sizes(model)}};
}

Json pick_size(Model& model, const PassInput& input) {
  const std::string what = "pass pick-size";
  json_require_known_keys(input.options, {"size"}, what);
  const auto name = json_get<std::string>(input.options, "size", what);
  if (dynamic_cast<const ExitNetwork*>(model.root.get()) != nullptr) {
    fail(Code::unsupported,
         "{}: the sizes of a network with exits are thresholds over one network; run it at that "
         "size (sluice run --size)",
         what);
  }
  const int64_t size = bundle::find_size(model.sizes, name, what);
  const int64_t before = model.cost().macs;
  // Chains first: what they leave out is not worth a replacement. The walk goes on into their
  // slots: all bricks must outlive it.
  const std::vector<BrickRef> alive = all_bricks(model);
  for (const SlotRef& ref : walk(*model.root)) {
    const auto* chain = dynamic_cast<const NestedChain*>(ref.slot->get().get());
    if (chain == nullptr) continue;
    ref.slot->exchange(placed_like(chain->pick(size), *chain));
  }
  for (const SlotRef& ref : walk(*model.root)) {
    if (auto* sparse = dynamic_cast<SparseLinear*>(ref.slot->get().get())) {
      if (!sparse->options().sizes.empty()) {
        sparse->set_select(sparse->options().sizes[static_cast<size_t>(size)]);
        if (sparse->keeps_all()) ref.slot->exchange(placed_like(sparse->dense(), *sparse));
      }
      continue;
    }
    const auto* layer = dynamic_cast<const NestedLayer*>(ref.slot->get().get());
    if (layer == nullptr) continue;
    const BrickPtr old = ref.slot->get();
    ref.slot->exchange(placed_like(layer->pick(size), *old));
  }
  const std::string picked = model.sizes[static_cast<size_t>(size)].name;
  model.sizes.clear();
  return {{"size", picked}, {"macs", {{"before", before}, {"after", model.cost().macs}}}};
}

}  // namespace sluice::lab
