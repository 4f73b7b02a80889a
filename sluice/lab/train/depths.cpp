#include "sluice/lab/train/depths.h"

#include <torch/types.h>

#include <algorithm>
#include <map>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/transformer.h"

namespace sluice::lab {
namespace {

/// What blocks give, by the path of their slots.
class BlockOutputs final : public SlotWatcher {
 public:
  explicit BlockOutputs(SlotWatcher* next) : next_(next) {}
  void after(const std::string& path, const Brick& brick, const at::Tensor& x,
             at::Tensor& y) override {
    if (next_ != nullptr) next_->after(path, brick, x, y);
    const auto found = outputs.find(path);
    if (found != outputs.end()) found->second = y;
  }
  std::map<std::string, at::Tensor> outputs;

 private:
  SlotWatcher* next_;
};

}  // namespace

AllDepths::AllDepths(BrickPtr decoder, std::vector<int64_t> depths, bool own_heads)
    : depths_(std::move(depths)), own_heads_(own_heads) {
  const auto* root = dynamic_cast<const Decoder*>(decoder.get());
  if (root == nullptr) fail(Code::config, "all_depths: expected a decoder");
  const auto blocks = static_cast<int64_t>(root->slot("blocks")->slots().size());
  const bool ascending =
      std::adjacent_find(depths_.begin(), depths_.end(), std::greater_equal<>()) == depths_.end();
  if (depths_.empty() || !ascending || depths_.front() < 1 || depths_.back() != blocks) {
    fail(Code::config, "all_depths: depths: expected ascending numbers from 1 to all {} blocks",
         blocks);
  }
  const Shape logits = root->output_shape({1});
  const int64_t width = root->slot("embed").output_shape({1}).back();
  const c10::Device device = decoder->parameters().front().device();
  add_slot("decoder", std::move(decoder));
  for (size_t i = 0; own_heads_ && i + 1 < depths_.size(); ++i) {
    auto head = std::make_shared<Linear>(width, logits.back(), /*bias=*/false);
    head->to(device);
    add_slot(fmt::format("head{}", depths_[i]), std::move(head));
  }
}

Json AllDepths::attributes() const { return {{"depths", depths_}, {"own_heads", own_heads_}}; }

int64_t AllDepths::vocabulary() const { return slot("decoder")->vocabulary(); }

at::Tensor AllDepths::forward(const at::Tensor& ids, Context& context) {
  const Slot& place = slot("decoder");
  const auto& decoder = place.as<Decoder>();
  const auto& blocks = decoder.slot("blocks")->slots();
  const std::string path =
      join_path(join_path(context.path(), place.name()), decoder.slot("blocks").name());
  BlockOutputs watched(context.watcher);
  std::vector<std::string> ends;
  for (const int64_t depth : depths_) {
    ends.push_back(join_path(path, blocks[static_cast<size_t>(depth - 1)]->name()));
    watched.outputs.emplace(ends.back(), at::Tensor());
  }
  const auto frozen = [&](auto&& compute) {  // where only the heads are trained
    if (!own_heads_) return compute();
    const at::NoGradGuard guard;
    return compute();
  };
  SlotWatcher* const outer = std::exchange(context.watcher, &watched);
  at::Tensor deepest;
  try {
    deepest = frozen([&] { return place.forward(ids, context); });
  } catch (...) {
    context.watcher = outer;
    throw;
  }
  context.watcher = outer;
  std::vector<at::Tensor> logits;
  for (size_t i = 0; i + 1 < depths_.size(); ++i) {
    at::Tensor rows = watched.outputs.at(ends[i]);
    const Slot& norm = decoder.slot("norm");
    if (!norm.empty()) rows = frozen([&] { return norm.forward(rows, context); });
    logits.push_back(own_heads_ ? slot(fmt::format("head{}", depths_[i])).forward(rows, context)
                                : decoder.logits(rows, context));
  }
  logits.push_back(deepest);
  return at::cat(logits, 1);
}

Shape AllDepths::output_shape(const Shape& input) const {
  Shape shape = slot("decoder").output_shape(input);
  shape[0] *= static_cast<int64_t>(depths_.size());
  return shape;
}

Cost AllDepths::cost(const Shape& input) const {
  Cost total = slot("decoder").cost(input);
  const Shape shape = slot("decoder").output_shape(input);
  const int64_t width = slot("decoder")->slot("embed").output_shape({1}).back();
  const auto more = static_cast<int64_t>(depths_.size()) - 1;
  total.macs += checked_mul(more, checked_mul(numel(shape), width, "MACs"), "MACs");
  for (const auto& each : slots()) {
    if (each->name() == "decoder") continue;
    const Cost head = each->cost({shape[0], width});
    total += Cost{0, head.params, head.weight_bytes};
  }
  return total;
}

bundle::Value AllDepths::lower(bundle::Builder&, const bundle::Value&,
                               const std::string& path) const {
  fail(Code::unsupported, "{}: all depths at once are for training; write the decoder in it", path);
}

Batch RepeatedLabels::at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                              int64_t samples) {
  Batch result = source_.at_step(step, batch, seed, first, samples);
  result.labels = result.labels.repeat({1, times_});
  return result;
}

}  // namespace sluice::lab
