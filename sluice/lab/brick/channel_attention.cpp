// Channel norm, transposed attention and gated feed-forward network of restoration transformers.
#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/restoration.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

using Sizes = std::vector<int64_t>;

BrickPtr pointwise(int64_t inputs, int64_t outputs) {
  return std::make_shared<Conv2d>(
      Conv2dOptions{.inputs = inputs, .outputs = outputs, .kernel = 1, .bias = false});
}

BrickPtr per_channel(int64_t channels) {
  return std::make_shared<Conv2d>(Conv2dOptions{.inputs = channels,
                                                .outputs = channels,
                                                .kernel = 3,
                                                .padding = 1,
                                                .groups = channels,
                                                .bias = false});
}

void require_picture(const Shape& input, const char* kind) {
  if (input.size() == 3) return;
  fail(Code::shape, "{}: expected [channels, height, width], found {}", kind, to_string(input));
}

bundle::Value part(bundle::Builder& builder, const bundle::Value& x, const std::string& path,
                   int64_t index, int64_t channels) {
  return builder.node("slice", path, {x},
                      {{"axis", int64_t{0}}, {"start", index * channels}, {"size", channels}});
}

}  // namespace

// ---- ChannelNorm ----

ChannelNorm::ChannelNorm(int64_t channels, double eps)
    : eps_(require_range(eps, 0.0, 1.0, "eps", "channel_norm")) {
  require_range(channels, 1, kMaxChannels, "channels", "channel_norm");
  weight = register_parameter("weight", at::ones({channels}));
  bias = register_parameter("bias", at::zeros({channels}));
}

Json ChannelNorm::attributes() const { return {{"channels", weight.numel()}, {"eps", eps_}}; }

BrickPtr make_channel_norm(const Json& attributes) {
  const AttributeReader read(attributes, "channel_norm", {"channels", "eps"});
  return std::make_shared<ChannelNorm>(read.integer("channels"), read.number("eps", 1e-5));
}

at::Tensor ChannelNorm::forward(const at::Tensor& x, Context&) {
  return at::layer_norm(x.permute({0, 2, 3, 1}), {weight.numel()}, weight, bias, eps_)
      .permute({0, 3, 1, 2});
}

Shape ChannelNorm::output_shape(const Shape& input) const {
  require_picture(input, "channel_norm");
  if (input[0] != weight.numel()) {
    fail(Code::shape, "channel_norm: expected {} channels, found {}", weight.numel(),
         to_string(input));
  }
  return input;
}

Cost ChannelNorm::cost(const Shape& input) const {
  output_shape(input);
  return {0, 2 * weight.numel(), 8 * weight.numel()};
}

bundle::Value ChannelNorm::lower(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  const std::string own = node_path_of(path, *this), w = join_path(path, "weight"),
                    b = join_path(path, "bias");
  add_tensor(builder, w, weight);
  add_tensor(builder, b, bias);
  const bundle::Value rows =
      builder.node("transpose", own + ".rows", {x}, {{"perm", Sizes{1, 2, 0}}});
  const bundle::Value y =
      builder.node("layer_norm", own, {rows}, {{"eps", eps_}}, {{"weight", w}, {"bias", b}});
  return builder.node("transpose", own + ".channels", {y}, {{"perm", Sizes{2, 0, 1}}});
}

// ---- ChannelAttention ----

ChannelAttention::ChannelAttention(int64_t heads)
    : heads_(require_range(heads, 1, 65536, "heads", "channel_attention")) {
  temperature = register_parameter("temperature", at::ones({heads}));
  qkv_ = &add_slot("qkv", nullptr);
  depthwise_ = &add_slot("depthwise", nullptr);
  out_ = &add_slot("out", nullptr);
}

Json ChannelAttention::attributes() const { return {{"heads", heads_}}; }

BrickPtr make_channel_attention(const Json& attributes) {
  const AttributeReader read(attributes, "channel_attention", {"heads"});
  return std::make_shared<ChannelAttention>(read.integer("heads"));
}

BrickPtr make_channel_attention(int64_t channels, int64_t heads) {
  if (heads < 1 || channels % heads != 0) {
    fail(Code::config, "heads of channel_attention: {} do not divide the {} channels", heads,
         channels);
  }
  auto result = std::make_shared<ChannelAttention>(heads);
  result->slot("qkv").exchange(pointwise(channels, 3 * channels));
  result->slot("depthwise").exchange(per_channel(3 * channels));
  result->slot("out").exchange(pointwise(channels, channels));
  return result;
}

