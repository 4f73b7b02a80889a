#include "recipes/dynamic/wina/arms.h"

#include <torch/types.h>

#include <cmath>
#include <map>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/selector.h"

namespace sluice::recipes::wina {
namespace {

/// Norms of the columns of all layers that read what `path`'s layer reads.
at::Tensor group_norms(const lab::Model& model, const std::string& path, const lab::Linear& own) {
  const size_t dot = path.rfind('.');
  const std::string body = path.substr(0, dot), name = path.substr(dot + 1);
  std::vector<std::string> group;
  if (name == "q" || name == "k" || name == "v") group = {"q", "k", "v"};
  if (name == "gate" || name == "up") group = {"gate", "up"};
  if (group.empty()) return lab::column_norms(own);
  at::Tensor squares;
  for (const lab::SlotRef& ref : lab::walk(*model.root, body + ".*")) {
    if (std::find(group.begin(), group.end(), ref.slot->name()) == group.end()) continue;
    const at::Tensor norms = lab::column_norms(ref.slot->as<lab::Linear>()).square();
    squares = squares.defined() ? squares + norms : norms;
  }
  return squares.sqrt();
}

/// y = W (x * m) + b with a new random mask of `kept` inputs for each row.
class RandomlyMaskedLinear final : public lab::Brick {
 public:
  RandomlyMaskedLinear(std::shared_ptr<lab::Linear> layer, int64_t kept, uint64_t seed)
      : layer_(std::move(layer)), kept_(kept), generator_(at::detail::createCPUGenerator(seed)) {
    register_module("layer", layer_);
  }
  std::string kind() const override { return "randomly_masked_linear"; }
  Json attributes() const override { return layer_->attributes(); }
  at::Tensor forward(const at::Tensor& x, lab::Context& context) override {
    const at::Tensor noise = at::rand(x.sizes(), generator_, at::TensorOptions().dtype(at::kFloat));
    const at::Tensor mask = lab::select(noise, lab::Selector::top(kept_)).to(x.device());
    return layer_->forward(x.masked_fill(mask.logical_not(), 0), context);
  }
  Shape output_shape(const Shape& input) const override { return layer_->output_shape(input); }
  Cost cost(const Shape& input) const override { return layer_->cost(input); }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    fail(Code::unsupported, "{}: random masks are a control of the recipe wina, not a layer", path);
  }

 private:
  std::shared_ptr<lab::Linear> layer_;
  int64_t kept_;
  at::Generator generator_;
};

}  // namespace

std::vector<int64_t> random_order(int64_t n, uint64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (uint64_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[derive_seed(seed, "order", i) % i]);
  return order;
}

lab::InputFactors factors_of(Score score, const lab::Model& model, uint64_t seed) {
  return [score, &model, seed](const std::string& path, const lab::Linear& layer) -> at::Tensor {
    switch (score) {
      case Score::wina:
        return lab::column_norms(layer);
      case Score::magnitude:
        return {};
      case Score::keys_and_gates:
        return path.ends_with(".k") || path.ends_with(".gate") ? lab::column_norms(layer)
                                                               : at::Tensor();
      case Score::shared:
        return group_norms(model, path, layer);
      case Score::permuted: {
        const auto order = random_order(layer.inputs(), derive_seed(seed, "permuted " + path));
        const at::Tensor norms = lab::column_norms(layer);
        return norms.index_select(0, torch::tensor(order).to(norms.device()));
      }
      case Score::inverse:
        return lab::column_norms(layer).clamp_min(1e-12).reciprocal();
    }
    SLUICE_CHECK(!"every score is above");
    return {};
  };
}

lab::ActivationSparsifier make_sparsifier(const Subject& subject, const lab::Model& model,
                                          const Plan& plan, Score score, uint64_t seed,
                                          bool exact) {
  lab::SparsifyOptions options;
  options.exact = exact;
  options.dense_first = std::max<int64_t>(1, plan.context / 100);
  options.greedy_samples = plan.greedy_samples;
  return {model, subject.calibration, options, factors_of(score, model, seed)};
}

std::vector<double> shuffled_levels(std::span<const double> levels, std::span<const double> sizes,
                                    uint64_t seed) {
  std::map<double, std::vector<size_t>> by_size;
  for (size_t i = 0; i < sizes.size(); ++i) by_size[sizes[i]].push_back(i);
  std::vector<double> result(levels.begin(), levels.end());
  for (const auto& [size, members] : by_size) {
    const auto order = random_order(static_cast<int64_t>(members.size()),
                                    derive_seed(seed, "levels", static_cast<uint64_t>(size)));
    for (size_t i = 0; i < members.size(); ++i)
      result[members[i]] = levels[members[static_cast<size_t>(order[i])]];
  }
  return result;
}

lab::Model randomly_masked(const lab::Model& model, const std::vector<std::string>& paths,
                           std::span<const double> levels, uint64_t seed) {
  lab::Model result = lab::clone(model);
  for (size_t i = 0; i < paths.size(); ++i) {
    lab::Slot& slot = *lab::walk(*result.root, paths[i]).front().slot;
    const auto layer = std::dynamic_pointer_cast<lab::Linear>(slot.get());
    SLUICE_CHECK(layer != nullptr);
    const double kept = std::floor((1 - levels[i]) * static_cast<double>(layer->inputs()) + 1e-6);
    slot.exchange(std::make_shared<RandomlyMaskedLinear>(
        layer, std::max<int64_t>(1, static_cast<int64_t>(kept)),
        derive_seed(seed, "random " + paths[i])));
  }
  result.root->eval();
  return result;
}

}  // namespace sluice::recipes::wina
