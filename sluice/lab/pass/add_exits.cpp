// Exits for a network that was trained without them.
#include <algorithm>

#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/early_exit_decoder.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/vision_transformer.h"
#include "sluice/lab/pass/exits.h"
#include "sluice/lab/pass/least_squares.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

const std::string kAddExits = "pass add-exits";

struct ExitOptions {
  std::vector<int64_t> layers;  ///< empty: every
  int64_t every = 2;
  std::string gate;
  bool own_heads = false;
  uint64_t seed = 0;
};

/// A head of its own, with the layer in it that is to be fitted.
struct Head {
  BrickPtr brick;
  std::shared_ptr<Linear> linear;
};

std::vector<int64_t> exit_layers(const ExitOptions& options, int64_t depth) {
  std::vector<int64_t> layers = options.layers;
  for (int64_t l = options.every; options.layers.empty() && l < depth; l += options.every)
    layers.push_back(l);
  std::sort(layers.begin(), layers.end());
  const bool ascends = std::adjacent_find(layers.begin(), layers.end()) == layers.end();
  if (layers.empty() || layers.front() < 1 || layers.back() >= depth || !ascends)
    fail(Code::config,
         "{}: the network has {} layers: expected exits behind different ones from 1 to {}, found "
         "{}",
         kAddExits, depth, depth - 1,
         layers.empty() ? fmt::format("none with every={}", options.every)
                        : Json(layers).dump().substr(0, 80));
  return layers;
}

Head fresh(BrickPtr brick, int64_t inputs, int64_t outputs, uint64_t seed) {
  Head head{std::move(brick), nullptr};
  {
    const WithoutInit without_init;
    head.linear = std::make_shared<Linear>(inputs, outputs);
  }
  fill_normal(head.linear->weight, 0.02, seed);
  const at::NoGradGuard no_grad;
  head.linear->bias.zero_();
  return head;
}

// ---- decoders ----

std::vector<Head> add_to_decoder(Model& model, const ExitOptions& options,
                                 std::vector<int64_t>& layers) {
  const auto& root = dynamic_cast<const Decoder&>(*model.root);
  layers = exit_layers(options, std::ssize((*root.slot("blocks")).slots()));
  auto made = std::make_shared<EarlyExitDecoder>(root.context_length(), layers);
  for (const auto& slot : root.slots())
    if (!slot->empty()) made->slot(slot->name()).exchange(slot->get());
  made->slot("gate").exchange(std::make_shared<ExitGate>(options.gate));
  std::vector<Head> heads;
  if (options.own_heads) {
    auto all = std::make_shared<Sequential>();
    const Shape output = root.output_shape(model.input_shape);
    const int64_t width = root.slot("embed").output_shape(model.input_shape).back();
    for (size_t i = 0; i < layers.size(); ++i) {
      auto head = std::make_shared<Sequential>();
      if (!root.slot("norm").empty()) head->append("norm", clone(*root.slot("norm")));
      heads.push_back(fresh(head, width, output.back(), derive_seed(options.seed, "exit", i)));
      head->append("head", heads.back().linear);
      all->append(made->exit_name(static_cast<int64_t>(i)), head);
    }
    made->slot("exits").exchange(all);
  }
  made->check_slots();
  placed_like(made, root);
  model.root = made;
  return heads;
}

// ---- chains ----

struct Layer {
  std::string name;
  BrickPtr brick;
  bool counts;  ///< an exit may be behind it
};

bool starts_layer(const Brick& brick) {
  return dynamic_cast<const Linear*>(&brick) != nullptr ||
         dynamic_cast<const Conv2d*>(&brick) != nullptr;
}

/// Residual networks: each block; others: each linear layer or convolution with all that follows
/// it.
std::vector<Layer> layers_of(const Sequential& root) {
  std::vector<Layer> layers;
  const auto is_stage = [](const Brick& brick) {
    return brick.kind() == "sequential" && !brick.slots().empty() &&
           std::ranges::all_of(brick.slots(), [](const auto& slot) {
             return !slot->empty() && (**slot).kind() == "residual_block";
           });
  };
  const bool residual =
      std::ranges::any_of(root.slots(), [&](const auto& slot) { return is_stage(**slot); });
  std::shared_ptr<Sequential> open;
  for (const auto& slot : root.slots()) {
    const Brick& brick = **slot;
    if (residual) {
      if (!is_stage(brick)) {
        layers.push_back({slot->name(), slot->get(), false});
        continue;
      }
      for (const auto& inner : brick.slots())
        layers.push_back({slot->name() + "_" + inner->name(), inner->get(), true});
      continue;
    }
    const bool starts = starts_layer(brick);
    if (starts || open == nullptr) {
      open = std::make_shared<Sequential>();
      const auto number = std::ranges::count_if(layers, [](const Layer& l) { return l.counts; });
      layers.push_back({starts ? fmt::format("layer{}", number + 1) : "input", open, starts});
    }
    open->append(slot->name(), slot->get());
  }
  return layers;
}

