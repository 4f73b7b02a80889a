#include "recipes/dynamic/spark-transformer/variants.h"

#include <torch/types.h>

#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/selector.h"

namespace sluice::recipes::spark_transformer {
namespace {

class RuledFfn final : public lab::SparkFfn {
 public:
  RuledFfn(const lab::SparkFfnOptions& options, Rule rule, uint64_t seed)
      : SparkFfn(options), rule_(rule), generator_(at::detail::createCPUGenerator(seed)) {}
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    fail(Code::unsupported, "{}: a rival or control of the recipe spark-transformer, not a layer",
         path);
  }

 protected:
  at::Tensor awake(const at::Tensor& scores, lab::Context& context) const override {
    const double keep = options().keep;
    const auto k = static_cast<int64_t>(std::lround(keep * double(options().neurons)));
    switch (rule_) {
      case Rule::statistical:
        return SparkFfn::awake(scores, context);
      case Rule::exact:
        return at::relu(scores - std::get<0>(at::topk(scores, k + 1)).narrow(-1, k, 1));
      case Rule::hard:
        return at::relu(scores) * (scores > lab::statistical_bound(scores, keep));
      case Rule::random: {
        // Half of a random choice would be scores below 0, whose activation is next to nothing:
        // their sizes count, so that as many neurons speak as in the system.
        const at::Tensor noise =
            at::rand(scores.sizes(), generator_, at::TensorOptions().dtype(at::kFloat));
        const at::Tensor mask = lab::select(noise, lab::Selector::top(k)).to(scores.device());
        const at::Tensor shifted = SparkFfn::awake(scores, context);
        const at::Tensor size = shifted.sum(-1, /*keepdim=*/true) / double(k);
        return size * mask;
      }
      case Rule::foreign: {
        const at::Tensor bound = lab::statistical_bound(scores, keep);
        return at::relu(scores - at::roll(bound, {1}, {-2}));
      }
    }
    SLUICE_CHECK(!"every rule is above");
    return {};
  }

 private:
  Rule rule_;
  mutable at::Generator generator_;
};

std::shared_ptr<lab::SparkFfn> make_ruled(const lab::SparkFfnOptions& options, Rule rule,
                                          uint64_t seed) {
  if (rule == Rule::statistical) return std::make_shared<lab::SparkFfn>(options);
  return std::make_shared<RuledFfn>(options, rule, seed);
}

/// A gated network of which only the neurons with the largest activated gates are computed.
class PostHocFfn final : public lab::Brick {
 public:
  PostHocFfn(std::shared_ptr<lab::Ffn> ffn, double keep) : ffn_(std::move(ffn)), keep_(keep) {
    register_module("ffn", ffn_);
  }
  std::string kind() const override { return "post_hoc_ffn"; }
  Json attributes() const override { return ffn_->attributes(); }
  at::Tensor forward(const at::Tensor& x, lab::Context& context) override {
    const at::Tensor lead =
        lab::activate(ffn_->activation(), ffn_->slot("gate").forward(x, context));
    const auto k = static_cast<int64_t>(std::lround(keep_ * double(lead.size(-1))));
    const at::Tensor mask = lab::select(lead, lab::Selector::top(k));
    const at::Tensor h = lead * ffn_->slot("up").forward(x, context);
    return ffn_->slot("down").forward(h.masked_fill(mask.logical_not(), 0), context);
  }
  Shape output_shape(const Shape& input) const override { return ffn_->output_shape(input); }
  Cost cost(const Shape& input) const override { return ffn_->cost(input); }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    fail(Code::unsupported, "{}: a baseline of the recipe spark-transformer, not a layer", path);
  }

 private:
  std::shared_ptr<lab::Ffn> ffn_;
  double keep_;
};

}  // namespace

void draw_by_fan_in(lab::Model& model, int64_t layers, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (const lab::SlotRef& ref : lab::walk(*model.root, "blocks.*.ffn.*")) {
    auto* layer = dynamic_cast<lab::Linear*>(ref.slot->get().get());
    if (layer == nullptr) continue;
    const bool into_stream = ref.path.ends_with(".down");
    lab::fill_normal(
        layer->weight,
        1 / std::sqrt(double(layer->weight.size(1)) * (into_stream ? 2.0 * double(layers) : 1.0)),
        derive_seed(seed, ref.path));
  }
}

void make_spark(lab::Model& model, const SparkSizes& sizes, Rule rule, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const double into_stream = sizes.init_std / std::sqrt(2.0 * double(sizes.layers));
  const auto draw = [&](at::Tensor& tensor, double deviation, const std::string& path) {
    lab::fill_normal(tensor, deviation, derive_seed(seed, path));
  };
  for (const lab::SlotRef& ref : lab::walk(*model.root, "blocks.*.ffn")) {
    const auto ffn = make_ruled(sizes.ffn, rule, derive_seed(seed, "rule " + ref.path));
    const auto& o = sizes.ffn;
    const auto deviation = [&](double inputs) {
      return sizes.fan_in ? 1 / std::sqrt(inputs) : sizes.init_std;
    };
    draw(ffn->gate, deviation(double(o.split)), ref.path + ".gate");
    draw(ffn->up, deviation(double(o.width - o.split)), ref.path + ".up");
    draw(ffn->down, deviation(o.keep * double(o.neurons)) / std::sqrt(2.0 * double(sizes.layers)),
         ref.path + ".down");
    ref.slot->exchange(ffn);
  }
  if (!sizes.spark_attention) return;
  for (const lab::SlotRef& ref : lab::walk(*model.root, "blocks.*.attn")) {
    const auto attention = lab::make_spark_attention(sizes.attention, sizes.ffn.width, sizes.heads);
    for (const char* name : {"q", "k", "v", "o"}) {
      auto& layer = attention->slot(name).as<lab::Linear>();
      draw(layer.weight, std::string_view(name) == "o" ? into_stream : sizes.init_std,
           ref.path + "." + name);
    }
    ref.slot->exchange(attention);
  }
}

lab::Model with_rule(const lab::Model& model, Rule rule, uint64_t seed) {
  lab::Model result = lab::clone(model);
  for (const lab::SlotRef& ref : lab::walk(*result.root, "blocks.*.ffn")) {
    const auto old = std::dynamic_pointer_cast<lab::SparkFfn>(ref.slot->get());
    SLUICE_CHECK(old != nullptr);
    const auto fresh = make_ruled(old->options(), rule, derive_seed(seed, "rule " + ref.path));
    fresh->gate.set_data(old->gate.detach());
    fresh->up.set_data(old->up.detach());
    fresh->down.set_data(old->down.detach());
    fresh->eval();
    ref.slot->exchange(fresh);
  }
  return result;
}

lab::Model post_hoc(const lab::Model& model, double keep) {
  lab::Model result = lab::clone(model);
  for (const lab::SlotRef& ref : lab::walk(*result.root, "blocks.*.ffn")) {
    auto ffn = std::dynamic_pointer_cast<lab::Ffn>(ref.slot->get());
    SLUICE_CHECK(ffn != nullptr);
    ref.slot->exchange(std::make_shared<PostHocFfn>(std::move(ffn), keep));
  }
  result.root->eval();
  return result;
}

}  // namespace sluice::recipes::spark_transformer