void ChannelAttention::check_slots() const {
  for (const Slot* slot : {qkv_, depthwise_, out_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
}

at::Tensor ChannelAttention::forward(const at::Tensor& x, Context& context) {
  const at::Tensor y = depthwise_->forward(qkv_->forward(x, context), context);
  const int64_t channels = y.size(1) / 3, height = y.size(2), width = y.size(3);
  const std::vector<at::Tensor> parts = y.chunk(3, 1);
  const auto rows = [&](size_t index) {
    return parts[index].reshape({y.size(0), heads_, channels / heads_, height * width});
  };
  const auto unit = [](const at::Tensor& t) {
    return t / t.norm(2, -1, /*keepdim=*/true).clamp_min(1e-12);
  };
  const at::Tensor scores =
      at::matmul(unit(rows(0)), unit(rows(1)).transpose(-2, -1)) * temperature.view({heads_, 1, 1});
  const at::Tensor mixed =
      at::matmul(at::softmax(scores, -1), rows(2)).reshape({y.size(0), channels, height, width});
  if (context.meter != nullptr) {
    context.meter->add(context.path(),
                       2 * y.size(0) * channels * (channels / heads_) * height * width,
                       tensor_bytes(y) + tensor_bytes(scores) + tensor_bytes(mixed));
  }
  return out_->forward(mixed, context);
}

Shape ChannelAttention::output_shape(const Shape& input) const {
  require_picture(input, "channel_attention");
  Shape y = depthwise_->output_shape(qkv_->output_shape(input));
  if (y.size() != 3 || y[0] % (3 * heads_) != 0) {
    fail(Code::shape, "channel_attention: {} values for q, k and v of {} heads", to_string(y),
         heads_);
  }
  y[0] /= 3;
  return out_->output_shape(y);
}

Cost ChannelAttention::cost(const Shape& input) const {
  const Shape y = qkv_->output_shape(input), mixed = {y[0] / 3, y[1], y[2]};
  Cost total = qkv_->cost(input) + depthwise_->cost(y) + out_->cost(mixed);
  total.macs =
      checked_add(total.macs, checked_mul(2 * numel(mixed), mixed[0] / heads_, "MACs of attention"),
                  "MACs of attention");
  total += {0, heads_, 4 * heads_};
  return total;
}

bundle::Value ChannelAttention::lower(bundle::Builder& builder, const bundle::Value& x,
                                      const std::string& path) const {
  const std::string own = node_path_of(path, *this), t = join_path(path, "temperature");
  add_tensor(builder, t, temperature);
  const bundle::Value y = depthwise_->lower(builder, qkv_->lower(builder, x, path), path);
  const int64_t channels = y.shape[0] / 3, height = y.shape[1], width = y.shape[2];
  const auto rows = [&](int64_t index, const char* name) {
    const std::string at = own + "." + name;
    return builder.node("reshape", at + ".heads", {part(builder, y, at, index, channels)},
                        {{"shape", Sizes{heads_, channels / heads_, height * width}}});
  };
  const auto unit = [&](int64_t index, const char* name) {
    return builder.node("l2_normalize", own + "." + name + ".unit", {rows(index, name)},
                        {{"eps", 1e-12}});
  };
  bundle::Value scores = builder.node("matmul", own + ".scores", {unit(0, "q"), unit(1, "k")},
                                      {{"transpose_b", true}});
  scores = builder.node("scale", own + ".temperature", {scores}, {}, {{"scale", t}});
  scores = builder.node("softmax", own + ".softmax", {scores});
  const bundle::Value mixed = builder.node("matmul", own + ".mix", {scores, rows(2, "v")});
  return out_->lower(builder,
                     builder.node("reshape", own + ".channels", {mixed},
                                  {{"shape", Sizes{channels, height, width}}}),
                     path);
}

// ---- GatedConvFfn ----

GatedConvFfn::GatedConvFfn() {
  in_ = &add_slot("in", nullptr);
  depthwise_ = &add_slot("depthwise", nullptr);
  out_ = &add_slot("out", nullptr);
}

BrickPtr make_gated_conv_ffn(const Json& attributes) {
  const AttributeReader read(attributes, "gated_conv_ffn", {});
  return std::make_shared<GatedConvFfn>();
}

BrickPtr make_gated_conv_ffn(int64_t channels, double expansion) {
  require_range(expansion, 0.1, 100.0, "expansion", "gated_conv_ffn");
  const auto hidden = std::max<int64_t>(
      1, static_cast<int64_t>(std::floor(static_cast<double>(channels) * expansion)));
  auto result = std::make_shared<GatedConvFfn>();
  result->slot("in").exchange(pointwise(channels, 2 * hidden));
  result->slot("depthwise").exchange(per_channel(2 * hidden));
  result->slot("out").exchange(pointwise(hidden, channels));
  return result;
}

void GatedConvFfn::check_slots() const {
  for (const Slot* slot : {in_, depthwise_, out_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
}

at::Tensor GatedConvFfn::forward(const at::Tensor& x, Context& context) {
  const std::vector<at::Tensor> halves =
      depthwise_->forward(in_->forward(x, context), context).chunk(2, 1);
  return out_->forward(activate("gelu", halves[0]) * halves[1], context);
}

Shape GatedConvFfn::output_shape(const Shape& input) const {
  require_picture(input, "gated_conv_ffn");
  Shape y = depthwise_->output_shape(in_->output_shape(input));
  if (y.size() != 3 || y[0] % 2 != 0) {
    fail(Code::shape, "gated_conv_ffn: {} values for two halves", to_string(y));
  }
  y[0] /= 2;
  return out_->output_shape(y);
}

Cost GatedConvFfn::cost(const Shape& input) const {
  const Shape y = in_->output_shape(input);
  return in_->cost(input) + depthwise_->cost(y) + out_->cost({y[0] / 2, y[1], y[2]});
}

bundle::Value GatedConvFfn::lower(bundle::Builder& builder, const bundle::Value& x,
                                  const std::string& path) const {
  const std::string own = node_path_of(path, *this);
  const bundle::Value y = depthwise_->lower(builder, in_->lower(builder, x, path), path);
  const int64_t hidden = y.shape[0] / 2;
  const bundle::Value gate =
      builder.node("activation", own + ".gelu", {part(builder, y, own + ".gate", 0, hidden)},
                   {{"kind", std::string("gelu")}});
  return out_->lower(
      builder, builder.node("mul", own + ".mul", {gate, part(builder, y, own + ".up", 1, hidden)}),
      path);
}

}  // namespace sluice::lab
