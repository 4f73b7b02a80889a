// Networks seen as front, blocks and tail.
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/stitch.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/brick/vision_transformer.h"

namespace sluice::lab {
namespace {

/// The context's path with a dotted `prefix` behind it, for as long as it lives.
class Within {
 public:
  Within(Context& context, const std::string& prefix) {
    if (!prefix.empty()) scope_.emplace(context, prefix);
  }

 private:
  std::optional<Context::Scope> scope_;
};

}  // namespace

BlockChain::BlockChain(const Brick& network, const std::string& name) {
  vision_ = dynamic_cast<const VisionTransformer*>(&network);
  if (vision_ != nullptr) {
    const Brick& blocks = *vision_->slot("blocks");
    if (blocks.kind() == "sequential") {
      for (const auto& slot : blocks.slots()) blocks_.push_back({"blocks", slot.get()});
    }
  } else if (network.kind() == "decoder" || network.kind() == "text_encoder") {
    text_ = dynamic_cast<const TextRoot*>(&network);
    const Brick& blocks = *text_->slot("blocks");
    if (blocks.kind() == "sequential") {
      for (const auto& slot : blocks.slots()) blocks_.push_back({"blocks", slot.get()});
    }
  } else if (network.kind() == "sequential") {
    std::vector<Step> steps;
    collect(network, "", steps);
    for (Step& step : steps) {
      const bool block = (**step.slot).kind() == "residual_block";
      if (block && !tail_.empty()) {  // between two blocks stands something else
        blocks_.clear();
        break;
      }
      (block ? blocks_ : blocks_.empty() ? front_ : tail_).push_back(std::move(step));
    }
  }
  if (blocks_.empty()) {
    fail(Code::unsupported,
         "{}: a {} without a chain of blocks; a network that is stitched is a transformer for "
         "pictures or text, or a sequential whose residual blocks follow each other",
         name, network.kind());
  }
}

void BlockChain::collect(const Brick& owner, const std::string& prefix,
                         std::vector<Step>& steps) const {
  for (const auto& slot : owner.slots()) {
    if (slot->empty()) continue;
    if ((**slot).kind() == "sequential") {
      collect(**slot, join_path(prefix, slot->name()), steps);
    } else {
      steps.push_back({prefix, slot.get()});
    }
  }
}

at::Tensor BlockChain::front(const at::Tensor& x, Context& context) const {
  if (vision_ != nullptr) return vision_->embed(x, context);
  if (text_ != nullptr) return text_->embedded(x, context);
  at::Tensor y = x;
  for (const Step& step : front_) {
    const Within within(context, step.prefix);
    y = step.slot->forward(y, context);
  }
  return y;
}

at::Tensor BlockChain::block(int64_t index, const at::Tensor& x, Context& context) const {
  const Step& step = blocks_[static_cast<size_t>(index)];
  const Within within(context, step.prefix);
  return step.slot->forward(x, context);
}

at::Tensor BlockChain::tail(const at::Tensor& x, Context& context) const {
  if (vision_ != nullptr) return vision_->classify(x, context);
  if (text_ != nullptr) return text_->finish(x, context);
  at::Tensor y = x;
  for (const Step& step : tail_) {
    const Within within(context, step.prefix);
    y = step.slot->forward(y, context);
  }
  return y;
}

Shape BlockChain::front_shape(const Shape& input) const {
  if (vision_ != nullptr) return vision_->embed_shape(input);
  if (text_ != nullptr) return text_->embedded_shape(input);
  Shape shape = input;
  for (const Step& step : front_) shape = step.slot->output_shape(shape);
  return shape;
}

Shape BlockChain::block_shape(int64_t index, const Shape& input) const {
  return blocks_[static_cast<size_t>(index)].slot->output_shape(input);
}

Shape BlockChain::tail_shape(const Shape& input) const {
  if (vision_ != nullptr) return vision_->classify_shape(input);
  if (text_ != nullptr) return text_->finish_shape(input);
  Shape shape = input;
  for (const Step& step : tail_) shape = step.slot->output_shape(shape);
  return shape;
}

Cost BlockChain::front_cost(const Shape& input) const {
  if (vision_ != nullptr) return vision_->embed_cost(input);
  if (text_ != nullptr) return text_->embedded_cost(input);
  Cost total;
  Shape shape = input;
  for (const Step& step : front_) {
    total += step.slot->cost(shape);
    shape = step.slot->output_shape(shape);
  }
  return total;
}

Cost BlockChain::block_cost(int64_t index, const Shape& input) const {
  return blocks_[static_cast<size_t>(index)].slot->cost(input);
}

Cost BlockChain::tail_cost(const Shape& input) const {
  if (vision_ != nullptr) return vision_->classify_cost(input);
  if (text_ != nullptr) return text_->finish_cost(input);
  Cost total;
  Shape shape = input;
  for (const Step& step : tail_) {
    total += step.slot->cost(shape);
    shape = step.slot->output_shape(shape);
  }
  return total;
}

bundle::Value BlockChain::lower_front(bundle::Builder& builder, const bundle::Value& x,
                                      const std::string& path) const {
  if (vision_ != nullptr) return vision_->lower_embed(builder, x, path);
  if (text_ != nullptr) return text_->lower_embedded(builder, x, path);
  bundle::Value y = x;
  for (const Step& step : front_) y = step.slot->lower(builder, y, join_path(path, step.prefix));
  return y;
}

bundle::Value BlockChain::lower_block(int64_t index, bundle::Builder& builder,
                                      const bundle::Value& x, const std::string& path) const {
  const Step& step = blocks_[static_cast<size_t>(index)];
  return step.slot->lower(builder, x, join_path(path, step.prefix));
}

bundle::Value BlockChain::lower_tail(bundle::Builder& builder, const bundle::Value& x,
                                     const std::string& path) const {
  if (vision_ != nullptr) return vision_->lower_classify(builder, x, path);
  if (text_ != nullptr) return text_->lower_finish(builder, x, path);
  bundle::Value y = x;
  for (const Step& step : tail_) y = step.slot->lower(builder, y, join_path(path, step.prefix));
  return y;
}

std::vector<Shape> BlockChain::shapes(const Shape& input) const {
  std::vector<Shape> result = {front_shape(input)};
  for (int64_t i = 0; i < length(); ++i) result.push_back(block_shape(i, result.back()));
  return result;
}

}  // namespace sluice::lab
