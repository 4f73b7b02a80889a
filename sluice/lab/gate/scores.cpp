// What a gate looks at: scores, by name.
#include "sluice/lab/gate/parts.h"

#include <algorithm>

#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/sized_linear.h"

namespace sluice::lab {
namespace {

class PooledMlp final : public Score {
 public:
  PooledMlp(int64_t inputs, int64_t units, int64_t hidden, double open)
      : hidden_(std::make_shared<Linear>(inputs, hidden)),
        output_(std::make_shared<SizedLinear>(hidden, units)),
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
  at::Tensor logits(const at::Tensor& x, int64_t size) override {
    const at::Tensor pooled = x.dim() == 4 ? x.mean({2, 3}) : x;
    const at::Tensor h = at::relu(at::linear(pooled, hidden_->weight, hidden_->bias));
    return output_->at_size(h, size);
  }
  bool steer(const std::vector<at::Tensor>& offsets) override {
    output_ = replace_module("output", output_->with_offsets(offsets));
    return true;
  }
  int64_t sizes() const override { return output_->sizes(); }
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
  std::shared_ptr<Linear> hidden_;
  std::shared_ptr<SizedLinear> output_;
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
  at::Tensor logits(const at::Tensor& x, int64_t) override {
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
  LinearScore(int64_t inputs, int64_t units)
      : linear_(std::make_shared<SizedLinear>(inputs, units)) {
    register_module("linear", linear_);
  }
  std::string kind() const override { return "linear"; }
  Json attributes() const override {
    return {{"kind", kind()}, {"inputs", linear_->inputs()}, {"units", units()}};
  }
  int64_t units() const override { return linear_->outputs(); }
  at::Tensor logits(const at::Tensor& x, int64_t size) override {
    return linear_->at_size(x, size);
  }
  bool steer(const std::vector<at::Tensor>& offsets) override {
    linear_ = replace_module("linear", linear_->with_offsets(offsets));
    return true;
  }
  int64_t sizes() const override { return linear_->sizes(); }
  Cost cost(const Shape& input) const override { return linear_->cost(input); }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override {
    return linear_->lower(builder, x, path + ".linear");
  }

 private:
  std::shared_ptr<SizedLinear> linear_;
};

/// The layer's own activity, averaged over places, says which units will be active (Elkerdawy et
/// al. 2022).
class PooledLinear final : public Score {
 public:
  struct Options {
    int64_t inputs = 1, units = 1, grid = 1;
    bool softmax = true, detach = true;
    double bias = 0;
  };
  explicit PooledLinear(const Options& options)
      : options_(options),
        linear_(std::make_shared<SizedLinear>(options.inputs * options.grid * options.grid,
                                              options.units)) {
    register_module("linear", linear_);
    const at::NoGradGuard no_grad;
    linear_->bias.fill_(options.bias);
  }
  std::string kind() const override { return "pooled_linear"; }
  Json attributes() const override {
    return {{"kind", kind()},        {"inputs", options_.inputs},   {"units", units()},
            {"grid", options_.grid}, {"softmax", options_.softmax}, {"detach", options_.detach},
            {"bias", options_.bias}};
  }
  int64_t units() const override { return linear_->outputs(); }
  at::Tensor logits(const at::Tensor& x, int64_t size) override {
    const at::Tensor input = options_.detach ? x.detach() : x;
    at::Tensor pooled;
    if (options_.grid == 1) {
      pooled = input.mean({2, 3});
    } else {
      const auto [height, width] = window({x.size(1), x.size(2), x.size(3)});
      pooled = at::avg_pool2d(input, {height, width}, {height, width}).flatten(1);
    }
    if (options_.softmax) pooled = at::softmax(pooled, -1);
    return linear_->at_size(pooled, size);
  }
  bool steer(const std::vector<at::Tensor>& offsets) override {
    linear_ = replace_module("linear", linear_->with_offsets(offsets));
    return true;
  }
  int64_t sizes() const override { return linear_->sizes(); }
  Cost cost(const Shape& input) const override {
    window(input);
    return linear_->cost({linear_->inputs()});
  }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override {
    bundle::Value h;
    if (options_.grid == 1) {
      h = builder.node("global_avg_pool", path + ".pool", {x});
    } else {
      const auto [height, width] = window(x.shape);
      const std::vector<int64_t> kernel = {height, width};
      h = builder.node("avg_pool2d", path + ".pool", {x}, {{"kernel", kernel}, {"stride", kernel}});
      h = builder.node("flatten", path + ".flatten", {h});
    }
    if (options_.softmax) h = builder.node("softmax", path + ".softmax", {h});
    return linear_->lower(builder, h, path + ".linear");
  }

