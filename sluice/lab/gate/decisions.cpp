// How a gate turns scores into open and closed: decisions, by name.
#include "sluice/lab/gate/parts.h"

#include <cmath>

#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/gate/selector.h"

namespace sluice::lab {
namespace {

[[noreturn]] void no_node(const std::string& path, const std::string& kind) {
  fail(Code::unsupported,
       "{}: the engine has no node for decision '{}'; it has 'threshold', and for "
       "neurons 'top_k' and 'statistical_top_k'. Freeze the gate, or train it with one of them",
       path, kind);
}

/// Logits are ranked by value.
Selector by_value(Selector selector) {
  selector.magnitude = false;
  return selector;
}

/// 1 where the selector keeps a logit, else 0.
at::Tensor as_numbers(const at::Tensor& logits, const Selector& selector) {
  return select(logits, selector).to(logits.scalar_type());
}

class Threshold final : public Decision {
 public:
  explicit Threshold(double at) : at_(at), logit_(std::log(at) - std::log1p(-at)) {}
  Json attributes() const override { return {{"kind", "threshold"}, {"at", at_}}; }
  at::Tensor decide(const at::Tensor& logits, bool, Context&) const override {
    return (logits > logit_).to(logits.scalar_type());  // on logits, as the engine does it
  }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& logits,
                      const std::string& path) const override {
    return builder.node("threshold", path + ".decision", {logits}, {{"value", logit_}});
  }
  Selector selector(int64_t, const std::string&) const override {
    return by_value(Selector::above(static_cast<float>(logit_)));
  }

 private:
  double at_, logit_;
};

class TopK final : public Decision {
 public:
  explicit TopK(int64_t k) : k_(k) {}
  Json attributes() const override { return {{"kind", "top_k"}, {"k", k_}}; }
  at::Tensor decide(const at::Tensor& logits, bool, Context&) const override {
    return as_numbers(logits, selector(logits.size(-1), ""));
  }
  Selector selector(int64_t, const std::string&) const override {
    return by_value(Selector::top(k_));
  }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    no_node(path, "top_k");
  }

 private:
  int64_t k_;
};

class StatisticalTopK final : public Decision {
 public:
  explicit StatisticalTopK(int64_t k) : k_(k) {}
  Json attributes() const override { return {{"kind", "statistical_top_k"}, {"k", k_}}; }
  at::Tensor decide(const at::Tensor& logits, bool, Context&) const override {
    return as_numbers(logits, selector(logits.size(-1), ""));
  }
  Selector selector(int64_t units, const std::string&) const override {
    const double share = static_cast<double>(k_) / static_cast<double>(units);
    return by_value(Selector::share(std::min(share, 1.0)));
  }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    no_node(path, "statistical_top_k");
  }

 private:
  int64_t k_;
};

class Sample final : public Decision {
 public:
  Json attributes() const override { return {{"kind", "sample"}}; }
  at::Tensor decide(const at::Tensor& logits, bool training, Context& context) const override {
    if (!training) return (logits > 0).to(logits.scalar_type());
    return (uniform_noise(logits, context) < at::sigmoid(logits)).to(logits.scalar_type());
  }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& logits,
                      const std::string& path) const override {
    return builder.node("threshold", path + ".decision", {logits}, {{"value", 0.0}});
  }
  Selector selector(int64_t, const std::string&) const override {
    return by_value(Selector::above(0));
  }
};

class Softmax final : public Decision {
 public:
  Json attributes() const override { return {{"kind", "softmax"}}; }
  at::Tensor decide(const at::Tensor& logits, bool, Context&) const override {
    return at::zeros_like(logits).scatter(-1, logits.argmax(-1, /*keepdim=*/true), 1.0);
  }
  at::Tensor probability(const at::Tensor& logits) const override {
    return at::softmax(logits, -1);
  }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    no_node(path, "softmax");
  }
  Selector selector(int64_t, const std::string& path) const override { no_node(path, "softmax"); }
};

const PartTable<std::unique_ptr<Decision>>& decisions() {
  static const PartTable<std::unique_ptr<Decision>> table = {
      {"threshold",
       [](const Json& attributes) -> std::unique_ptr<Decision> {
         const AttributeReader read(attributes, "threshold", {"kind", "at"});
         return std::make_unique<Threshold>(
             require_range(read.number("at", 0.5), 1e-6, 1 - 1e-6, "at", "threshold"));
       }},
      {"top_k",
       [](const Json& attributes) -> std::unique_ptr<Decision> {
         const AttributeReader read(attributes, "top_k", {"kind", "k"});
         return std::make_unique<TopK>(
             require_range(read.integer("k"), 1, kMaxChannels, "k", "top_k"));
       }},
      {"statistical_top_k",
       [](const Json& attributes) -> std::unique_ptr<Decision> {
         const AttributeReader read(attributes, "statistical_top_k", {"kind", "k"});
         return std::make_unique<StatisticalTopK>(
             require_range(read.integer("k"), 1, kMaxChannels, "k", "statistical_top_k"));
       }},
      {"sample",
       [](const Json& attributes) -> std::unique_ptr<Decision> {
         const AttributeReader read(attributes, "sample", {"kind"});
         return std::make_unique<Sample>();
       }},
      {"softmax",
       [](const Json& attributes) -> std::unique_ptr<Decision> {
         const AttributeReader read(attributes, "softmax", {"kind"});
         return std::make_unique<Softmax>();
       }},
  };
  return table;
}

}  // namespace

at::Tensor Decision::probability(const at::Tensor& logits) const { return at::sigmoid(logits); }

std::unique_ptr<Decision> make_decision(const Json& attributes) {
  return make_part(decisions(), attributes, "decision");
}
std::vector<std::string> decision_kinds() { return part_names(decisions()); }

void require_units(const Json& decision, int64_t units) {
  if (!decision.contains("k")) return;
  require_range(decision.at("k").get<int64_t>(), 1, units, "k",
                "the gate's decision (its units bound it)");
}

}  // namespace sluice::lab
