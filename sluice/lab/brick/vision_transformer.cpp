#include "sluice/lab/brick/vision_transformer.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/brick/transformer.h"

namespace sluice::lab {

// ---- LearnedRows ----

LearnedRows::LearnedRows(int64_t rows, int64_t width) {
  require_range(rows, 1, int64_t{1} << 24, "rows", "learned_rows");
  require_range(width, 1, kMaxChannels, "width", "learned_rows");
  require_elements({rows, width}, "weight", "learned_rows");
  at::Tensor values = at::zeros({rows, width});
  if (!WithoutInit::active()) values.normal_(0, 0.02);
  weight = register_parameter("weight", values);
}

Json LearnedRows::attributes() const { return {{"rows", rows()}, {"width", width()}}; }

BrickPtr make_learned_rows(const Json& attributes) {
  const AttributeReader read(attributes, "learned_rows", {"rows", "width"});
  return std::make_shared<LearnedRows>(read.integer("rows"), read.integer("width"));
}

at::Tensor LearnedRows::forward(const at::Tensor& x, Context&) {
  return weight.unsqueeze(0).expand({x.size(0), -1, -1});
}

Shape LearnedRows::output_shape(const Shape&) const { return {rows(), width()}; }

Cost LearnedRows::cost(const Shape&) const { return {0, weight.numel(), 4 * weight.numel()}; }

bundle::Value LearnedRows::lower(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  const std::string name = join_path(path, "weight");
  add_tensor(builder, name, weight);
  return builder.node("constant", node_path_of(path, *this), {x}, {}, {{"value", name}});
}

// ---- VisionTransformer ----

VisionTransformer::VisionTransformer(const std::string& pooling, const std::string& part)
    : pooling_(pooling), part_(part) {
  if (!part.empty() && part != "embed" && part != "classify") {
    fail(Code::config, "part of vision_transformer: expected embed or classify, found '{}'",
         part.substr(0, 60));
  }
  if (pooling != "first" && pooling != "mean") {
    fail(Code::config, "pooling of vision_transformer: expected first or mean, found '{}'",
         pooling.substr(0, 60));
  }
  patches_ = &add_slot("patches", nullptr);
  class_token_ = &add_slot("class_token", nullptr);
  positions_ = &add_slot("positions", nullptr);
  blocks_ = &add_slot("blocks", nullptr);
  norm_ = &add_slot("norm", nullptr);
  head_ = &add_slot("head", nullptr);
}

Json VisionTransformer::attributes() const {
  Json json = {{"pooling", pooling_}};
  if (!part_.empty()) json["part"] = part_;
  return json;
}

BrickPtr make_vision_transformer(const Json& attributes) {
  const AttributeReader read(attributes, "vision_transformer", {"pooling", "part"});
  return std::make_shared<VisionTransformer>(read.text("pooling", "first"), read.text("part", ""));
}

void VisionTransformer::check_slots() const {
  const bool embeds = part_ != "classify", classifies = part_ != "embed";
  for (const auto& [slot, wanted] :
       {std::pair(patches_, embeds), {blocks_, part_.empty()}, {head_, classifies}}) {
    if (slot->empty() == wanted)
      fail(Code::config, "{}: must be {}", slot->name(), wanted ? "filled" : "empty in this part");
  }
  if (embeds && (pooling_ == "first") == class_token_->empty()) {
    fail(Code::config, "class_token: must be {} with pooling '{}'",
         pooling_ == "first" ? "filled" : "empty", pooling_);
  }
  for (const Slot* slot : {class_token_, positions_}) {
    if (!slot->empty()) slot->as<LearnedRows>();
  }
}

at::Tensor VisionTransformer::embed(const at::Tensor& pixels, Context& context) const {
  at::Tensor x = patches_->forward(pixels, context).flatten(2).transpose(1, 2);
  if (!class_token_->empty()) x = at::cat({class_token_->forward(x, context), x}, 1);
  if (!positions_->empty()) x = x + positions_->forward(x, context);
  return x;
}

at::Tensor VisionTransformer::classify(const at::Tensor& rows, Context& context) const {
  const bool first = pooling_ == "first";  // of the rows that nobody reads the norm is not needed
  at::Tensor x = first ? rows.select(1, 0) : rows;
  if (!norm_->empty()) x = norm_->forward(x, context);
  return head_->forward(first ? x : x.mean(1), context);
}

at::Tensor VisionTransformer::forward(const at::Tensor& pixels, Context& context) {
  if (part_ == "embed") return embed(pixels, context);
  if (part_ == "classify") return classify(pixels, context);
  return classify(blocks_->forward(embed(pixels, context), context), context);
}

Shape VisionTransformer::embed_shape(const Shape& input) const {
  const Shape grid = patches_->output_shape(input);
  if (grid.size() != 3) {
    fail(Code::shape, "vision_transformer: patches make {} of {}; expected [D, height, width]",
         to_string(grid), to_string(input));
  }
  const int64_t tokens = class_token_->empty() ? 0 : class_token_->as<LearnedRows>().rows();
  const Shape rows = {tokens + grid[1] * grid[2], grid[0]};
  for (const Slot* slot : {class_token_, positions_}) {
    if (slot->empty()) continue;
    const auto& learned = slot->as<LearnedRows>();
    const bool fits =
        learned.width() == rows[1] && (slot == class_token_ || learned.rows() == rows[0]);
    if (!fits) {
      fail(Code::shape, "vision_transformer: {} of {} on rows {}", slot->name(),
           to_string(learned.output_shape({})), to_string(rows));
    }
  }
  return rows;
}

Shape VisionTransformer::classify_shape(const Shape& rows) const {
  if (rows.size() != 2) {
    fail(Code::shape, "vision_transformer: expected rows [T, D] for the head, found {}",
         to_string(rows));
  }
  const Shape normed = norm_->empty() ? rows : norm_->output_shape(rows);
  return head_->output_shape({normed.back()});
}

Shape VisionTransformer::output_shape(const Shape& input) const {
  if (part_ == "embed") return embed_shape(input);
  if (part_ == "classify") return classify_shape(input);
  return classify_shape(blocks_->output_shape(embed_shape(input)));
}

Cost VisionTransformer::embed_cost(const Shape& input) const {
  Cost total = patches_->cost(input);
  for (const Slot* slot : {class_token_, positions_}) {
    if (!slot->empty()) total += slot->cost({});
  }
  return total;
}

Cost VisionTransformer::classify_cost(const Shape& rows) const {
  Cost total = head_->cost({rows.back()});
  if (!norm_->empty()) total += norm_->cost(rows);
  return total;
}

Cost VisionTransformer::cost(const Shape& input) const {
  if (part_ == "embed") return embed_cost(input);
  if (part_ == "classify") return classify_cost(input);
  const Shape rows = embed_shape(input);
  return embed_cost(input) + blocks_->cost(rows) + classify_cost(blocks_->output_shape(rows));
}

bundle::Value VisionTransformer::lower_embed(bundle::Builder& builder, const bundle::Value& pixels,
                                             const std::string& path) const {
  const auto at = [&](const char* name) { return join_path(path, name); };
  bundle::Value x = patches_->lower(builder, pixels, path);
  x = builder.node("reshape", at("patches.flat"), {x},
                   {{"shape", std::vector<int64_t>{x.shape[0], x.shape[1] * x.shape[2]}}});
  x = builder.node("transpose", at("patches.rows"), {x}, {{"perm", std::vector<int64_t>{1, 0}}});
  if (!class_token_->empty()) {
    x = builder.node("concat", at("add_class_token"), {class_token_->lower(builder, x, path), x},
                     {{"axis", int64_t{0}}});
  }
  if (!positions_->empty()) {
    x = builder.node("add", at("add_positions"), {x, positions_->lower(builder, x, path)});
  }
  return x;
}

bundle::Value VisionTransformer::lower_classify(bundle::Builder& builder, const bundle::Value& rows,
                                                const std::string& path) const {
  const auto pooled = [&](const bundle::Value& x) {
    return builder.node("pool_rows", join_path(path, "pooling"), {x}, {{"kind", pooling_}});
  };
  const bool first = pooling_ == "first";
  bundle::Value x = first ? pooled(rows) : rows;
  if (!norm_->empty()) x = norm_->lower(builder, x, path);
  return head_->lower(builder, first ? x : pooled(x), path);
}

bundle::Value VisionTransformer::lower(bundle::Builder& builder, const bundle::Value& x,
                                       const std::string& path) const {
  if (part_ == "embed") return lower_embed(builder, x, path);
  if (part_ == "classify") return lower_classify(builder, x, path);
  return lower_classify(builder, blocks_->lower(builder, lower_embed(builder, x, path), path),
                        path);
}

std::vector<NormReaders> VisionTransformer::norm_readers() const {
  if (norm_->empty() || head_->empty()) return {};
  return {{norm_->name(), {head_->name()}}};  // a mean of normed rows is normed in the same way
}

BrickPtr make_vision_transformer(const VisionTransformerLayers& layers, const Shape& picture,
                                 int64_t classes) {
  constexpr const char* kind = "vision_transformer";
  require_range(layers.patch, 1, 65536, "patch", kind);
  require_range(layers.width, 1, kMaxChannels, "width", kind);
  require_range(layers.layers, 1, 1000, "layers", kind);
  require_range(layers.heads, 1, 65536, "heads", kind);
  require_range(layers.neurons, 0, kMaxChannels, "ffn", kind);
  if (picture.size() != 3 || picture[1] % layers.patch != 0 || picture[2] % layers.patch != 0) {
    fail(Code::config,
         "patch of vision_transformer: expected a divisor of height and width of [C, H, W] = {}, "
         "found {}",
         to_string(picture), layers.patch);
  }
  if (layers.width % layers.heads != 0) {
    fail(Code::config, "heads of vision_transformer: {} do not divide the width {}", layers.heads,
         layers.width);
  }
  const int64_t width = layers.width, neurons = layers.neurons > 0 ? layers.neurons : 4 * width;
  auto root = std::make_shared<VisionTransformer>(layers.pooling);
  root->slot("patches").exchange(std::make_shared<Conv2d>(Conv2dOptions{
      .inputs = picture[0], .outputs = width, .kernel = layers.patch, .stride = layers.patch}));
  const bool token = layers.pooling == "first";
  const int64_t places = (picture[1] / layers.patch) * (picture[2] / layers.patch);
  if (token) root->slot("class_token").exchange(std::make_shared<LearnedRows>(1, width));
  root->slot("positions").exchange(std::make_shared<LearnedRows>(places + (token ? 1 : 0), width));
  AttentionOptions attention;
  attention.head_dim = width / layers.heads;
  attention.causal = false;
  const AttentionLayers projections{.width = width,
                                    .heads = layers.heads,
                                    .kv_heads = layers.heads,
                                    .bias = true,
                                    .out_bias = true};
  const auto norm = [&] { return std::make_shared<LayerNorm>(width, layers.norm_eps); };
  auto blocks = std::make_shared<Sequential>();
  for (int64_t i = 0; i < layers.layers; ++i) {
    auto block = std::make_shared<TransformerBlock>();
    block->slot("attn_norm").exchange(norm());
    block->slot("attn").exchange(make_attention(attention, projections));
    block->slot("ffn_norm").exchange(norm());
    block->slot("ffn").exchange(make_ffn(width, neurons, layers.activation, false, true));
    blocks->append(fmt::format("{}", i), std::move(block));
  }
  root->slot("blocks").exchange(std::move(blocks));
  root->slot("norm").exchange(norm());
  root->slot("head").exchange(std::make_shared<Linear>(width, classes));
  root->check_slots();
  return root;
}

}  // namespace sluice::lab
