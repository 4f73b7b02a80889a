// Small decoders and tokenizers for tests.
#pragma once
#include <string>
#include <vector>

#include "sluice/engine/graph/test_networks.h"
#include "sluice/text/tokenizer.h"

namespace sluice::engine::testing {

inline constexpr int64_t kDecoderWords = 50, kDecoderWidth = 16;

struct DecoderSize {
  int64_t tokens = 8, context = 64, layers = 2, words = kDecoderWords, width = kDecoderWidth;
  /// Layers that each size runs, the norm and the head behind them; empty: one size of all.
  std::vector<int64_t> depths = {};
};

/// Random weights that do not depend on `tokens` and `context`; context 0: no cache.
inline Model random_decoder(const DecoderSize& s, uint64_t seed = 5) {
  NetworkBuilder net(seed);
  const bundle::Value ids = net.input({s.tokens});
  net.tensor("words", {s.words, s.width}, net.normal(size_t(s.words * s.width), 1.0));
  bundle::Value x = net.builder().node("embedding", "words", {ids}, {}, {{"weight", "words"}});
  std::vector<bundle::Value> behind = {x};
  for (int64_t l = 0; l < s.layers; ++l) {
    const std::string layer = "l" + std::to_string(l);
    const bundle::Value h = net.node("rms_norm", layer + ".norm1", {x});
    const auto turned = [&](const std::string& name) {
      return net.node("rope", layer + name + ".rope", {net.linear(layer + name, h, s.width, false)},
                      {{"heads", int64_t{2}}});
    };
    bundle::Attributes attention{{"heads", int64_t{2}}};
    if (s.context > 0) attention["cache"] = s.context;
    const bundle::Value y =
        net.node("attention", layer + ".attention",
                 {turned(".q"), turned(".k"), net.linear(layer + ".v", h, s.width)}, attention);
    x = net.node("add", layer + ".add1", {x, net.linear(layer + ".o", y, s.width)});
    const bundle::Value z = net.node("rms_norm", layer + ".norm2", {x});
    const bundle::Value inner =
        net.activation(layer + ".silu", net.linear(layer + ".up", z, 2 * s.width), "silu");
    x = net.node("add", layer + ".add2", {x, net.linear(layer + ".down", inner, s.width)});
    behind.push_back(x);
  }
  if (!s.depths.empty())
    x = net.builder().node("size_switch", "depth", behind, {{"choice", s.depths}});
  x = net.node("rms_norm", "norm", {x});
  return net.finish(net.linear("head", x, s.words, false));
}

/// A decoder in which token i is followed by next[i], whatever came before.
inline Model chain(int64_t words, const std::vector<int32_t>& next, int64_t tokens = 4,
                   int64_t context = 64) {
  NetworkBuilder net(1);
  const bundle::Value ids = net.input({tokens});
  const size_t n = static_cast<size_t>(words);
  std::vector<float> one(n * n, 0.0f), follows(n * n, 0.0f);
  for (size_t i = 0; i < n; ++i) {
    one[i * n + i] = 1;
    follows[static_cast<size_t>(next[i]) * n + i] = 8;
  }
  net.tensor("words", {words, words}, one);
  net.tensor("follows", {words, words}, follows);
  const bundle::Value x =
      net.builder().node("embedding", "words", {ids}, {}, {{"weight", "words"}});
  const bundle::Value y =
      net.node("attention", "attention", {x, x, x}, {{"heads", int64_t{1}}, {"cache", context}});
  // Its share is small beside the token's own.
  net.tensor("little", {1}, {1e-3f});
  const bundle::Value small = net.builder().node("linear", "mix", {y}, {}, {{"weight", "words"}});
  const bundle::Value sum = net.node(
      "add", "sum", {net.builder().node("scale", "less", {small}, {}, {{"scale", "little"}}), x});
  return net.finish(net.builder().node("linear", "head", {sum}, {}, {{"weight", "follows"}}));
}

/// A byte-level tokenizer of these words (each as such a vocabulary writes it), without merges.
inline text::Tokenizer byte_level(const std::vector<std::string>& words) {
  text::GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "gpt-2";
  vocabulary.tokens = words;
  return text::Tokenizer::from_gguf(vocabulary, "words");
}

}  // namespace sluice::engine::testing
