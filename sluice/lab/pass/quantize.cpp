// quantize, dequantize: linear layers, convolutions and tables of embeddings to packed weights and
// back.
#include <cmath>
#include <map>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/conv2d.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/pass/steps.h"
#include "sluice/lab/quant/quant_conv.h"
#include "sluice/lab/quant/quant_embedding.h"
#include "sluice/lab/quant/quant_linear.h"

namespace sluice::lab {
namespace {

const std::string kQuantize = "pass quantize";

struct QuantizeOptions {
  bundle::Format format;
  ActivationFormat activations;
  std::string slots;
  std::vector<std::string> skip;
  bool embeddings;
};

std::vector<std::string> patterns(const Json& options, const char* key) {
  const auto found = options.find(key);
  if (found != options.end() && found->is_string()) return {found->get<std::string>()};
  return json_get_or<std::vector<std::string>>(options, key, {}, kQuantize);
}

QuantizeOptions read_quantize(const Json& options) {
  json_require_known_keys(options, {"format", "activations", "slots", "skip", "embeddings"},
                          kQuantize);
  QuantizeOptions result;
  result.format = weight_format(json_get_or<std::string>(options, "format", "i8", kQuantize),
                                kQuantize + ": format");
  if (result.format == bundle::Format::f32) {
    fail(Code::config, "{}: format: f32 is what the weights are in; see dequantize", kQuantize);
  }
  result.activations = activation_format(
      json_get_or<std::string>(options, "activations", "f32", kQuantize), kQuantize);
  result.slots = json_get_or<std::string>(options, "slots", "**", kQuantize);
  result.skip = patterns(options, "skip");
  // Of a row that is looked up, not summed over, one or two bits leave too little.
  using bundle::Format;
  const bool fine = result.format != Format::ternary && result.format != Format::binary &&
                    result.format != Format::binary2 && result.format != Format::mixed;
  result.embeddings = json_get_or<bool>(options, "embeddings", fine, kQuantize);
  return result;
}

struct QuantizeTarget {
  SlotRef ref;
  std::shared_ptr<Linear> layer;          ///< this,
  std::shared_ptr<Embedding> table;       ///< or this,
  std::shared_ptr<Conv2d> conv;           ///< or this,
  std::shared_ptr<GraphConv> graph_conv;  ///< or this

  QuantizeTarget(const SlotRef& slot, bundle::Format format) : ref(slot) {
    const BrickPtr& brick = ref.slot->get();
    layer = std::dynamic_pointer_cast<Linear>(brick);
    table = std::dynamic_pointer_cast<Embedding>(brick);
    if (format != bundle::Format::i8) return;  // the engine's convolutions know no other
    conv = std::dynamic_pointer_cast<Conv2d>(brick);
    graph_conv = std::dynamic_pointer_cast<GraphConv>(brick);
  }
  bool any() const { return layer || table || convolution(); }
  bool convolution() const { return conv || graph_conv; }
  const at::Tensor& weight() const {
    return layer ? layer->weight : table ? table->weight : conv ? conv->weight : graph_conv->weight;
  }
  int64_t rows() const { return weight().size(0); }
  int64_t columns() const { return weight().numel() / rows(); }
  int64_t groups() const { return conv ? conv->options().groups : graph_conv->options().groups; }
  /// What its input is rounded to, where `wanted` is what the pass was asked for.
  ActivationFormat activations(ActivationFormat wanted) const {
    if (table) return ActivationFormat::f32;
    if (!convolution()) return wanted;
    const bool rounds =
        wanted == ActivationFormat::i8 && bundle::rounding_pays(weight().sizes().vec(), groups());
    return rounds ? wanted : ActivationFormat::f32;
  }
};

/// Stands in a layer's slot and adds up the squares of its inputs, column by column.
class InputProbe final : public Brick {
 public:
  explicit InputProbe(std::shared_ptr<Linear> layer) : layer_(std::move(layer)) {
    register_module("layer", layer_);  // the model keeps its device and type
  }
  std::string kind() const override { return layer_->kind(); }
  Json attributes() const override { return layer_->attributes(); }
  at::Tensor forward(const at::Tensor& x, Context& context) override {
    const at::Tensor rows = x.detach().reshape({-1, layer_->inputs()}).to(at::kDouble);
    const at::Tensor sum = (rows * rows).sum(0);
    squares_ = squares_.defined() ? squares_ + sum : sum;
    count_ += rows.size(0);
    return layer_->forward(x, context);
  }
  Shape output_shape(const Shape& input) const override { return layer_->output_shape(input); }
  Cost cost(const Shape& input) const override { return layer_->cost(input); }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override {
    return layer_->lower(builder, x, path);
  }
  /// [inputs], CPU; undefined when nothing came by.
  at::Tensor mean_square() const {
    return count_ == 0 ? at::Tensor() : (squares_ / static_cast<double>(count_)).cpu();
  }

