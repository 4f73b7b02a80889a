#include "sluice/engine/text/perplexity.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/engine/graph/evaluate.h"
#include "sluice/engine/text/text_model.h"

namespace sluice::engine {
namespace {

constexpr int64_t kUsualWindow = 1024;
constexpr int64_t kParallelLogits = 1 << 17;  // fewer are not worth waking threads

struct Text {
  std::vector<int32_t> before;  ///< what every window begins with
  std::vector<int32_t> ids;
  std::vector<size_t> begin;  ///< byte where each begins
  size_t bytes = 0;           ///< of all
};

Text tokenize(const text::Tokenizer& tokenizer, std::string_view text, int64_t max_tokens) {
  text::EncodeOptions options;
  options.offsets = true;
  const text::Encoding encoding = tokenizer.encode(text, options);
  Text result;
  result.bytes = text.size();
  bool begun = false;
  for (size_t i = 0; i < encoding.size(); ++i) {
    if (encoding.special[i]) {
      if (!begun) result.before.push_back(encoding.ids[i]);
      continue;
    }
    begun = true;
    if (max_tokens > 0 && std::ssize(result.ids) == max_tokens) {
      result.bytes = encoding.offsets[i].begin;
      break;
    }
    result.ids.push_back(encoding.ids[i]);
    result.begin.push_back(encoding.offsets[i].begin);
  }
  return result;
}

}  // namespace

double Perplexity::per_token() const {
  return tokens > 0 ? std::exp(nats / static_cast<double>(tokens)) : 1;
}
double Perplexity::per_byte() const {
  return bytes > 0 ? std::exp(nats / static_cast<double>(bytes)) : 1;
}
double Perplexity::bits_per_byte() const {
  return bytes > 0 ? nats / std::log(2.0) / static_cast<double>(bytes) : 0;
}

Perplexity perplexity(const Network& network, std::span<const int32_t> ids,
                      std::span<const int32_t> prefix, const PerplexityOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const std::string& path = network.bundle().path();
  const Shape &in = network.input_shape(), &out = network.output_shape();
  if (in.size() != 1 || out.size() != 2 || out[0] != in[0])
    fail(Code::unsupported,
         "{}: expected a decoder, ids [T] in and logits [T,V] out, found {} and {}", path,
         to_string(in), to_string(out));
  const int64_t count = std::ssize(ids), before = std::ssize(prefix);
  const int64_t block = in[0], width = out[1];
  Session session(network, {.batch = 1, .threads = options.threads, .sequences = true});
  // Without a cache a window is one run.
  const int64_t context = session.state_bytes() > 0 ? session.capacity() : block;
  Perplexity result;
  result.window = options.window != 0 ? options.window : std::min(context, kUsualWindow);
  result.stride = options.stride != 0 ? options.stride : std::max<int64_t>(1, result.window / 2);
  if (result.window < 2) fail(Code::usage, "window {}: expected 2 tokens or more", result.window);
  if (result.window > context)
    fail(Code::limit, "window {}: the context of {} is {} tokens", result.window, path, context);
  if (result.stride < 1 || result.stride > result.window)
    fail(Code::usage, "stride {}: expected 1 to {}, the window", result.stride, result.window);
  if (before + 1 >= result.window)
    fail(Code::usage, "window {}: the tokenizer puts {} tokens before a text alone", result.window,
         before);
  if (count + std::min<int64_t>(before, 1) < 2)
    fail(Code::usage, "a text of {} tokens; at least 2 are needed", count);
  const int64_t vocabulary = std::min(width, vocabulary_of(network));
  for (const int32_t id : ids)
    if (id < 0 || id >= vocabulary)
      fail(Code::shape, "{}: token {}; the network takes 0 to {}", path, id, vocabulary - 1);

  Meter meter;
  std::vector<float> row_ids, logits(static_cast<size_t>(block * width));
  std::vector<double> nats(static_cast<size_t>(block));
  const int64_t payload = result.window - before;
  // With nothing before a window, its first token is the one before the first that it scores.
  const int64_t stride = std::min(result.stride, before > 0 ? payload : payload - 1);
  int64_t scored = before > 0 ? 0 : 1;  // tokens before this one are done
  for (int64_t first = 0; scored < count; first += stride) {
    const int64_t last = std::min(count, first + payload);
    // Row r of the window predicts what is at r + 1; the last token's own row predicts nothing.
    row_ids.assign(prefix.begin(), prefix.end());
    row_ids.insert(row_ids.end(), ids.begin() + first, ids.begin() + last - 1);
    const int64_t rows = std::ssize(row_ids), wanted_from = before + scored - first - 1;
    session.reset();
    for (int64_t from = 0; from < rows; from += block) {
      const int64_t to = std::min(rows, from + block);
      const int64_t now = to - from, wanted = std::clamp<int64_t>(to - wanted_from, 0, now);
      session.run_tokens(
          std::span(row_ids).subspan(size_t(from), size_t(now)), logits, {&now, 1},
          {.meter = &meter, .budget = options.budget, .size = options.size, .last = {&wanted, 1}});
      result.computed += now;
      const bool parallel = wanted * width >= kParallelLogits;
#pragma omp parallel for num_threads(session.threads()) if (parallel)
      for (int64_t i = 0; i < wanted; ++i) {
        const int64_t target = first + to - wanted + i + 1 - before;
        nats[size_t(i)] =
            cross_entropy({logits.data() + i * width, size_t(width)}, ids[size_t(target)]);
      }
      for (int64_t i = 0; i < wanted; ++i) result.nats += nats[size_t(i)];
      if (!std::isfinite(result.nats))
        fail(Code::numeric, "{}: the logits before token {} are not all numbers", path,
             first + to - before);
      result.tokens += wanted;
    }
    scored = last;
    if (options.progress) options.progress(scored, count);
  }
  result.macs = meter.macs();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

Perplexity perplexity(const Network& network, std::string_view text,
                      const PerplexityOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const text::Tokenizer tokenizer = tokenizer_of(network);
  require_utf8(text, "the text");
  if (options.max_tokens < 0)
    fail(Code::usage, "at most {} tokens: expected 0 (all) or more", options.max_tokens);
  const Text tokens = tokenize(tokenizer, text, options.max_tokens);
  Perplexity result = perplexity(network, tokens.ids, tokens.before, options);
  result.bytes = static_cast<int64_t>(tokens.bytes - (tokens.before.empty() ? tokens.begin[1] : 0));
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace sluice::engine
