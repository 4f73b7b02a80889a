// The parts of a gate, by name.
#include "sluice/lab/gate/parts.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>
#include <cmath>
#include <map>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/layers.h"

namespace sluice::lab {
namespace {

// ---- scores ----

class PooledMlp final : public Score {
 public:
  PooledMlp(int64_t inputs, int64_t units, int64_t hidden, double open)
      : hidden_(std::make_shared<Linear>(inputs, hidden)),
        output_(std::make_shared<Linear>(hidden, units)),
        open_(open) {
    register_module("hidden", hidden_);
    register_module("output", output_);
    const at::NoGradGuard no_grad;
    output_->bias.fill_(open);
  }
  std::string kind() const override { return "pooled_mlp"; }
  Json attributes() const override {
    return {{"kind", kind()},
            {"inputs", hidden_->inputs()},
            {"units", units()},
            {"hidden", hidden_->outputs()},
            {"bias", open_}};
  }
  int64_t units() const override { return output_->outputs(); }
  at::Tensor logits(const at::Tensor& x) override {
    const at::Tensor pooled = x.dim() == 4 ? x.mean({2, 3}) : x;
    const at::Tensor h = at::relu(at::linear(pooled, hidden_->weight, hidden_->bias));
    return at::linear(h, output_->weight, output_->bias);
  }
  Cost cost(const Shape& input) const override {
    if (input.empty() || input[0] != hidden_->inputs()) {
      fail(Code::shape, "gate: expected [{}, ..], found {}", hidden_->inputs(), to_string(input));
    }
    return hidden_->cost({hidden_->inputs()}) + output_->cost({hidden_->outputs()});
  }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override {
    bundle::Value h = x;
    if (x.shape.size() == 3) h = builder.node("global_avg_pool", path + ".pool", {x});
    h = hidden_->lower(builder, h, path + ".hidden");
    h = builder.node("activation", path + ".relu", {h}, {{"kind", std::string("relu")}});
    return output_->lower(builder, h, path + ".output");
  }

 private:
  std::shared_ptr<Linear> hidden_, output_;
  double open_;
};

class Learned final : public Score {
 public:
  Learned(int64_t units, double init) : init_(init) {
    logits_ = register_parameter("logits", at::full({units}, init));
  }
  std::string kind() const override { return "learned"; }
  Json attributes() const override {
    return {{"kind", kind()}, {"units", units()}, {"init", init_}};
  }
  int64_t units() const override { return logits_.numel(); }
  at::Tensor logits(const at::Tensor& x) override {
    return logits_.expand({x.size(0), logits_.numel()});
  }
  Cost cost(const Shape&) const override { return {0, units(), 4 * units()}; }
  bundle::Value lower(bundle::Builder&, const bundle::Value&,
                      const std::string& path) const override {
    fail(Code::unsupported,
         "{}: a learned score does not look at its input; run freeze-gates first, which makes it a "
         "constant mask",
         path);
  }

 private:
  at::Tensor logits_;
  double init_;
};

class LinearScore final : public Score {
 public:
  LinearScore(int64_t inputs, int64_t units) : linear_(std::make_shared<Linear>(inputs, units)) {
    register_module("linear", linear_);
  }
  std::string kind() const override { return "linear"; }
  Json attributes() const override {
    return {{"kind", kind()}, {"inputs", linear_->inputs()}, {"units", units()}};
  }
  int64_t units() const override { return linear_->outputs(); }
  at::Tensor logits(const at::Tensor& x) override {
    return at::linear(x, linear_->weight, linear_->bias);
  }
  Cost cost(const Shape& input) const override { return linear_->cost(input); }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override {
    return linear_->lower(builder, x, path + ".linear");
  }