 private:
  std::shared_ptr<Linear> layer_;
  at::Tensor squares_;
  int64_t count_ = 0;
};

/// What keeping only a column's signs costs in the layer's output, by calibration inputs:
/// mean x_j^2 sum_i (|w_ij| - s_i)^2, where s_i is the mean size of row i's weights.
std::map<std::string, std::vector<float>> column_saliency(
    Model& model, const PassInput& input, const std::vector<QuantizeTarget>& targets) {
  std::map<std::string, std::vector<float>> result;
  if (!input.calibration.defined()) return result;
  std::vector<std::shared_ptr<InputProbe>> probes;
  for (const QuantizeTarget& target : targets) {
    probes.push_back(nullptr);
    if (!target.layer) continue;
    probes.back() = std::make_shared<InputProbe>(target.layer);
    probes.back()->train(target.layer->is_training());
    target.ref.slot->exchange(probes.back());
  }
  {
    const EvaluationMode evaluation(*model.root);
    for_each_calibration_batch(model, input, "quantize", [&](const at::Tensor& x) {
      Context context;
      model.root->forward(x, context);
    });
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    if (!targets[i].layer) continue;
    targets[i].ref.slot->exchange(targets[i].layer);
    const at::Tensor squares = probes[i]->mean_square();
    if (!squares.defined()) continue;  // a closed gate hid the layer from every sample
    const at::Tensor weight = targets[i].layer->weight.detach().to(at::kCPU, at::kDouble);
    const at::Tensor size = weight.abs();
    const at::Tensor lost = size - size.mean(1, /*keepdim=*/true);
    const at::Tensor saliency = ((lost * lost).sum(0) * squares).to(at::kFloat).contiguous();
    result[targets[i].ref.path].assign(saliency.data_ptr<float>(),
                                       saliency.data_ptr<float>() + saliency.numel());
  }
  return result;
}

/// What takes the target's place, with the values it stands for.
struct Packed {
  BrickPtr brick;
  at::Tensor values;
  int64_t bytes;
};

Packed packed(const QuantizeTarget& target, const QuantizeOptions& options,
              std::span<const float> saliency) {
  try {
    if (target.table) {
      auto table = QuantEmbedding::pack(*target.table, options.format);
      return {table, table->values(), table->weight.numel()};
    }
    const ActivationFormat activations = target.activations(options.activations);
    if (target.convolution()) {
      auto conv = target.conv ? QuantConv::pack(*target.conv, activations)
                              : QuantConv::pack(*target.graph_conv, activations);
      return {conv, conv->values(), conv->weight.numel()};
    }
    bundle::PackOptions pack;
    if (options.format == bundle::Format::mixed) pack.saliency = saliency;
    auto layer = QuantLinear::pack(*target.layer, options.format, activations, pack);
    return {layer, layer->values(), layer->weight.numel()};
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}: {}", kQuantize, target.ref.path, error.what()));
  }
}

struct SquareError {
  double error = 0, reference = 0;
  /// Root of the mean squared difference over that of the reference; 0 where both are 0.
  double relative() const { return reference > 0 ? std::sqrt(error / reference) : 0; }
};

SquareError compare(const at::Tensor& values, const at::Tensor& reference) {
  const at::Tensor wide = reference.detach().to(at::kDouble);
  const at::Tensor difference = values.to(at::kDouble) - wide;
  return {(difference * difference).sum().item<double>(), (wide * wide).sum().item<double>()};
}

int64_t convolution_bytes(const Model& model) {
  int64_t bytes = 0;
  for (const BrickRef& ref : all_bricks(model)) {
    if (const auto* conv = dynamic_cast<const Conv2d*>(ref.brick.get())) {
      bytes += 4 * conv->weight.numel();
    } else if (const auto* other = dynamic_cast<const GraphConv*>(ref.brick.get())) {
      bytes += 4 * other->weight.numel();
    }
  }
  return bytes;
}

std::string joined(const Json& reasons) {
  std::string text;
  for (const auto& [path, reason] : reasons.items()) {
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", path, reason.get<std::string>());
  }
  return text;
}

}  // namespace