std::vector<Layer> layers_of(const VisionTransformer& root) {
  const auto part = [&](const char* name, std::initializer_list<const char*> slots) {
    auto made = std::make_shared<VisionTransformer>(root.pooling(), name);
    for (const char* slot : slots)
      if (!root.slot(slot).empty()) made->slot(slot).exchange(root.slot(slot).get());
    return made;
  };
  std::vector<Layer> layers = {
      {"embed", part("embed", {"patches", "class_token", "positions"}), false}};
  for (const auto& block : (*root.slot("blocks")).slots())
    layers.push_back({"block" + block->name(), block->get(), true});
  layers.push_back({"classify", part("classify", {"norm", "head"}), false});
  return layers;
}

Head head_for(const Model& model, const Shape& features, int64_t classes, uint64_t seed) {
  if (const auto* vit = dynamic_cast<const VisionTransformer*>(model.root.get())) {
    auto part = std::make_shared<VisionTransformer>(vit->pooling(), "classify");
    if (!vit->slot("norm").empty()) part->slot("norm").exchange(clone(*vit->slot("norm")));
    Head head = fresh(part, features.back(), classes, seed);
    part->slot("head").exchange(head.linear);
    return head;
  }
  auto all = std::make_shared<Sequential>();
  if (features.size() == 3) all->append("pool", std::make_shared<Pool2d>("global_avg"));
  Head head = fresh(all, features.front(), classes, seed);
  all->append("fc", head.linear);
  return head;
}

std::vector<Head> add_to_chain(Model& model, const ExitOptions& options,
                               const std::vector<Layer>& parts, std::vector<int64_t>& layers) {
  // The last layer is the head, or (in residual networks) stands before it.
  int64_t depth = std::ranges::count_if(parts, [](const Layer& l) { return l.counts; });
  layers = exit_layers(options, depth);
  const int64_t classes = model.root->output_shape(model.input_shape).back();
  auto chain = std::make_shared<ExitChain>("threshold");
  std::vector<Head> heads;
  Shape shape = model.input_shape;
  int64_t index = 0;
  for (const Layer& part : parts) {
    chain->append(part.name, part.brick);
    shape = part.brick->output_shape(shape);
    if (!part.counts || !std::ranges::count(layers, ++index)) continue;
    heads.push_back(
        head_for(model, shape, classes, derive_seed(options.seed, "exit", heads.size())));
    chain->append_exit(heads.back().brick, std::make_shared<ExitGate>(options.gate));
  }
  chain->check_slots();
  placed_like(chain, *model.root);
  model.root = chain;
  return heads;
}

// ---- heads of their own ----

/// What goes into one brick, and what the network says.
class InputOf final : public SlotWatcher {
 public:
  explicit InputOf(const std::vector<Head>& heads) : heads_(heads), inputs(heads.size()) {}
  void after(const std::string&, const Brick& brick, const at::Tensor& x, at::Tensor&) override {
    for (size_t i = 0; i < heads_.size(); ++i)
      if (heads_[i].linear.get() == &brick) inputs[i] = x;
  }

 private:
  const std::vector<Head>& heads_;

 public:
  std::vector<at::Tensor> inputs;
};

/// Least squares from what each head's linear layer reads to what the last head says, up to what a
/// softmax does not see. The residuals, of 1.
std::vector<double> fit(Model& model, const PassInput& data, const std::vector<Head>& heads) {
  const auto& exits = dynamic_cast<const ExitNetwork&>(*model.root);
  std::vector<LeastSquares> sums;
  for (const Head& head : heads) sums.emplace_back(head.linear->inputs(), head.linear->outputs());
  const EvaluationMode evaluation(*model.root);
  for_each_calibration_batch(model, data, kAddExits, [&](const at::Tensor& x) {
    InputOf watcher(heads);
    Context context, plain;
    context.watcher = &watcher;
    exits.exit_table(x, context);
    at::Tensor said = model.root->forward(x, plain).flatten(0, -2);
    said = said - said.mean(-1, /*keepdim=*/true);
    for (size_t i = 0; i < heads.size(); ++i)
      sums[i].add(watcher.inputs[i].reshape({said.size(0), -1}), said);
  });
  std::vector<double> residuals;
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < heads.size(); ++i) {
    const LinearFit found = sums[i].solve();
    heads[i].linear->weight.copy_(found.weight);
    heads[i].linear->bias.copy_(found.bias);
    residuals.push_back(found.residual);
  }
  return residuals;
}