 private:
  std::shared_ptr<Linear> linear_;
};

// ---- decisions ----

[[noreturn]] void no_node(const std::string& path, const std::string& kind) {
  fail(
      Code::unsupported,
      "{}: the engine has no node for decision '{}'; it has 'threshold'. Freeze the gate, or train "
      "it with a threshold",
      path, kind);
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

 private:
  double at_, logit_;
};

class TopK final : public Decision {
 public:
  explicit TopK(int64_t k) : k_(k) {}
  Json attributes() const override { return {{"kind", "top_k"}, {"k", k_}}; }
  at::Tensor decide(const at::Tensor& logits, bool, Context&) const override {
    const auto [values, order] = at::sort(logits, /*stable=*/true, /*dim=*/-1, /*descending=*/true);
    return at::zeros_like(logits).scatter(-1, order.narrow(-1, 0, k_), 1.0);
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
    const int64_t units = logits.size(-1);
    if (k_ >= units) return at::ones_like(logits);
    const double share = 1.0 - static_cast<double>(k_) / static_cast<double>(units);
    const double quantile =
        std::sqrt(2.0) * at::erfinv(at::scalar_tensor(2 * share - 1, at::kDouble)).item<double>();
    const at::Tensor centre = logits.mean(-1, /*keepdim=*/true);
    const at::Tensor spread = (logits - centre).pow(2).mean(-1, /*keepdim=*/true).sqrt();
    return (logits > centre + spread * quantile).to(logits.scalar_type());
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
};

// ---- estimators ----

// Adds `through` to the graph, not to the value: the difference is exactly 0.
at::Tensor pass_through(const at::Tensor& hard, const at::Tensor& through) {
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

// ---- tables ----

int64_t units_of(const AttributeReader& read, std::string_view kind) {
  return require_range(read.integer("units"), 1, kMaxChannels, "units", kind);
}

template <class T>
using Table = std::map<std::string, T (*)(const Json&)>;

const Table<std::shared_ptr<Score>>& scores() {
  static const Table<std::shared_ptr<Score>> table = {
      {"pooled_mlp",
       [](const Json& attributes) -> std::shared_ptr<Score> {
         const AttributeReader read(attributes, "pooled_mlp",
                                    {"kind", "inputs", "units", "hidden", "bias"});
         const int64_t inputs = read.integer("inputs");
         const int64_t hidden = read.integer("hidden", std::max<int64_t>(4, inputs / 4));
         return std::make_shared<PooledMlp>(
             inputs, units_of(read, "pooled_mlp"), hidden,
             require_range(read.number("bias", 2.0), -100.0, 100.0, "bias", "pooled_mlp"));
       }},
      {"learned",
       [](const Json& attributes) -> std::shared_ptr<Score> {
         const AttributeReader read(attributes, "learned", {"kind", "units", "init"});
         const int64_t units = units_of(read, "learned");
         return std::make_shared<Learned>(
             units, require_range(read.number("init", 2.0), -100.0, 100.0, "init", "learned"));
       }},
      {"linear",
       [](const Json& attributes) -> std::shared_ptr<Score> {
         const AttributeReader read(attributes, "linear score", {"kind", "inputs", "units"});
         return std::make_shared<LinearScore>(read.integer("inputs"),
                                              units_of(read, "linear score"));
       }},
  };
  return table;
}

const Table<std::unique_ptr<Decision>>& decisions() {
  static const Table<std::unique_ptr<Decision>> table = {
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

const Table<std::unique_ptr<Estimator>>& estimators() {
  static const Table<std::unique_ptr<Estimator>> table = {
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
      {"sigmoid",
       [](const Json& attributes) -> std::unique_ptr<Estimator> {
         const AttributeReader read(attributes, "sigmoid", {"kind"});
         return std::make_unique<SoftSigmoid>();
       }},
  };
  return table;
}

template <class T>
std::vector<std::string> names(const Table<T>& table) {
  std::vector<std::string> result;
  for (const auto& [name, make] : table) result.push_back(name);
  return result;
}

template <class T>
T make_part(const Table<T>& table, const Json& attributes, std::string_view what) {
  if (!attributes.is_object() || !attributes.contains("kind") ||
      !attributes.at("kind").is_string()) {
    fail(Code::config, "{} of gate: expected a table with 'kind'", what);
  }
  const auto kind = attributes.at("kind").get<std::string>();
  const auto found = table.find(kind);
  if (found == table.end()) {
    const std::string near = nearest_name(kind, names(table));
    fail(Code::config, "{} of gate: unknown kind '{}'{}; known: {}", what, kind.substr(0, 60),
         near.empty() ? "" : fmt::format(", did you mean '{}'?", near),
         fmt::join(names(table), ", "));
  }
  return found->second(attributes);
}

}  // namespace

at::Tensor Decision::probability(const at::Tensor& logits) const { return at::sigmoid(logits); }

std::shared_ptr<Score> make_score(const Json& attributes) {
  return make_part(scores(), attributes, "score");
}
std::unique_ptr<Decision> make_decision(const Json& attributes) {
  return make_part(decisions(), attributes, "decision");
}
std::unique_ptr<Estimator> make_estimator(const Json& attributes) {
  return make_part(estimators(), attributes, "estimator");
}

std::vector<std::string> score_kinds() { return names(scores()); }
std::vector<std::string> decision_kinds() { return names(decisions()); }
std::vector<std::string> estimator_kinds() { return names(estimators()); }

void require_units(const Json& decision, int64_t units) {
  if (!decision.contains("k")) return;
  require_range(decision.at("k").get<int64_t>(), 1, units, "k",
                "the gate's decision (its units bound it)");
}

}  // namespace sluice::lab
