// BERT and RoBERTa: every token sees every other, layer norm after each addition, learned
// positions.
#include "sluice/base/error.h"
#include "sluice/bundle/import/family.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

class Encoder {
 public:
  explicit Encoder(Model& model) : m_(model) {}

  void build() {
    const Config& config = m_.config;
    const bool roberta = m_.architecture.find("Roberta") != std::string::npos ||
                         m_.architecture.find("Camembert") != std::string::npos;
    width_ = config.integer("hidden_size");
    inner_ = config.integer("intermediate_size");
    heads_ = config.integer("num_attention_heads", 1, 65536);
    eps_ = config.number_or("layer_norm_eps", 1e-12, {0, 1});
    const int64_t layers = config.integer("num_hidden_layers", 1, 65536),
                  vocabulary = config.integer("vocab_size"),
                  positions = config.integer("max_position_embeddings"),
                  types = config.integer_or("type_vocab_size", 2, 0);
    if (width_ % heads_ != 0)
      fail(Code::config, "{}: {} does not divide the hidden_size {}",
           config.field("num_attention_heads"), heads_, width_);
    const std::string kind = config.text_or("position_embedding_type", "absolute");
    if (kind != "absolute")
      fail(Code::unsupported, "{}: expected absolute, found '{}'",
           config.field("position_embedding_type"), printable(kind, 60));
    if (config.flag_or("is_decoder", false))
      fail(Code::unsupported, "{}: expected false: encoders only", config.field("is_decoder"));
    // RoBERTa counts from behind the padding's id.
    const int64_t first = roberta ? config.integer_or("pad_token_id", 1, 0) + 1 : 0;
    if (positions <= first)
      fail(Code::config, "{}: expected more than {}, found {}",
           config.field("max_position_embeddings"), first, positions);
    if (!m_.pooling)
      fail(Code::usage,
           "{}: an encoder without modules.json; say with --pooling (mean, first, last) what its "
           "vector is",
           config.what());
    m_.result.layers = layers;
    m_.result.width = width_;
    m_.result.vocabulary = vocabulary;
    const auto lengths = m_.lengths(positions - first);
    find_prefix();

    Builder& b = m_.builder;
    const Value tokens = b.input("tokens", {lengths.block});
    const std::string words =
        m_.weights.matrix(b, "embeddings.word_embeddings.weight", {vocabulary, width_});
    const std::string table = "embeddings.position_embeddings.weight";
    std::vector<float> rows = m_.weights.values(table, {positions, width_});
    rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(first * width_));
    if (types > 0) {
      // All tokens are of type 0, whose vector every position can carry.
      const auto type =
          m_.weights.values("embeddings.token_type_embeddings.weight", {types, width_});
      for (size_t i = 0; i < rows.size(); ++i) rows[i] += type[i % static_cast<size_t>(width_)];
    }
    b.tensor(table, {positions - first, width_}, rows);
    const Value at = b.node("positions", "positions", {tokens});
    const Value sum = m_.add(
        "embeddings.add",
        b.node("embedding", "embeddings.word_embeddings", {tokens}, {}, {{"weight", words}}),
        b.node("embedding", "embeddings.position_embeddings", {at}, {}, {{"weight", table}}));
    Value x = m_.norm("layer_norm", "embeddings.LayerNorm", sum, eps_);
    for (int64_t i = 0; i < layers; ++i) x = layer(fmt::format("encoder.layer.{}", i), x);
    m_.ignorable = {"*pooler.dense.weight", "*pooler.dense.bias", "*embeddings.position_ids"};
    for (const std::string& name : m_.weights.unused())
      if (name.starts_with("cls.") || name.starts_with("lm_head.")) m_.ignorable.push_back(name);
    m_.finish_embedding(x);
  }

 private:
  void find_prefix() {
    for (const char* prefix : {"", "bert.", "roberta.", "model."}) {
      m_.weights.set_prefix("", prefix);
      if (m_.weights.has("embeddings.word_embeddings.weight")) return;
    }
    m_.weights.set_prefix("", "");
  }

  Value layer(const std::string& path, const Value& x) {
    const std::string self = path + ".attention.self", out = path + ".attention.output";
    const Value q = m_.linear(self + ".query", x, width_, true),
                k = m_.linear(self + ".key", x, width_, true),
                v = m_.linear(self + ".value", x, width_, true);
    const Value mixed = m_.builder.node("attention", self, {q, k, v},
                                        {{"heads", heads_}, {"mask", std::string("full")}});
    const Value y =
        m_.norm("layer_norm", out + ".LayerNorm",
                m_.add(out + ".add", m_.linear(out + ".dense", mixed, width_, true), x), eps_);
    const Value inner = m_.activation(path + ".intermediate.act",
                                      m_.linear(path + ".intermediate.dense", y, inner_, true),
                                      "hidden_act", "gelu");
    const std::string end = path + ".output";
    return m_.norm("layer_norm", end + ".LayerNorm",
                   m_.add(end + ".add", m_.linear(end + ".dense", inner, width_, true), y), eps_);
  }

  Model& m_;
  int64_t width_ = 0, inner_ = 0, heads_ = 0;
  double eps_ = 0;
};

}  // namespace

void build_encoder(Model& model) { Encoder(model).build(); }

}  // namespace sluice::bundle::hf
