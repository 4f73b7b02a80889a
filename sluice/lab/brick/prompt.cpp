// Pixel shuffling and prompts of restoration networks.
#include <algorithm>
#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/restoration.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

using Sizes = std::vector<int64_t>;

}  // namespace

// ---- PixelShuffle ----

PixelShuffle::PixelShuffle(const std::string& direction) : up_(direction == "up") {
  if (direction != "up" && direction != "down") {
    fail(Code::config, "direction of pixel_shuffle: expected up or down, found '{}'",
         direction.substr(0, 60));
  }
}

Json PixelShuffle::attributes() const { return {{"direction", up_ ? "up" : "down"}}; }

BrickPtr make_pixel_shuffle(const Json& attributes) {
  const AttributeReader read(attributes, "pixel_shuffle", {"direction"});
  return std::make_shared<PixelShuffle>(read.text("direction"));
}

at::Tensor PixelShuffle::forward(const at::Tensor& x, Context&) {
  return up_ ? at::pixel_shuffle(x, 2) : at::pixel_unshuffle(x, 2);
}

Shape PixelShuffle::output_shape(const Shape& input) const {
  const bool fits =
      input.size() == 3 && (up_ ? input[0] % 4 == 0 : input[1] % 2 == 0 && input[2] % 2 == 0);
  if (!fits) {
    fail(Code::shape, "pixel_shuffle: expected {}, found {}",
         up_ ? "[a multiple of 4, height, width]" : "[channels, even height, even width]",
         to_string(input));
  }
  if (up_) return {input[0] / 4, 2 * input[1], 2 * input[2]};
  return {4 * input[0], input[1] / 2, input[2] / 2};
}

bundle::Value PixelShuffle::lower(bundle::Builder& builder, const bundle::Value& x,
                                  const std::string& path) const {
  const std::string own = node_path_of(path, *this);
  const Shape out = output_shape(x.shape);
  const int64_t channels = up_ ? out[0] : x.shape[0], height = up_ ? x.shape[1] : out[1],
                width = up_ ? x.shape[2] : out[2];
  const Sizes apart =
      up_ ? Sizes{channels, 2, 2, height, width} : Sizes{channels, height, 2, width, 2};
  const Sizes turn = up_ ? Sizes{0, 3, 1, 4, 2} : Sizes{0, 2, 4, 1, 3};
  bundle::Value y = builder.node("reshape", own + ".apart", {x}, {{"shape", apart}});
  y = builder.node("transpose", own + ".turn", {y}, {{"perm", turn}});
  return builder.node("reshape", own, {y}, {{"shape", Sizes(out.begin(), out.end())}});
}

// ---- PromptGenerator ----

at::Tensor bilinear_matrix(int64_t from, int64_t to) {
  at::Tensor matrix = at::zeros({to, from}, at::kDouble);
  double* values = matrix.data_ptr<double>();
  const double step = static_cast<double>(from) / static_cast<double>(to);
  for (int64_t i = 0; i < to; ++i) {
    const double at = std::max(0.0, (static_cast<double>(i) + 0.5) * step - 0.5);
    const auto low = std::min(static_cast<int64_t>(at), from - 1);
    const int64_t high = std::min(low + 1, from - 1);
    const double share = at - static_cast<double>(low);
    values[i * from + low] += 1 - share;
    values[i * from + high] += share;
  }
  return matrix;
}

PromptGenerator::PromptGenerator(int64_t count, int64_t width, int64_t side) {
  constexpr const char* kind = "prompt_generator";
  require_range(count, 1, 4096, "prompts", kind);
  require_range(width, 1, kMaxChannels, "width", kind);
  require_range(side, 1, 65536, "side", kind);
  require_elements({count, width, side, side}, "prompts", kind);
  at::Tensor values = at::zeros({count, width, side, side});
  if (!WithoutInit::active()) values.uniform_(0, 1);
  prompts = register_parameter("prompts", values);
  choose_ = &add_slot("choose", nullptr);
  conv_ = &add_slot("conv", nullptr);
}

Json PromptGenerator::attributes() const {
  return {{"prompts", prompts.size(0)}, {"width", prompts.size(1)}, {"side", prompts.size(2)}};
}

BrickPtr make_prompt_generator(const Json& attributes) {
  const AttributeReader read(attributes, "prompt_generator", {"prompts", "width", "side"});
  return std::make_shared<PromptGenerator>(read.integer("prompts"), read.integer("width"),
                                           read.integer("side"));
}

