// What a gate looks at: scores, by name.
#include "sluice/lab/gate/parts.h"

#include <algorithm>

#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/layers.h"

namespace sluice::lab {
namespace {

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

int64_t units_of(const AttributeReader& read, std::string_view kind) {
  return require_range(read.integer("units"), 1, kMaxChannels, "units", kind);
}

const PartTable<std::shared_ptr<Score>>& scores() {
  static const PartTable<std::shared_ptr<Score>> table = {
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

}  // namespace

std::shared_ptr<Score> make_score(const Json& attributes) {
  return make_part(scores(), attributes, "score");
}
std::vector<std::string> score_kinds() { return part_names(scores()); }

}  // namespace sluice::lab