Json quantize(Model& model, const PassInput& input) {
  const QuantizeOptions options = read_quantize(input.options);
  for (const std::string& pattern : options.skip)
    walk(*model.root, pattern);  // must name something
  std::vector<QuantizeTarget> targets;
  Json left = Json::object();
  for (const SlotRef& ref : walk(*model.root, options.slots)) {
    QuantizeTarget target(ref, options.format);
    if (!target.any()) continue;
    const at::Tensor weight = target.weight();
    const int64_t bytes = bundle::stored_bytes(options.format, {target.rows(), target.columns()});
    if (std::any_of(options.skip.begin(), options.skip.end(),
                    [&](const std::string& pattern) { return path_matches(pattern, ref.path); })) {
      left[ref.path] = "skipped";
    } else if (branch_gate(*ref.owner) != nullptr && ref.slot->name() != "k" &&
               ref.slot->name() != "v") {
      left[ref.path] = "a gate closes parts of it token by token; such layers stay f32";
    } else if (target.table && !options.embeddings) {
      left[ref.path] = "a table of embeddings; embeddings=true packs it";
    } else if (bytes >= 4 * weight.numel()) {
      left[ref.path] =
          fmt::format("too small: {} bytes packed, {} as they are", bytes, 4 * weight.numel());
    } else {
      targets.push_back(std::move(target));
    }
  }
  if (targets.empty()) {
    fail(Code::usage, "{}: no linear layer{} under '{}' to pack{}", kQuantize,
         options.format == bundle::Format::i8 ? " or convolution" : "", options.slots,
         left.empty() ? "" : " (" + joined(left) + ")");
  }
  std::map<std::string, std::vector<float>> saliency;
  if (options.format == bundle::Format::mixed) saliency = column_saliency(model, input, targets);

  const bool calibrated = !saliency.empty();
  Json layers = Json::object();
  SquareError total;
  int64_t before = 0, after = 0;
  for (const QuantizeTarget& target : targets) {
    const Packed result = packed(target, options, saliency[target.ref.path]);
    const at::Tensor weight = target.weight();
    const SquareError error = compare(result.values, weight);
    total.error += error.error;
    total.reference += error.reference;
    const int64_t plain = 4 * weight.numel();
    before += plain;
    after += result.bytes;
    const ActivationFormat activations = target.activations(options.activations);
    layers[target.ref.path] = {{"rows", target.rows()},
                               {"columns", target.columns()},
                               {"activations", std::string(activation_format_name(activations))},
                               {"bytes_before", plain},
                               {"bytes_after", result.bytes},
                               {"relative_rms", error.relative()}};
    target.ref.slot->exchange(result.brick);
  }
  return {{"format", std::string(bundle::format_name(options.format))},
          {"activations", std::string(activation_format_name(options.activations))},
          {"calibrated", calibrated},
          {"quantized", targets.size()},
          {"relative_rms", total.relative()},
          {"bytes_before", before},
          {"bytes_after", after},
          {"convolution_bytes", convolution_bytes(model)},
          {"layers", std::move(layers)},
          {"left", std::move(left)}};
}

Json dequantize(Model& model, const PassInput& input) {
  const std::string what = "pass dequantize";
  json_require_known_keys(input.options, {"slots"}, what);
  const auto pattern = json_get_or<std::string>(input.options, "slots", "**", what);
  Json layers = Json::array();
  for (const SlotRef& ref : walk(*model.root, pattern)) {
    BrickPtr unpacked;
    if (const auto layer = std::dynamic_pointer_cast<QuantLinear>(ref.slot->get())) {
      unpacked = layer->unpacked();
    } else if (const auto conv = std::dynamic_pointer_cast<QuantConv>(ref.slot->get())) {
      unpacked = conv->unpacked();
    } else if (const auto table = std::dynamic_pointer_cast<QuantEmbedding>(ref.slot->get())) {
      unpacked = table->unpacked();
    } else {
      continue;
    }
    ref.slot->exchange(std::move(unpacked));
    layers.push_back(ref.path);
  }
  if (layers.empty()) fail(Code::usage, "{}: no packed layer under '{}'", what, pattern);
  return {{"unpacked", layers.size()}, {"layers", std::move(layers)}};
}

}  // namespace sluice::lab
