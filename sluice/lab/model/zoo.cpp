// Reference networks for pictures.
#include <algorithm>
#include <map>

#include "sluice/base/json.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/vision_transformer.h"
#include "sluice/lab/model/model.h"

namespace sluice::lab {
namespace {

struct ZooSizes {
  Shape input;  ///< [channels, height, width]
  int64_t classes;
};

int64_t option(const Json& options, const char* key, int64_t fallback, int64_t low, int64_t high,
               const char* model) {
  return require_range(json_get_or<int64_t>(options, key, fallback, model), low, high, key, model);
}

std::vector<int64_t> widths(const Json& options, const char* key, std::vector<int64_t> fallback,
                            const char* model) {
  constexpr size_t kMaxLayers = 64;
  auto result = json_get_or<std::vector<int64_t>>(options, key, std::move(fallback), model);
  if (result.size() > kMaxLayers) {
    fail(Code::config, "{} of {}: {} layers; at most {}", key, model, result.size(), kMaxLayers);
  }
  for (const int64_t width : result) require_range(width, 1, kMaxChannels, key, model);
  return result;
}

BrickPtr conv3x3(int64_t inputs, int64_t outputs, int64_t stride) {
  return std::make_shared<Conv2d>(Conv2dOptions{.inputs = inputs,
                                                .outputs = outputs,
                                                .kernel = 3,
                                                .stride = stride,
                                                .padding = 1,
                                                .bias = false});
}

BrickPtr relu() { return std::make_shared<Activation>("relu"); }

BrickPtr make_resnet(const Json& options, const ZooSizes& sizes) {
  json_require_known_keys(options, {"width", "widths", "blocks", "stages", "stem_stride", "init"},
                          "resnet");
  const std::vector<int64_t> own = widths(options, "widths", {}, "resnet");
  if (!own.empty() && (options.contains("width") || options.contains("stages"))) {
    fail(Code::config, "widths of resnet: they stand for width and stages; found both");
  }
  const int64_t width = own.empty() ? option(options, "width", 32, 1, 4096, "resnet") : own.front();
  const int64_t blocks = option(options, "blocks", 2, 1, 200, "resnet");
  const int64_t stages =
      own.empty() ? option(options, "stages", 3, 1, 8, "resnet") : static_cast<int64_t>(own.size());
  const int64_t stem_stride = option(options, "stem_stride", 2, 1, 4, "resnet");

  auto root = std::make_shared<Sequential>();
  auto stem = std::make_shared<Sequential>();
  stem->append("conv", conv3x3(sizes.input[0], width, stem_stride));
  stem->append("norm", std::make_shared<BatchNorm>(width));
  stem->append("relu", relu());
  root->append("stem", std::move(stem));
  int64_t inputs = width;
  for (int64_t s = 0; s < stages; ++s) {
    const int64_t outputs = own.empty() ? width << s : own[static_cast<size_t>(s)];
    auto stage = std::make_shared<Sequential>();
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t stride = s > 0 && b == 0 ? 2 : 1;
      stage->append(fmt::format("block{}", b),
                    make_residual_block(inputs, outputs, outputs, stride));
      inputs = outputs;
    }
    root->append(fmt::format("stage{}", s), std::move(stage));
  }
  root->append("pool", std::make_shared<Pool2d>("global_avg"));
  root->append("fc", std::make_shared<Linear>(inputs, sizes.classes));
  return root;
}

BrickPtr make_mlp(const Json& options, const ZooSizes& sizes) {
  json_require_known_keys(options, {"hidden", "init"}, "mlp");
  auto root = std::make_shared<Sequential>();
  root->append("flatten", std::make_shared<Flatten>());
  int64_t inputs = numel(sizes.input);
  int64_t layer = 1;
  for (const int64_t hidden : widths(options, "hidden", {300, 100}, "mlp")) {
    root->append(fmt::format("fc{}", layer), std::make_shared<Linear>(inputs, hidden));
    root->append(fmt::format("relu{}", layer), relu());
    inputs = hidden;
    ++layer;
  }
  root->append(fmt::format("fc{}", layer), std::make_shared<Linear>(inputs, sizes.classes));
  return root;
}

BrickPtr make_convnet(const Json& options, const ZooSizes& sizes) {
  json_require_known_keys(options, {"widths", "hidden", "init"}, "convnet");
  auto root = std::make_shared<Sequential>();
  Shape shape = sizes.input;
  const auto add = [&](const std::string& name, BrickPtr brick) {
    shape = brick->output_shape(shape);
    root->append(name, std::move(brick));
  };
  int64_t layer = 1;
  for (const int64_t width : widths(options, "widths", {32, 64}, "convnet")) {
    add(fmt::format("conv{}", layer), conv3x3(shape[0], width, 1));
    add(fmt::format("norm{}", layer), std::make_shared<BatchNorm>(width));
    add(fmt::format("relu{}", layer), relu());
    add(fmt::format("pool{}", layer), std::make_shared<Pool2d>("max", 2, 2));
    ++layer;
  }
  add("flatten", std::make_shared<Flatten>());
  const int64_t hidden = option(options, "hidden", 128, 1, kMaxChannels, "convnet");
  add("fc1", std::make_shared<Linear>(shape[0], hidden));
  add("fc1_relu", relu());
  add("fc2", std::make_shared<Linear>(hidden, sizes.classes));
  return root;
}

BrickPtr make_vit(const Json& options, const ZooSizes& sizes) {
  json_require_known_keys(
      options, {"patch", "width", "layers", "heads", "ffn", "activation", "pooling", "init"},
      "vit");
  VisionTransformerLayers layers;
  const auto integer = [&](const char* key, int64_t fallback) {
    return json_get_or<int64_t>(options, key, fallback, "vit");
  };
  layers.patch = integer("patch", layers.patch);
  layers.width = integer("width", layers.width);
  layers.layers = integer("layers", layers.layers);
  layers.heads = integer("heads", layers.heads);
  layers.neurons = integer("ffn", layers.neurons);
  layers.activation = json_get_or<std::string>(options, "activation", layers.activation, "vit");
  layers.pooling = json_get_or<std::string>(options, "pooling", layers.pooling, "vit");
  return make_vision_transformer(layers, sizes.input, sizes.classes);
}

struct Reference {
  BrickPtr (*make)(const Json& options, const ZooSizes& sizes);
  const char* init;
};

const std::map<std::string, Reference>& references() {
  static const std::map<std::string, Reference> table = {
      {"resnet", {make_resnet, "kaiming_normal"}},
      {"mlp", {make_mlp, "glorot_normal"}},
      {"convnet", {make_convnet, "kaiming_normal"}},
      {"vit", {make_vit, "glorot_normal"}},
  };
  return table;
}

}  // namespace

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& [name, reference] : references()) names.push_back(name);
  return names;
}

