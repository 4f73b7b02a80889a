#include "sluice/lab/brick/norms.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

int64_t checked_width(int64_t width, std::string_view kind) {
  return require_range(width, 1, kMaxChannels, "width", kind);
}

double checked_eps(double eps, std::string_view kind) {
  return require_range(eps, 0.0, 1.0, "eps", kind);
}

std::map<std::string, std::string> add_tensors(
    bundle::Builder& builder, const std::string& path,
    std::initializer_list<std::pair<const char*, const at::Tensor*>> tensors) {
  std::map<std::string, std::string> names;
  for (const auto& [role, tensor] : tensors) {
    if (!tensor->defined()) continue;
    names[role] = join_path(path, role);
    add_tensor(builder, names[role], *tensor);
  }
  return names;
}

Cost norm_cost(std::initializer_list<const at::Tensor*> tensors) {
  int64_t params = 0;
  for (const at::Tensor* tensor : tensors) params += tensor->defined() ? tensor->numel() : 0;
  return {0, params, 4 * params};
}

}  // namespace

// ---- RmsNorm ----

RmsNorm::RmsNorm(int64_t width, double eps, bool with_weight)
    : width_(checked_width(width, "rms_norm")), eps_(checked_eps(eps, "rms_norm")) {
  if (with_weight) weight = register_parameter("weight", at::ones({width}));
}

Json RmsNorm::attributes() const {
  return {{"width", width_}, {"eps", eps_}, {"weight", weight.defined()}};
}

BrickPtr make_rms_norm(const Json& attributes) {
  const AttributeReader read(attributes, "rms_norm", {"width", "eps", "weight"});
  return std::make_shared<RmsNorm>(read.integer("width"), read.number("eps", 1e-5),
                                   read.boolean("weight", true));
}

at::Tensor RmsNorm::forward(const at::Tensor& x, Context&) {
  // Squares of half-precision numbers overflow early.
  const bool narrow = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  const bool parts = x.size(-1) != width_;
  at::Tensor y = parts ? x.unflatten(-1, {-1, width_}) : x;
  if (narrow) y = y.to(at::kFloat);
  y = y * at::rsqrt(y.square().mean(-1, /*keepdim=*/true) + eps_);
  if (narrow) y = y.to(x.scalar_type());
  if (weight.defined()) y = y * weight;
  return parts ? y.flatten(-2) : y;
}

Shape RmsNorm::output_shape(const Shape& input) const {
  if (input.empty() || input.back() % width_ != 0) {
    fail(Code::shape, "rms_norm: expected [.., {}] or a multiple of it, found {}", width_,
         to_string(input));
  }
  return input;
}

Cost RmsNorm::cost(const Shape& input) const {
  output_shape(input);
  return norm_cost({&weight});
}

bundle::Value RmsNorm::lower(bundle::Builder& builder, const bundle::Value& x,
                             const std::string& path) const {
  bundle::Attributes attributes = {{"eps", eps_}};
  if (x.shape.back() != width_) attributes["heads"] = x.shape.back() / width_;
  return builder.node("rms_norm", node_path_of(path, *this), {x}, std::move(attributes),
                      add_tensors(builder, path, {{"weight", &weight}}));
}

// ---- LayerNorm ----

LayerNorm::LayerNorm(int64_t width, double eps, bool with_weight, bool with_bias)
    : width_(checked_width(width, "layer_norm")), eps_(checked_eps(eps, "layer_norm")) {
  if (with_weight) weight = register_parameter("weight", at::ones({width}));
  if (with_bias) bias = register_parameter("bias", at::zeros({width}));
}

Json LayerNorm::attributes() const {
  return {{"width", width_}, {"eps", eps_}, {"weight", weight.defined()}, {"bias", bias.defined()}};
}

BrickPtr make_layer_norm(const Json& attributes) {
  const AttributeReader read(attributes, "layer_norm", {"width", "eps", "weight", "bias"});
  return std::make_shared<LayerNorm>(read.integer("width"), read.number("eps", 1e-5),
                                     read.boolean("weight", true), read.boolean("bias", true));
}

at::Tensor LayerNorm::forward(const at::Tensor& x, Context&) {
  return at::layer_norm(x, {width_}, weight, bias, eps_);
}

Shape LayerNorm::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != width_) {
    fail(Code::shape, "layer_norm: expected [.., {}], found {}", width_, to_string(input));
  }
  return input;
}

Cost LayerNorm::cost(const Shape& input) const {
  output_shape(input);
  return norm_cost({&weight, &bias});
}

bundle::Value LayerNorm::lower(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path) const {
  return builder.node("layer_norm", node_path_of(path, *this), {x}, {{"eps", eps_}},
                      add_tensors(builder, path, {{"weight", &weight}, {"bias", &bias}}));
}

}  // namespace sluice::lab
