// Text from a decoder: prompts in blocks, then a token at a time, several sequences at once.
//
//   Generator generator(network, &tokenizer, {.batch = 4});
//   const auto results = generator.run(requests, [](const GeneratedPiece& piece) {
//     std::fputs(std::string(piece.text).c_str(), stdout);
//     return true;
//   });
//
// Each request holds one of `batch` places; a place that becomes free takes the next request, whose
// prompt is computed beside the others' next tokens. Logits are computed for rows that a token is
// chosen from, and no others.
//
// With a draft network a run checks several proposed tokens of each sequence at once, see
// speculative.h: fewer runs of the large network, the same text when greedy, the same distribution
// when sampling. A draft that is a size of the network itself works in its caches.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/engine/graph/network.h"
#include "sluice/engine/text/sampler.h"
#include "sluice/text/tokenizer.h"

namespace sluice::engine {

struct GenerationRequest {
  std::vector<int32_t> prompt;  ///< at least one id
  int64_t max_tokens = 128;
  Sampling sampling{};
  std::vector<int32_t> stop_tokens{};  ///< beside those of the network's task
  std::vector<std::string> stop{};     ///< texts that end it, wherever tokens cut them
};

enum class Finish : uint8_t { stop_token, stop_string, max_tokens, context, cancelled };
/// "stop-token", "stop-string", ...
std::string_view finish_name(Finish finish);

struct GeneratedPiece {
  size_t request = 0;     ///< index into the requests
  std::string_view text;  ///< whole characters, before any stop string; may be empty
  int32_t token = -1;     ///< -1: text that was held back, after the last token
};
/// Called on the thread of run(), token by token. Returning false ends that request.
using OnPiece = std::function<bool(const GeneratedPiece&)>;

struct Generated {
  std::vector<int32_t> tokens;  ///< without the prompt and the stop token
  std::string text;             ///< without the stop string; empty without a tokenizer
  Finish finish = Finish::max_tokens;
  int64_t prompt_tokens = 0;
};

/// Of all requests of a run. The first token of a request is chosen from its prompt's last row, so
/// decoded_tokens is less than the tokens generated. A run of the network that computes rows of
/// both kinds is split by their number; prompts of a size of their own run by themselves.
struct GenerationStatistics {
  int64_t prompt_tokens = 0, decoded_tokens = 0;  ///< rows computed, refused proposals left out
  double prompt_seconds = 0, decode_seconds = 0;  ///< choosing tokens and decoding text included
  int64_t macs = 0, bytes = 0;                    ///< metered, those of the draft included
  int64_t decode_macs = 0;                        ///< of the network, behind prompts
  int64_t proposed = 0, accepted = 0;             ///< tokens of the draft
  double prompt_rate() const {
    return prompt_seconds > 0 ? double(prompt_tokens) / prompt_seconds : 0;
  }
  double decode_rate() const {
    return decode_seconds > 0 ? double(decoded_tokens) / decode_seconds : 0;
  }
};

class Generator {
 public:
  struct Options {
    int64_t batch = 1;  ///< sequences at once; each has a cache for the whole context
    int threads = 0;    ///< 0: all cores of the process
    Budget budget{};
    int64_t size = -1;  ///< of a nested network, see RunOptions::size
    /// Of the rows of prompts; without it as `size`. Exits that cost a head each pay off a token at
    /// a time, where a prompt computes no head but for its last row.
    std::optional<int64_t> prompt_size{};
    const Network* draft = nullptr;  ///< may be the network itself, with a smaller draft_size
    int64_t draft_size = -1;
    int64_t draft_tokens = 4;  ///< most proposed at a time, 1 to 64
    /// As many as pay by the share that was accepted so far (DraftLength), 0 included; else always
    /// draft_tokens.
    bool adapt = true;
  };
  /// `tokenizer` may be null: then there is no text and there are no stop strings. Throws
  /// Error{unsupported} when the network does not give logits per token or does not continue
  /// sequences, or with a draft when one of the two cannot go back behind refused tokens;
  /// Error{shape} when the draft has another vocabulary.
  Generator(const Network& network, const text::Tokenizer* tokenizer, const Options& options);
  ~Generator();
  Generator(Generator&&) noexcept;
  Generator& operator=(Generator&&) noexcept;

  /// Results in the order of the requests. All requests are checked before anything is computed:
  /// Error{usage} for an empty prompt, an empty stop string or sampling that makes no sense,
  /// Error{shape} for ids outside the vocabulary, Error{limit} for a prompt longer than context().
  /// Error{numeric} for logits to which no sampling applies.
  std::vector<Generated> run(std::span<const GenerationRequest> requests,
                             const OnPiece& on_piece = {});
  const GenerationStatistics& statistics() const;  ///< of the last run

  int64_t context() const;  ///< most tokens of a sequence; the largest int64_t: no limit
  int64_t block() const;    ///< most tokens of a prompt that are computed at once
  const Session& session() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::engine
