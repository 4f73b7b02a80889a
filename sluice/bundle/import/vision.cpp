// ViT and DeiT (arXiv 2010.11929, 2012.12877): a picture's patches as rows, norms before each half
// of a layer, the first row's features classify. What the preprocessor subtracts and divides by is
// the task's mean and deviation, or a layer of its own where it differs between channels.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/import/family.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

/// One number, or two that are equal.
int64_t square(const Config& config, const std::string& name, int64_t fallback) {
  if (!config.has(name)) return fallback;
  const std::vector<int64_t> sides = config.integers(name);
  if (sides.empty() || sides.size() > 2 || sides.front() != sides.back())
    fail(Code::unsupported, "{}: expected one number, or two equal ones; found {} numbers",
         config.field(name), sides.size());
  if (sides[0] < 1 || sides[0] > 65536)
    fail(Code::config, "{}: expected 1 to 65536, found {}", config.field(name), sides[0]);
  return sides[0];
}

class VisionTransformer {
 public:
  explicit VisionTransformer(Model& model) : m_(model) {}

  void build() {
    read_config();
    read_labels();
    Builder& b = m_.builder;
    const int64_t side = image_ / patch_, patches = side * side;
    const Value pixels = b.input("pixels", {channels_, image_, image_});
    Value x = b.node("reshape", name("embeddings.rows"), {project(normalized(pixels))},
                     {{"shape", std::vector<int64_t>{width_, patches}}});
    x = b.node("transpose", name("embeddings.turn"), {x}, {{"perm", std::vector<int64_t>{1, 0}}});
    std::vector<Value> rows{constant("embeddings.cls_token", 1, pixels)};
    if (deit_) rows.push_back(constant("embeddings.distillation_token", 1, pixels));
    rows.push_back(x);
    x = b.node("concat", name("embeddings.all"), rows, {{"axis", int64_t{0}}});
    x = m_.add(name("embeddings.add"), x,
               constant("embeddings.position_embeddings", x.shape[0], pixels));
    for (int64_t i = 0; i < layers_; ++i) x = layer(name(fmt::format("encoder.layer.{}", i)), x);
    x = m_.norm("layer_norm", name("layernorm"), x, eps_);
    classify(x);
    m_.ignorable = {"*pooler.dense.weight", "*pooler.dense.bias", "*embeddings.mask_token"};
  }

 private:
  std::string name(const std::string& rest) const { return (deit_ ? "deit." : "vit.") + rest; }

  void read_config() {
    const Config& config = m_.config;
    deit_ = m_.architecture.starts_with("DeiT");
    width_ = config.integer("hidden_size");
    inner_ = config.integer("intermediate_size");
    heads_ = config.integer("num_attention_heads", 1, 65536);
    layers_ = config.integer("num_hidden_layers", 1, 65536);
    channels_ = config.integer_or("num_channels", 3, 1, 64);
    image_ = square(config, "image_size", 224);
    patch_ = square(config, "patch_size", 16);
    eps_ = config.number_or("layer_norm_eps", 1e-12, {0, 1});
    bias_ = config.flag_or("qkv_bias", true);
    if (width_ % heads_ != 0)
      fail(Code::config, "{}: {} does not divide the hidden_size {}",
           config.field("num_attention_heads"), heads_, width_);
    if (patch_ > image_)
      fail(Code::config, "{}: patches of {} pixels in a picture of {}", config.field("patch_size"),
           patch_, image_);
    m_.result.kind = "classify";
    m_.result.layers = layers_;
    m_.result.width = width_;
  }

  void read_labels() {
    const Config& config = m_.config;
    if (const auto names = config.object("id2label")) {
      for (size_t i = 0; i < names->json().size(); ++i) {
        const std::string id = std::to_string(i);
        if (!names->has(id))
          fail(Code::config, "{}: {} names, but none of class {}", config.field("id2label"),
               names->json().size(), id);
        m_.task.labels.push_back(names->text_or(id, ""));
      }
      classes_ = static_cast<int64_t>(m_.task.labels.size());
    } else {
      classes_ = config.integer_or("num_labels", 2);
    }
    if (classes_ < 1) fail(Code::config, "{}: no class has a name", config.field("id2label"));
  }

  /// The stored tensor [1, rows, width], which does not depend on the picture.
  Value constant(const std::string& own, int64_t rows, const Value& pixels) {
    const std::string path = name(own);
    m_.builder.tensor(path, {rows, width_}, m_.weights.values(path, {1, rows, width_}));
    return m_.builder.node("constant", path, {pixels}, {}, {{"value", path}});
  }