Model make_model(const std::string& name, const Json& options, const data::ImageSet& data,
                 uint64_t seed) {
  const auto found = references().find(name);
  if (found == references().end()) {
    const std::string near = nearest_name(name, model_names());
    fail(Code::config, "unknown model '{}'{}; known: {}", name.substr(0, 60),
         near.empty() ? "" : fmt::format(", did you mean '{}'?", near),
         fmt::join(model_names(), ", "));
  }
  const Shape& input = data.train.sample_shape;
  if (input.size() != 3 || data.labels.empty()) {
    fail(Code::shape, "data set '{}': expected [channels, height, width] and labels, found {}, {}",
         data.name, to_string(input), data.labels.size());
  }
  const Json chosen = options.is_null() ? Json::object() : options;
  Model model;
  {
    const WithoutInit without_init;  // initialize() draws every weight, from `seed` alone
    model.root = found->second.make(chosen, {input, static_cast<int64_t>(data.labels.size())});
  }
  initialize(*model.root, json_get_or<std::string>(chosen, "init", found->second.init, name), seed);
  model.input_shape = input;
  model.root->output_shape(input);
  model.task = {"classify", data.name, data.labels, data.mean, data.std};
  model.add_step({{"step", "make"}, {"model", name}, {"options", chosen}, {"seed", seed}});
  return model;
}

}  // namespace sluice::lab