BrickPtr make_prompt_generator(int64_t channels, int64_t prompts, int64_t width, int64_t side) {
  auto result = std::make_shared<PromptGenerator>(prompts, width, side);
  result->slot("choose").exchange(std::make_shared<Linear>(channels, prompts));
  result->slot("conv").exchange(std::make_shared<Conv2d>(
      Conv2dOptions{.inputs = width, .outputs = width, .kernel = 3, .padding = 1, .bias = false}));
  return result;
}

void PromptGenerator::check_slots() const {
  for (const Slot* slot : {choose_, conv_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
}

int64_t PromptGenerator::resize_macs(int64_t height, int64_t width) const {
  const int64_t planes = prompts.size(1), side = prompts.size(2);
  int64_t macs = 0;
  if (width != side) macs += planes * side * width * side;
  if (height != side) macs += planes * height * width * side;
  return macs;
}

at::Tensor PromptGenerator::forward(const at::Tensor& x, Context& context) {
  const int64_t side = prompts.size(2), height = x.size(2), width = x.size(3);
  const at::Tensor weights = at::softmax(choose_->forward(x.mean({2, 3}), context), -1);
  at::Tensor y = at::matmul(weights, prompts.flatten(1)).view({-1, prompts.size(1), side, side});
  const auto matrix = [&](int64_t to) { return bilinear_matrix(side, to).to(prompts.options()); };
  if (width != side) y = at::matmul(y, matrix(width).detach().t());
  if (height != side) y = at::matmul(matrix(height).detach(), y);
  if (context.meter != nullptr) {
    context.meter->add(context.path(), x.size(0) * (prompts.numel() + resize_macs(height, width)),
                       tensor_bytes(prompts) + tensor_bytes(y));
  }
  if (context.gate_log != nullptr) {
    context.gate_log->add({context.path(), weights, weights,
                           at::zeros({weights.size(1)}, weights.options().requires_grad(false))});
  }
  return conv_->forward(y, context);
}

Shape PromptGenerator::output_shape(const Shape& input) const {
  if (input.size() != 3) {
    fail(Code::shape, "prompt_generator: expected [channels, height, width], found {}",
         to_string(input));
  }
  const Shape weights = choose_->output_shape({input[0]});
  if (weights != Shape{prompts.size(0)}) {
    fail(Code::shape, "prompt_generator: choose gives {} for {} prompts", to_string(weights),
         prompts.size(0));
  }
  return conv_->output_shape({prompts.size(1), input[1], input[2]});
}

Cost PromptGenerator::cost(const Shape& input) const {
  Cost total = choose_->cost({input[0]}) + conv_->cost({prompts.size(1), input[1], input[2]});
  total +=
      {prompts.numel() + resize_macs(input[1], input[2]), prompts.numel(), 4 * prompts.numel()};
  return total;
}

bundle::Value PromptGenerator::lower(bundle::Builder& builder, const bundle::Value& x,
                                     const std::string& path) const {
  const std::string own = node_path_of(path, *this), name = join_path(path, "prompts");
  const int64_t count = prompts.size(0), planes = prompts.size(1), side = prompts.size(2);
  const int64_t height = x.shape[1], width = x.shape[2];
  add_tensor(builder, name, prompts);
  bundle::Value w = builder.node("global_avg_pool", own + ".mean", {x});
  w = builder.node("softmax", own + ".softmax", {choose_->lower(builder, w, path)});
  w = builder.node("reshape", own + ".weights", {w}, {{"shape", Sizes{1, count}}});
  bundle::Value all = builder.node("constant", own + ".prompts", {x}, {}, {{"value", name}});
  all = builder.node("reshape", own + ".flat", {all},
                     {{"shape", Sizes{count, planes * side * side}}});
  bundle::Value y = builder.node("matmul", own + ".mix", {w, all});
  y = builder.node("reshape", own + ".mixed", {y}, {{"shape", Sizes{planes, side, side}}});
  const auto matrix = [&](const char* which, const at::Tensor& values) {
    const std::string at = own + "." + which;
    add_tensor(builder, at, values);
    return builder.node("constant", at, {x}, {}, {{"value", at}});
  };
  if (width != side) {
    y = builder.node("matmul", own + ".widen",
                     {y, matrix("columns", bilinear_matrix(side, width).t().contiguous())});
  }
  if (height != side) {
    y = builder.node("matmul", own + ".heighten",
                     {matrix("rows", bilinear_matrix(side, height)), y});
  }
  return conv_->lower(builder, y, path);
}

}  // namespace sluice::lab