  /// What the preprocessor makes of a pixel of 0 to 1: (pixel - mean[c]) / std[c].
  void read_normalization(std::vector<double>& mean, std::vector<double>& std) const {
    mean.assign(static_cast<size_t>(channels_), 0.0);
    std.assign(static_cast<size_t>(channels_), 1.0);
    if (!m_.preprocessor)
      fail(Code::missing,
           "preprocessor_config.json is not beside {}; its image_mean and image_std say what the "
           "network takes for a pixel",
           m_.config.what());
    const Config& p = *m_.preprocessor;
    if (!p.flag_or("do_rescale", true) ||
        std::abs(p.number_or("rescale_factor", 1.0 / 255, {0, 1}) - 1.0 / 255) > 1e-6)
      fail(Code::unsupported, "{}: expected pixels divided by 255", p.field("rescale_factor"));
    if (!p.flag_or("do_normalize", true)) return;
    const auto numbers = [&](const char* field, Range range) {
      const auto found = p.json().find(field);
      const bool one = found != p.json().end() && found->is_number();
      std::vector<double> values =
          one ? std::vector{p.number(field, range)} : p.numbers(field, range);
      if (values.empty()) values = {0.5};  // of the library's ViTImageProcessor
      if (values.size() == 1) values.assign(static_cast<size_t>(channels_), values[0]);
      if (values.size() != static_cast<size_t>(channels_))
        fail(Code::config, "{}: expected a number for each of {} channels, found {}",
             p.field(field), channels_, values.size());
      return values;
    };
    mean = numbers("image_mean", {-1e3, 1e3});
    std = numbers("image_std", {1e-6, 1e3});
  }

  /// What the patch projection takes, of (pixel / 255 - task.mean) / task.std.
  Value normalized(const Value& pixels) {
    std::vector<double> mean, std;
    read_normalization(mean, std);
    const auto differs = [](const std::vector<double>& v) {
      return std::ranges::adjacent_find(v, std::ranges::not_equal_to()) != v.end();
    };
    if (!differs(mean) && !differs(std)) {
      m_.task.mean = mean[0];
      m_.task.std = std[0];
      return pixels;
    }
    std::vector<float> means, variances;
    for (size_t c = 0; c < mean.size(); ++c) {
      means.push_back(static_cast<float>(mean[c]));
      variances.push_back(static_cast<float>(std[c] * std[c]));
    }
    Builder& b = m_.builder;
    b.tensor("preprocessor.running_mean", {channels_}, means);
    b.tensor("preprocessor.running_var", {channels_}, variances);
    return b.node("batch_norm", "preprocessor", {pixels}, {{"eps", 0.0}},
                  {{"running_mean", "preprocessor.running_mean"},
                   {"running_var", "preprocessor.running_var"}});
  }

  Value project(const Value& pixels) {
    const std::string path = name("embeddings.patch_embeddings.projection");
    const std::string weight = m_.weights.vector(m_.builder, path + ".weight",
                                                 {width_, channels_, patch_, patch_}),
                      bias = m_.weights.vector(m_.builder, path + ".bias", {width_});
    return m_.builder.node("conv2d", path, {pixels},
                           {{"stride", std::vector<int64_t>{patch_, patch_}}},
                           {{"weight", weight}, {"bias", bias}});
  }

  Value layer(const std::string& path, const Value& x) {
    const std::string self = path + ".attention.attention";
    Value h = m_.norm("layer_norm", path + ".layernorm_before", x, eps_);
    const Value q = m_.linear(self + ".query", h, width_, bias_),
                k = m_.linear(self + ".key", h, width_, bias_),
                v = m_.linear(self + ".value", h, width_, bias_);
    const Value mixed = m_.builder.node("attention", self, {q, k, v},
                                        {{"heads", heads_}, {"mask", std::string("full")}});
    const Value y = m_.add(path + ".attention.add",
                           m_.linear(path + ".attention.output.dense", mixed, width_, true), x);
    h = m_.norm("layer_norm", path + ".layernorm_after", y, eps_);
    h = m_.activation(path + ".intermediate.act",
                      m_.linear(path + ".intermediate.dense", h, inner_, true), "hidden_act",
                      "gelu");
    return m_.add(path + ".output.add", m_.linear(path + ".output.dense", h, width_, true), y);
  }

  void classify(const Value& x) {
    const auto row = [&](int64_t index) {
      const std::string path = name(fmt::format("row.{}", index));
      const Value one = m_.builder.node(
          "slice", path, {x}, {{"axis", int64_t{0}}, {"start", index}, {"size", int64_t{1}}});
      return m_.builder.node("reshape", path + ".flat", {one},
                             {{"shape", std::vector<int64_t>{width_}}});
    };
    Value logits;
    if (m_.architecture == "DeiTForImageClassificationWithTeacher") {
      const Value a = m_.linear("cls_classifier", row(0), classes_, true),
                  b = m_.linear("distillation_classifier", row(1), classes_, true);
      m_.builder.tensor("mean.scale", {1}, std::vector<float>{0.5f});
      logits =
          m_.builder.node("scale", "mean", {m_.add("sum", a, b)}, {}, {{"scale", "mean.scale"}});
    } else {
      logits = m_.linear("classifier", row(0), classes_, true);
    }
    m_.builder.output(logits);
  }

  Model& m_;
  bool deit_ = false, bias_ = true;
  int64_t width_ = 0, inner_ = 0, heads_ = 0, layers_ = 0, channels_ = 0, image_ = 0, patch_ = 0,
          classes_ = 0;
  double eps_ = 0;
};

}  // namespace

void build_vision(Model& model) { VisionTransformer(model).build(); }

}  // namespace sluice::bundle::hf
