#if SLUICE_HAS_ENGINE
#include "cli/run_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/text/tokenizer.h"

namespace sluice::cli {
namespace {

constexpr size_t kTextsAtOnce = 8;

struct Text {
  std::vector<float> ids;
  size_t tokens;  ///< before it was cut
};

/// Ids for a network of `limit` tokens; a longer text loses its end, but not its closing token.
Text tokenize(const text::Tokenizer& tokenizer, const std::string& words, size_t limit) {
  std::vector<int32_t> ids = tokenizer.encode(words);
  Text result{{}, ids.size()};
  if (ids.size() > limit) {
    const int32_t last = ids.back();
    ids.resize(limit);
    if (tokenizer.is_special(last)) ids.back() = last;
  }
  result.ids.assign(ids.begin(), ids.end());
  return result;
}

}  // namespace

int embed_texts(const engine::Network& network, const std::vector<std::string>& texts,
                const Budget& budget, const Globals& globals) {
  const bundle::Bundle& model = network.bundle();
  if (model.task().kind != "embed")
    fail(Code::unsupported, "{}: expected a model that embeds text, found one of kind '{}'",
         model.path(), model.task().kind);
  if (model.tokenizer_json().empty())
    fail(Code::missing, "{}: no tokenizer; import it again from a folder with tokenizer.json",
         model.path());
  if (network.input_shape().size() != 1 || network.output_shape().size() != 1)
    fail(Code::shape, "{}: expected ids [T] in and a vector out, found {} and {}", model.path(),
         to_string(network.input_shape()), to_string(network.output_shape()));
  const auto tokenizer =
      text::Tokenizer::parse(model.tokenizer_json(), model.path() + ": tokenizer");
  const size_t limit = static_cast<size_t>(network.input_shape()[0]),
               width = static_cast<size_t>(network.output_shape()[0]);
  const size_t batch = std::min(texts.size(), kTextsAtOnce);
  engine::Session session(
      network,
      {.batch = static_cast<int64_t>(batch), .threads = globals.threads, .sequences = true});
  std::vector<float> output(batch * width);
  Json results = Json::array();
  std::string lines;
  for (size_t first = 0; first < texts.size(); first += batch) {
    std::vector<float> ids;
    std::vector<int64_t> tokens(batch, 0);
    std::vector<Text> parts;
    for (size_t s = 0; s < batch && first + s < texts.size(); ++s) {
      parts.push_back(tokenize(tokenizer, texts[first + s], limit));
      const Text& part = parts.back();
      if (part.ids.empty())
        fail(Code::usage, "--text '{}': no tokens; give some words", texts[first + s]);
      if (part.tokens > limit)
        log_line(fmt::format("text {}: {} tokens, cut to the {} that the model takes",
                             first + s + 1, part.tokens, limit));
      ids.insert(ids.end(), part.ids.begin(), part.ids.end());
      tokens[s] = static_cast<int64_t>(part.ids.size());
    }
    session.reset();
    session.run_tokens(ids, output, tokens, {.budget = &budget});
    for (size_t s = 0; s < parts.size(); ++s) {
      const std::vector<float> vector(
          output.begin() + static_cast<std::ptrdiff_t>(s * width),
          output.begin() + static_cast<std::ptrdiff_t>((s + 1) * width));
      for (size_t i = 0; i < width; ++i) {
        if (!std::isfinite(vector[i]))
          fail(Code::numeric, "{}: the vector of text {} is not finite", model.path(),
               first + s + 1);
        if (!globals.json) lines += fmt::format("{}{:.6g}", i ? " " : "", vector[i]);
      }
      if (!globals.json) lines += "\n";
      results.push_back({{"text", texts[first + s]},
                         {"tokens", parts[s].tokens},
                         {"cut", parts[s].tokens > limit},
                         {"vector", vector}});
    }
  }
  if (globals.json) {
    print_json({{"model", model.path()}, {"results", results}});
  } else {
    print(lines);
  }
  return kSuccess;
}

}  // namespace sluice::cli
#endif
