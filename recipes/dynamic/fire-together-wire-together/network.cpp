#include "recipes/dynamic/fire-together-wire-together/network.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/gated_conv.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"

namespace sluice::recipes::fire_together {
namespace {

using lab::GatedConvChain;
using lab::GatedConvUnit;

std::shared_ptr<GatedConvChain> residual_block(int64_t from, int64_t to, int64_t stride) {
  auto block = std::make_shared<GatedConvChain>(/*residual=*/true);
  block->append("conv1", lab::make_gated_conv_unit(from, to, 3, stride));
  lab::BrickPtr second = lab::make_gated_conv_unit(to, to);
  second->slot("act").exchange(std::make_shared<lab::Identity>());
  block->append("conv2", std::move(second));
  if (stride != 1 || from != to) {
    auto shortcut = std::make_shared<lab::Sequential>();  // cheap, and added: it stays whole
    shortcut->append(
        "conv", std::make_shared<lab::Conv2d>(lab::Conv2dOptions{
                    .inputs = from, .outputs = to, .kernel = 1, .stride = stride, .bias = false}));
    shortcut->append("norm", std::make_shared<lab::BatchNorm>(to));
    block->slot("shortcut").exchange(std::move(shortcut));
  }
  return block;
}

std::vector<std::pair<std::string, GatedConvUnit*>> units_of(lab::Model& model) {
  std::vector<std::pair<std::string, GatedConvUnit*>> units;
  for (const lab::SlotRef& ref : lab::walk(*model.root)) {
    if (auto* unit = dynamic_cast<GatedConvUnit*>(ref.slot->get().get()))
      units.emplace_back(ref.path, unit);
  }
  return units;
}

/// Input shape of every unit.
std::map<std::string, Shape> input_shapes(lab::Model& model) {
  struct Shapes final : lab::SlotWatcher {
    std::map<std::string, Shape> found;
    void after(const std::string& path, const lab::Brick&, const at::Tensor& x,
               at::Tensor&) override {
      found[path] = Shape(x.sizes().begin() + 1, x.sizes().end());
    }
  } shapes;
  const at::NoGradGuard no_grad;
  const bool training = model.root->is_training();
  model.root->eval();
  lab::Context context;
  context.watcher = &shapes;
  model.forward(lab::probe_input(model, 1, 1), context);
  model.root->train(training);
  return shapes.found;
}

/// Parts of a side of the picture, so that channels * grid^2 comes near the embedding.
int64_t grid_for(const Shape& input, int64_t embedding) {
  const auto wanted = static_cast<int64_t>(
      std::sqrt(static_cast<double>(embedding) / static_cast<double>(input[0])) + 0.5);
  int64_t grid = 1;
  for (int64_t g = 1; g <= wanted; ++g) {
    if (input[1] % g == 0 && input[2] % g == 0) grid = g;
  }
  return grid;
}

lab::Model sliced(const lab::Model& model, double share) {
  lab::Model result = lab::clone(model);
  at::Tensor keep;  // of the channels that come in; undefined: all
  const auto slice_unit = [&](GatedConvUnit& unit, bool outputs) {
    lab::Slot& conv = unit.slot("conv");
    if (keep.defined()) conv.exchange(conv.as<lab::Conv2d>().slice_inputs(keep));
    keep = at::Tensor();
    if (!outputs) return;
    auto& layer = conv.as<lab::Conv2d>();
    const int64_t count =
        std::max<int64_t>(1, std::llround(share * static_cast<double>(layer.options().outputs)));
    keep = std::get<0>(std::get<1>(layer.output_norms(1).topk(count)).sort());
    conv.exchange(layer.slice_outputs(keep));
    lab::Slot& norm = unit.slot("norm");
    norm.exchange(norm.as<lab::BatchNorm>().slice_channels(keep));
  };
  for (const auto& slot : result.root->slots()) {
    auto* chain = dynamic_cast<GatedConvChain*>(slot->get().get());
    if (chain == nullptr) continue;
    const bool residual = chain->has_slot("shortcut");
    keep = at::Tensor();
    const auto& children = chain->slots();
    for (size_t i = residual ? 1 : 0; i < children.size(); ++i) {
      if (auto* unit = dynamic_cast<GatedConvUnit*>(children[i]->get().get()))
        slice_unit(*unit, !residual || i + 1 < children.size());
    }
  }
  if (keep.defined()) {
    lab::Slot& head = result.root->slot("head");
    head.exchange(head.as<lab::Linear>().slice_inputs(keep));
  }
  return result;
}

[[noreturn]] void no_nodes(const lab::Brick& gate, const std::string& path) {
  fail(Code::unsupported, "{}: a {} is a control of the lab, the engine has no node for it", path,
       gate.kind());
}

std::shared_ptr<lab::GateBrick> as_gate(lab::BrickPtr brick) {
  auto gate = std::dynamic_pointer_cast<lab::GateBrick>(brick);
  SLUICE_CHECK(gate != nullptr);
  return gate;
}

}  // namespace

lab::Model make_network(const Layout& layout, const data::ImageSet& data, uint64_t seed) {
  auto root = std::make_shared<lab::Sequential>();
  int64_t from = data.train.sample_shape[0];
  if (layout.blocks == 0) {
    auto chain = std::make_shared<GatedConvChain>();
    for (size_t i = 0; i < layout.widths.size(); ++i) {
      const auto number = static_cast<int64_t>(i) + 1;
      chain->append(fmt::format("conv{}", number),
                    lab::make_gated_conv_unit(from, layout.widths[i]));
      from = layout.widths[i];
      if (std::count(layout.pools.begin(), layout.pools.end(), number) > 0)
        chain->append(fmt::format("pool{}", number), std::make_shared<lab::Pool2d>("max"));
    }
    root->append("features", std::move(chain));
  } else {
    root->append("stem", lab::make_gated_conv_unit(from, layout.widths.front()));
    from = layout.widths.front();
    for (size_t stage = 0; stage < layout.widths.size(); ++stage) {
      for (int64_t block = 0; block < layout.blocks; ++block) {
        const int64_t to = layout.widths[stage];
        root->append(fmt::format("stage{}_block{}", stage, block),
                     residual_block(from, to, stage > 0 && block == 0 ? 2 : 1));
        from = to;
      }
    }
  }
  root->append("pool", std::make_shared<lab::Pool2d>("global_avg"));
  root->append("head",
               std::make_shared<lab::Linear>(from, static_cast<int64_t>(data.labels.size())));
  lab::initialize(*root, "kaiming_normal", seed);
  lab::Model model;
  model.root = std::move(root);
  model.input_shape = data.train.sample_shape;
  model.root->output_shape(model.input_shape);
  model.task = {"classify", data.name, data.labels, data.mean, data.std};
  return model;
}

lab::Model with_predictors(const lab::Model& model, const Layout& layout, Predictor kind,
                           uint64_t seed) {
  constexpr double kOpen = 2;
  lab::Model result = lab::clone(model);
  const auto shapes = input_shapes(result);
  const c10::Device device = lab::device_of(*result.root);
  for (const auto& [path, unit] : units_of(result)) {
    const auto& conv = unit->slot("conv").as<lab::Conv2d>().options();
    const bool ours = kind == Predictor::labelled;
    const Json score = {{"kind", "pooled_linear"},
                        {"inputs", conv.inputs},
                        {"units", conv.outputs},
                        {"grid", grid_for(shapes.at(path), layout.embedding)},
                        {"softmax", ours && layout.softmax},
                        {"detach", ours},
                        {"bias", kOpen}};
    auto gate = std::make_shared<lab::Gate>(
        Json{{"score", score}, {"estimator", {{"kind", ours ? "none" : "ste_sigmoid"}}}});
    for (const auto& item : gate->named_parameters()) {
      if (item.value().dim() < 2) continue;
      const double bound = 1 / std::sqrt(static_cast<double>(item.value().size(1)));
      at::Tensor weight = item.value();
      const at::NoGradGuard no_grad;
      lab::fill_uniform(weight, bound, derive_seed(seed, path));
    }
    gate->to(device);
    unit->slot("gate").exchange(std::move(gate));
  }
  return result;
}

lab::Model sliced_to(const lab::Model& model, double macs) {
  double low = 0, high = 1;
  for (int step = 0; step < 20; ++step) {
    const double share = (low + high) / 2;
    (static_cast<double>(sliced(model, share).cost().macs) < macs ? low : high) = share;
  }
  return sliced(model, high);
}

NeighboursGate::NeighboursGate(lab::BrickPtr gate) : gate_(as_gate(std::move(gate))) {
  register_module("inner", gate_);
}
Json NeighboursGate::attributes() const { return Json::object(); }
at::Tensor NeighboursGate::decide(const at::Tensor& x, const at::Tensor& unit_macs,
                                  lab::Context& context) {
  return gate_->decide(x.roll(1, 0), unit_macs, context);
}
bundle::Value NeighboursGate::lower(bundle::Builder&, const bundle::Value&,
                                    const std::string& path) const {
  no_nodes(*this, path);
}

RandomLikeGate::RandomLikeGate(lab::BrickPtr gate, uint64_t seed)
    : gate_(as_gate(std::move(gate))), generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {
  register_module("inner", gate_);
}
Json RandomLikeGate::attributes() const { return Json::object(); }
at::Tensor RandomLikeGate::decide(const at::Tensor& x, const at::Tensor& unit_macs,
                                  lab::Context& context) {
  // The log is to have what is run, not what the gate would have said.
  lab::GateLog* const log = std::exchange(context.gate_log, nullptr);
  const at::Tensor wanted = gate_->decide(x, unit_macs, context);
  context.gate_log = log;
  const at::Tensor noise = at::rand(wanted.sizes(), generator_).to(wanted.device());
  const at::Tensor rank = noise.argsort(int64_t{-1}, false).argsort(int64_t{-1}, false);
  const at::Tensor drawn = (rank < wanted.sum(-1, /*keepdim=*/true)).to(wanted.scalar_type());
  if (log != nullptr) log->add({context.path(), drawn, drawn, unit_macs});
  return drawn;
}
bundle::Value RandomLikeGate::lower(bundle::Builder&, const bundle::Value&,
                                    const std::string& path) const {
  no_nodes(*this, path);
}

void replace_gates(lab::Model& model,
                   const std::function<lab::BrickPtr(lab::BrickPtr, const std::string&)>& wrap) {
  for (const auto& [path, unit] : units_of(model)) {
    lab::Slot& gate = unit->slot("gate");
    gate.exchange(wrap(gate.get(), path));
  }
}

}  // namespace sluice::recipes::fire_together
