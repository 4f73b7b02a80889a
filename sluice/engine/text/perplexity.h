// How well a decoder predicts a text.
//
// Every token is scored once, by -ln of its probability given the tokens before it in a sliding
// window: windows of `window` tokens begin every `stride` tokens, and each scores those that no
// earlier one did. So all but the first window's tokens have at least window - stride tokens before
// them. Every window begins with what the tokenizer puts before a text (<s>), which is not scored;
// where that is nothing, the text's first token is not scored, having nothing before it.
//
//   perplexity     exp(nats / tokens); depends on how the tokenizer cuts the text
//   bits per byte  nats / ln 2 / bytes of the text that the scored tokens stand for; comparable
//                  between tokenizers (Gao et al. 2020, The Pile, section 3.1)
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "sluice/engine/graph/network.h"

namespace sluice::engine {

struct PerplexityOptions {
  int64_t window = 0;      ///< tokens; 0: 1024, or the context where that is less
  int64_t stride = 0;      ///< 1 to window (that less what every window begins with, at least one
                           ///< token); 0: half the window
  int64_t max_tokens = 0;  ///< only so many tokens of the text; 0: all
  int threads = 0;         ///< 0: all cores of the process
  const Budget* budget = nullptr;
  int64_t size = -1;                                            ///< as RunOptions::size
  std::function<void(int64_t done, int64_t total)> progress{};  ///< tokens scored
};

struct Perplexity {
  double nats = 0;                 ///< summed over the scored tokens
  int64_t tokens = 0, bytes = 0;   ///< scored
  int64_t computed = 0, macs = 0;  ///< rows that the network computed, and what they took
  int64_t window = 0, stride = 0;
  double seconds = 0;

  double per_token() const;      ///< perplexity; infinite beyond what a double holds
  double per_byte() const;       ///< exp(nats / bytes)
  double bits_per_byte() const;  ///< 0 without bytes
  double macs_per_token() const { return computed > 0 ? double(macs) / double(computed) : 0; }
};

/// Of ids, with `before` in front of every window; bytes stay 0. Throws Error{unsupported} when the
/// network is no decoder, Error{usage} for impossible options and less than two tokens,
/// Error{shape} for ids outside the vocabulary, Error{limit} for a window beyond the context,
/// Error{numeric} for logits that are not numbers.
Perplexity perplexity(const Network& network, std::span<const int32_t> ids,
                      std::span<const int32_t> before, const PerplexityOptions& options = {});
/// Of a text, with the tokenizer of the file. Throws also as tokenizer_of, and Error{format} for
/// text that is not UTF-8.
Perplexity perplexity(const Network& network, std::string_view text,
                      const PerplexityOptions& options = {});

}  // namespace sluice::engine