ExitOptions read_options(const Json& json, bool decoder) {
  json_require_known_keys(json, {"layers", "every", "heads", "gate", "threshold", "shares", "seed"},
                          kAddExits);
  ExitOptions options;
  if (json.contains("layers") && json.contains("every"))
    fail(Code::config, "{}: layers and every say the same thing; give one of them", kAddExits);
  if (const auto found = json.find("layers"); found != json.end()) {
    options.layers = found->is_number_integer()
                         ? std::vector<int64_t>{found->get<int64_t>()}
                         : json_get<std::vector<int64_t>>(json, "layers", kAddExits);
    if (options.layers.empty()) fail(Code::config, "{}: layers: expected at least one", kAddExits);
  }
  options.every = json_get_or<int64_t>(json, "every", 2, kAddExits);
  if (options.every < 1)
    fail(Code::config, "{}: every: expected 1 or more, found {}", kAddExits, options.every);
  const auto heads = json_get_or<std::string>(json, "heads", decoder ? "shared" : "own", kAddExits);
  if (heads != "shared" && heads != "own")
    fail(Code::config, "{}: heads: expected shared or own, found '{}'", kAddExits,
         heads.substr(0, 60));
  options.own_heads = heads == "own";
  if (!decoder && !options.own_heads)
    fail(Code::config,
         "{}: heads=shared: features in the middle of this network are not what its head reads; "
         "only a decoder's are. Leave it out",
         kAddExits);
  options.gate = json_get_or<std::string>(json, "gate", "confidence", kAddExits);
  ExitGate{options.gate.empty() ? "none" : options.gate};  // refuses unknown ones
  options.seed = static_cast<uint64_t>(json_get_or<int64_t>(json, "seed", 0, kAddExits));
  return options;
}

}  // namespace

Json add_exits(Model& model, const PassInput& input) {
  const std::string kind = model.root->kind();
  const bool decoder = kind == "decoder";
  if (dynamic_cast<const ExitNetwork*>(model.root.get()) != nullptr)
    fail(Code::unsupported, "{}: the network has exits already; pass calibrate-exits sets them",
         kAddExits);
  const ExitOptions options = read_options(input.options, decoder);
  if (!model.sizes.empty())
    fail(Code::unsupported, "{}: the network has {} sizes already; pick-size keeps one of them",
         kAddExits, model.sizes.size());
  const auto* sequential = dynamic_cast<const Sequential*>(model.root.get());
  const auto* vit = dynamic_cast<const VisionTransformer*>(model.root.get());
  const bool classifies =
      model.root->vocabulary() == 0 && model.root->output_shape(model.input_shape).size() == 1;
  if (!decoder && !((sequential || vit) && classifies))
    fail(Code::unsupported,
         "{}: the network is a {}; exits go behind the layers of decoders, vision transformers and "
         "classifiers that are a sequence of layers",
         kAddExits, kind);
  // Held-out halves for the thresholds come from what the heads were not fitted to.
  PassInput rest = input;
  rest.options = Json::object();
  for (const char* key : {"threshold", "shares"})
    if (input.options.contains(key)) rest.options[key] = input.options.at(key);
  PassInput fitting = input;
  const bool fits = options.own_heads && input.calibration.defined();
  if (fits) {
    const int64_t samples = input.calibration.size(0);
    if (samples < 4)
      fail(Code::usage, "{}: {} calibration inputs; heads of their own need at least 4", kAddExits,
           samples);
    fitting.calibration = input.calibration.narrow(0, 0, samples / 2);
    rest.calibration = input.calibration.narrow(0, samples / 2, samples - samples / 2);
  }
  std::vector<int64_t> layers;
  const BrickPtr before = model.root;  // what the walks below look at lives on
  const std::vector<Head> heads =
      decoder
          ? add_to_decoder(model, options, layers)
          : add_to_chain(model, options, vit ? layers_of(*vit) : layers_of(*sequential), layers);
  // Until there are thresholds nobody leaves.
  auto& exits = dynamic_cast<ExitNetwork&>(*model.root);
  exits.set_exit_sizes({ExitThresholds(layers.size()), ExitThresholds(layers.size())});
  Json report = {
      {"layers", layers}, {"heads", options.own_heads ? "own" : "shared"}, {"gate", options.gate}};
  if (options.own_heads) {
    report["fitted"] = fits;
    if (fits) report["residual"] = fit(model, fitting, heads);
    if (!fits) report["note"] = "the heads are fresh: train them, or give calibration inputs";
  }
  report.update(calibrate_exits(model, rest, kAddExits));
  return report;
}

}  // namespace sluice::lab
