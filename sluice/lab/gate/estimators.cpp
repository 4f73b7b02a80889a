// How gradients pass a decision: estimators, by name.
#include "sluice/lab/gate/parts.h"

#include "sluice/lab/brick/attributes.h"

namespace sluice::lab {
namespace {

// Adds `through` to the graph, not to the value: the difference is exactly 0 (of numbers; without a
// graph what is no number does not enter either, and a unit whose score is none stays closed).
at::Tensor pass_through(const at::Tensor& hard, const at::Tensor& through) {
  if (!through.requires_grad()) return hard;
  return hard + (through - through.detach());
}

class ClippedSte final : public Estimator {
 public:
  explicit ClippedSte(double clip) : clip_(clip) {}
  Json attributes() const override { return {{"kind", "ste"}, {"clip", clip_}}; }
  at::Tensor apply(const at::Tensor& hard, const at::Tensor& logits) const override {
    return pass_through(hard, logits.clamp(-clip_, clip_));
  }

 private:
  double clip_;
};

class SigmoidSte final : public Estimator {
 public:
  SigmoidSte(std::string kind, double temperature)
      : kind_(std::move(kind)), temperature_(temperature) {}
  Json attributes() const override {
    if (kind_ == "ste_sigmoid") return {{"kind", kind_}};
    return {{"kind", kind_}, {"temperature", temperature_}};
  }
  at::Tensor apply(const at::Tensor& hard, const at::Tensor& logits) const override {
    return pass_through(hard, at::sigmoid(logits / temperature_));
  }

 private:
  std::string kind_;
  double temperature_;
};

// Wu et al. 2023: the power function's slope, held finite near 0 and cut off far from it.
class Reste final : public Estimator {
 public:
  explicit Reste(double o) : o_(o) {}
  Json attributes() const override { return {{"kind", "reste"}, {"o", o_}}; }
  at::Tensor apply(const at::Tensor& hard, const at::Tensor& logits) const override {
    constexpr double kNear = 0.1, kFar = 1.5;
    const at::Tensor size = logits.detach().abs();
    const at::Tensor slope = size.clamp_min(kNear).pow(1.0 / o_ - 1.0) / o_;
    return pass_through(hard, logits * (slope * (size <= kFar)));
  }

 private:
  double o_;
};

class SoftSigmoid final : public Estimator {
 public:
  Json attributes() const override { return {{"kind", "sigmoid"}}; }
  at::Tensor apply(const at::Tensor&, const at::Tensor& logits) const override {
    return at::sigmoid(logits);
  }
};

class NoGradient final : public Estimator {
 public:
  Json attributes() const override { return {{"kind", "none"}}; }
  at::Tensor apply(const at::Tensor& hard, const at::Tensor&) const override { return hard; }
};

const PartTable<std::unique_ptr<Estimator>>& estimators() {
  static const PartTable<std::unique_ptr<Estimator>> table = {
      {"ste",
       [](const Json& attributes) -> std::unique_ptr<Estimator> {
         const AttributeReader read(attributes, "ste", {"kind", "clip"});
         return std::make_unique<ClippedSte>(
             require_range(read.number("clip", 1.0), 1e-6, 1e6, "clip", "ste"));
       }},
      {"ste_sigmoid",
       [](const Json& attributes) -> std::unique_ptr<Estimator> {
         const AttributeReader read(attributes, "ste_sigmoid", {"kind"});
         return std::make_unique<SigmoidSte>("ste_sigmoid", 1.0);
       }},
      {"reste",
       [](const Json& attributes) -> std::unique_ptr<Estimator> {
         const AttributeReader read(attributes, "reste", {"kind", "o"});
         return std::make_unique<Reste>(
             require_range(read.number("o", 1.5), 1.0, 100.0, "o", "reste"));
       }},
      {"gumbel_sigmoid",
       [](const Json& attributes) -> std::unique_ptr<Estimator> {
         const AttributeReader read(attributes, "gumbel_sigmoid", {"kind", "temperature"});
         return std::make_unique<SigmoidSte>(
             "gumbel_sigmoid", require_range(read.number("temperature", 1.0), 1e-3, 1e3,
                                             "temperature", "gumbel_sigmoid"));
       }},
      {"none",
       [](const Json& attributes) -> std::unique_ptr<Estimator> {
         const AttributeReader read(attributes, "none", {"kind"});
         return std::make_unique<NoGradient>();
       }},
      {"sigmoid",
       [](const Json& attributes) -> std::unique_ptr<Estimator> {
         const AttributeReader read(attributes, "sigmoid", {"kind"});
         return std::make_unique<SoftSigmoid>();
       }},
  };
  return table;
}

}  // namespace

std::unique_ptr<Estimator> make_estimator(const Json& attributes) {
  return make_part(estimators(), attributes, "estimator");
}
std::vector<std::string> estimator_kinds() { return part_names(estimators()); }

}  // namespace sluice::lab