 private:
  /// Height and width of what is averaged to one number.
  std::pair<int64_t, int64_t> window(const Shape& input) const {
    if (input.size() != 3 || input[0] != options_.inputs || input[1] % options_.grid != 0 ||
        input[2] % options_.grid != 0) {
      fail(Code::shape, "gate: expected [{}, height, width] with sides in {} equal parts, found {}",
           options_.inputs, options_.grid, to_string(input));
    }
    return {input[1] / options_.grid, input[2] / options_.grid};
  }

  Options options_;
  std::shared_ptr<SizedLinear> linear_;
};

/// Linear layers over the last dimension, gelu between them.
class Mlp final : public Score {
 public:
  Mlp(int64_t inputs, std::vector<int64_t> hidden, int64_t units)
      : inputs_(inputs), hidden_(std::move(hidden)) {
    int64_t from = inputs;
    for (const int64_t to : hidden_) {
      layers_.push_back(std::make_shared<Linear>(from, to));
      register_module(fmt::format("layer{}", layers_.size() - 1), layers_.back());
      from = to;
    }
    last_ = register_module(last_name(), std::make_shared<SizedLinear>(from, units));
  }
  std::string kind() const override { return "mlp"; }
  Json attributes() const override {
    return {{"kind", kind()}, {"inputs", inputs_}, {"units", units()}, {"hidden", hidden_}};
  }
  int64_t units() const override { return last_->outputs(); }
  at::Tensor logits(const at::Tensor& x, int64_t size) override {
    at::Tensor h = x;
    for (const auto& layer : layers_) h = at::gelu(at::linear(h, layer->weight, layer->bias));
    return last_->at_size(h, size);
  }
  bool steer(const std::vector<at::Tensor>& offsets) override {
    last_ = replace_module(last_name(), last_->with_offsets(offsets));
    return true;
  }
  int64_t sizes() const override { return last_->sizes(); }
  Cost cost(const Shape& input) const override {
    Cost total;
    Shape shape = input;
    for (const auto& layer : layers_) {
      total += layer->cost(shape);
      shape = layer->output_shape(shape);
    }
    return total + last_->cost(shape);
  }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override {
    bundle::Value h = x;
    for (size_t i = 0; i < layers_.size(); ++i) {
      h = layers_[i]->lower(builder, h, fmt::format("{}.layer{}", path, i));
      h = builder.node("activation", fmt::format("{}.gelu{}", path, i + 1), {h},
                       {{"kind", std::string("gelu")}});
    }
    return last_->lower(builder, h, path + "." + last_name());
  }

 private:
  std::string last_name() const { return fmt::format("layer{}", hidden_.size()); }

  int64_t inputs_;
  std::vector<int64_t> hidden_;
  std::vector<std::shared_ptr<Linear>> layers_;
  std::shared_ptr<SizedLinear> last_;
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
      {"pooled_linear",
       [](const Json& attributes) -> std::shared_ptr<Score> {
         const AttributeReader read(
             attributes, "pooled_linear",
             {"kind", "inputs", "units", "grid", "softmax", "detach", "bias"});
         PooledLinear::Options options;
         options.inputs =
             require_range(read.integer("inputs"), 1, kMaxChannels, "inputs", "pooled_linear");
         options.units = units_of(read, "pooled_linear");
         options.grid = require_range(read.integer("grid", 1), 1, 1024, "grid", "pooled_linear");
         options.softmax = read.boolean("softmax", true);
         options.detach = read.boolean("detach", true);
         options.bias =
             require_range(read.number("bias", 0.0), -100.0, 100.0, "bias", "pooled_linear");
         return std::make_shared<PooledLinear>(options);
       }},
      {"mlp",
       [](const Json& attributes) -> std::shared_ptr<Score> {
         const AttributeReader read(attributes, "mlp score", {"kind", "inputs", "units", "hidden"});
         std::vector<int64_t> hidden = read.integers("hidden", 8);
         if (hidden.empty()) hidden = {16, 16};
         return std::make_shared<Mlp>(read.integer("inputs"), std::move(hidden),
                                      units_of(read, "mlp score"));
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
