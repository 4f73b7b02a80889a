#include "sluice/engine/text/embedder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/engine/text/text_model.h"

namespace sluice::engine {
namespace {

struct Tokens {
  std::vector<int32_t> ids;
  int64_t count = 0;  ///< before it was cut
};

/// A text that is too long loses its end, but not its closing token.
Tokens tokens_of(const text::Tokenizer& tokenizer, std::string_view text, size_t limit) {
  Tokens result{tokenizer.encode(text), 0};
  result.count = std::ssize(result.ids);
  if (result.ids.size() > limit) {
    const int32_t last = result.ids.back();
    result.ids.resize(limit);
    if (tokenizer.is_special(last)) result.ids.back() = last;
  }
  return result;
}

}  // namespace

std::vector<int32_t> text_ids(const Network& network, const std::string& text) {
  require_utf8(text, "text");
  Tokens tokens =
      tokens_of(tokenizer_of(network), text, static_cast<size_t>(network.input_shape()[0]));
  if (tokens.ids.empty()) fail(Code::usage, "text has no tokens; give some words");
  return std::move(tokens.ids);
}

EmbeddedTexts embed_texts(const Network& network, std::span<const std::string> texts,
                          const EmbedOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const std::string& path = network.bundle().path();
  if (network.input_shape().size() != 1 || network.output_shape().size() != 1)
    fail(Code::unsupported, "{}: expected ids [T] in and a vector out, found {} and {}", path,
         to_string(network.input_shape()), to_string(network.output_shape()));
  if (options.batch < 1) fail(Code::usage, "embed: batch {}; expected 1 or more", options.batch);
  const text::Tokenizer tokenizer = tokenizer_of(network);
  const size_t limit = static_cast<size_t>(network.input_shape()[0]),
               width = static_cast<size_t>(network.output_shape()[0]);
  EmbeddedTexts result;
  if (texts.empty()) return result;
  result.texts.resize(texts.size());
  std::vector<Tokens> tokens;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string what = fmt::format("text {}", i + 1);
    require_utf8(texts[i], what);
    tokens.push_back(tokens_of(tokenizer, texts[i], limit));
    if (tokens.back().ids.empty()) fail(Code::usage, "{} has no tokens; give some words", what);
    result.texts[i].tokens = tokens.back().count;
    result.texts[i].cut = tokens.back().count > static_cast<int64_t>(limit);
  }
  std::vector<size_t> order(texts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return tokens[a].ids.size() > tokens[b].ids.size(); });
  const size_t batch = std::min(texts.size(), static_cast<size_t>(options.batch));
  Session session(
      network,
      {.batch = static_cast<int64_t>(batch), .threads = options.threads, .sequences = true});
  Meter meter;
  std::vector<float> input, output(batch * width);
  std::vector<int64_t> rows;
  for (size_t first = 0; first < order.size(); first += batch) {
    const size_t count = std::min(batch, order.size() - first);
    input.clear();
    rows.clear();
    for (size_t s = 0; s < count; ++s) {
      const auto& ids = tokens[order[first + s]].ids;
      input.insert(input.end(), ids.begin(), ids.end());
      rows.push_back(std::ssize(ids));
      result.tokens += rows.back();
    }
    session.reset();
    session.run_tokens(input, output, rows,
                       {.meter = &meter, .budget = options.budget, .size = options.size});
    for (size_t s = 0; s < count; ++s) {
      const std::span<const float> vector = std::span(output).subspan(s * width, width);
      if (!std::ranges::all_of(vector, [](float v) { return std::isfinite(v); }))
        fail(Code::numeric, "{}: the vector of text {} is not finite", path, order[first + s] + 1);
      result.texts[order[first + s]].values.assign(vector.begin(), vector.end());
    }
    if (options.progress) options.progress(static_cast<int64_t>(first + count));
  }
  result.macs = meter.macs();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace sluice::engine
