// A vector per text: encoders that pool, and classifiers of texts, whose vector are their logits.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/engine/graph/network.h"
#include "sluice/text/tokenizer.h"

namespace sluice::engine {

struct EmbedOptions {
  int64_t batch = 8;  ///< texts at once; texts of like length go together
  int threads = 0;    ///< 0: all cores of the process
  const Budget* budget = nullptr;
  int64_t size = -1;                             ///< as RunOptions::size
  std::function<void(int64_t done)> progress{};  ///< texts
};

struct Embedding {
  std::vector<float> values;
  int64_t tokens = 0;  ///< of the text
  bool cut = false;    ///< it had more than the network takes: its end is lost
};

struct EmbeddedTexts {
  std::vector<Embedding> texts;  ///< in the order given
  int64_t tokens = 0;            ///< computed
  int64_t macs = 0;              ///< metered
  double seconds = 0;            ///< tokenizing included
};

/// Ids of a text as embed_texts() runs them, cut to what the network takes. Throws as it does.
std::vector<int32_t> text_ids(const Network& network, const std::string& text);

/// Throws Error{unsupported} when the network does not give one vector per text, as tokenizer_of,
/// Error{usage} naming a text without tokens, Error{format} for one that is not UTF-8,
/// Error{numeric} for a vector that is not finite.
EmbeddedTexts embed_texts(const Network& network, std::span<const std::string> texts,
                          const EmbedOptions& options = {});

}  // namespace sluice::engine
