#include "sluice/engine/text/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "sluice/base/test_error.h"
#include "sluice/engine/kernel/reference.h"
#include "sluice/engine/text/test_models.h"

namespace sluice::engine {
namespace perplexity_test {

using testing::kDecoderWords;
using testing::Model;
using testing::NetworkBuilder;

std::vector<int32_t> random_ids(int64_t count) {
  NetworkBuilder random(3);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(random.pick(0, kDecoderWords - 1)));
  return ids;
}

/// -ln p(token `at`) after `from`, by the reference implementation.
double nats_of(const bundle::Bundle& bundle, std::vector<int32_t> context, int32_t token) {
  const size_t rows = static_cast<size_t>(bundle.graph().inputs[0].shape[0]);
  std::vector<float> ids(context.begin(), context.end());
  ids.resize(rows, 0.0f);
  const auto logits = reference_run(bundle, ids, 1);
  const float* row = logits.data() + (context.size() - 1) * size_t(kDecoderWords);
  double sum = 0;
  for (int64_t i = 0; i < kDecoderWords; ++i) sum += std::exp(double(row[i]));
  return std::log(sum) - row[token];
}

TEST(Perplexity, SlidesAWindowOverTheText) {
  const Model model = testing::random_decoder({.tokens = 4, .layers = 1}),
              whole = testing::random_decoder({.tokens = 12, .layers = 1});
  const Network network(model.bundle);
  const auto ids = random_ids(23);
  struct Case {
    int64_t window, stride;
    std::vector<int32_t> before;
  };
  for (const Case& c : {Case{8, 4, {}}, Case{8, 8, {}}, Case{9, 1, {}}, Case{12, 7, {}},
                        Case{8, 4, {5}}, Case{6, 6, {5, 7}}, Case{12, 12, {5}}}) {
    const int64_t before = std::ssize(c.before), payload = c.window - before,
                  stride = std::min(c.stride, before > 0 ? payload : payload - 1);
    double expected = 0;
    int64_t count = 0;
    for (int64_t target = before > 0 ? 0 : 1; target < 23; ++target) {
      // The first window that holds the target.
      const int64_t over = target + 1 - payload;
      const int64_t first = over <= 0 ? 0 : (over + stride - 1) / stride * stride;
      std::vector<int32_t> context = c.before;
      context.insert(context.end(), ids.begin() + first, ids.begin() + target);
      expected += nats_of(whole.bundle, context, ids[size_t(target)]);
      ++count;
    }
    const Perplexity found =
        perplexity(network, ids, c.before, {.window = c.window, .stride = c.stride, .threads = 1});
    EXPECT_EQ(found.tokens, count);
    EXPECT_NEAR(found.nats, expected, 1e-4 * expected) << c.window << " " << c.stride;
    EXPECT_DOUBLE_EQ(found.per_token(), std::exp(found.nats / double(count)));
    EXPECT_GT(found.macs, 0);
  }
}

TEST(Perplexity, LikelyTextHasALowOneAndUnlikelyAHigh) {
  const Model model = testing::chain(4, {1, 2, 3, 0});
  const Network network(model.bundle);
  const std::vector<int32_t> likely{0, 1, 2, 3, 0, 1, 2}, unlikely{0, 3, 2, 1, 0, 3, 2};
  EXPECT_LT(perplexity(network, likely, {}).per_token(), 1.01);
  EXPECT_GT(perplexity(network, unlikely, {}).per_token(), 100);
}

TEST(Perplexity, RefusesImpossibleWindowsAndTexts) {
  const Model model = testing::random_decoder({.tokens = 4, .context = 16});
  const Network network(model.bundle);
  const auto ids = random_ids(20);
  const auto refuse = [&](const PerplexityOptions& options, Code code, const char* words) {
    expect_error(code, words, [&] { perplexity(network, ids, {}, options); });
  };
  refuse({.window = 17}, Code::limit, "window 17: the context");
  refuse({.window = 1}, Code::usage, "window 1");
  refuse({.window = -4}, Code::usage, "window -4");
  refuse({.window = 8, .stride = 9}, Code::usage, "stride 9");
  refuse({.window = 8, .stride = -1}, Code::usage, "stride -1");
  EXPECT_ERROR(perplexity(network, std::vector<int32_t>{3}, {}), Code::usage, "1 tokens");
  EXPECT_ERROR(perplexity(network, std::vector<int32_t>{3, 50}, {}), Code::shape, "token 50");
  EXPECT_ERROR(perplexity(network, ids, std::vector<int32_t>{1, 1}, {.window = 3}), Code::usage,
               "2 tokens before a text alone");
}

}  // namespace perplexity_test
}  // namespace sluice::engine
