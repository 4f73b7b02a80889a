#include "sluice/engine/text/retrieval.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "sluice/base/test_error.h"

namespace sluice::engine {
namespace retrieval_test {

TEST(Retrieval, ScoresByTheDefinitions) {
  // Query 0: relevant are 3 (grade 2) and 5 (grade 1); query 1: 0; query 2: nothing.
  std::vector<std::vector<int64_t>> rankings{{1, 3, 2, 4, 5}, {7, 0}, {1}};
  rankings.push_back({});
  for (int64_t i = 9; i >= 0; --i) rankings[3].push_back(i), rankings[3].push_back(10 + i);
  const std::vector<Relevance> judgements{{0, 3, 2}, {0, 5, 1}, {0, 1, 0}, {1, 0, 1}, {3, 0, 1}};
  const RetrievalScores s = score_rankings(rankings, 30, judgements);
  EXPECT_EQ(s.queries, 3);
  EXPECT_EQ(s.documents, 30);
  EXPECT_DOUBLE_EQ(s.recall_at_1, 0);
  EXPECT_DOUBLE_EQ(s.recall_at_10, (1.0 + 1 + 0) / 3);
  EXPECT_DOUBLE_EQ(s.recall_at_100, 1);
  EXPECT_DOUBLE_EQ(s.mrr_at_10, (0.5 + 0.5 + 0) / 3);
  const double first = (2 / std::log2(3.0) + 1 / std::log2(6.0)) / (2 + 1 / std::log2(3.0));
  EXPECT_NEAR(s.ndcg_at_10, (first + 1 / std::log2(3.0) + 0) / 3, 1e-12);
}

TEST(Retrieval, RanksByCosineWithTheFirstOfEquals) {
  const std::vector<float> queries{1, 0, 0, 2}, documents{5, 5, 100, 0, 0, 0, 1, 0, 0, 1};
  const std::vector<Relevance> hit{{0, 1, 1}, {1, 4, 1}};
  const RetrievalScores s = score_retrieval(queries, documents, 2, hit);
  EXPECT_DOUBLE_EQ(s.recall_at_1, 1);
  const std::vector<Relevance> second{{0, 3, 1}};
  EXPECT_DOUBLE_EQ(score_retrieval(queries, documents, 2, second).mrr_at_10, 0.5);
}

TEST(Retrieval, ManyQueriesAreScoredAsFew) {
  std::vector<float> vectors(150 * 3);
  for (size_t i = 0; i < vectors.size(); ++i)
    vectors[i] = std::sin(static_cast<float>(i * i % 1009));
  std::vector<Relevance> judgements;
  for (int64_t i = 0; i < 150; ++i) judgements.push_back({i, i, 1});
  const RetrievalScores s = score_retrieval(vectors, vectors, 3, judgements);
  EXPECT_EQ(s.queries, 150);
  EXPECT_DOUBLE_EQ(s.recall_at_10, 1);
}

TEST(Retrieval, RefusesWhatCannotBeScored) {
  const std::vector<float> two{1, 0}, three{1, 0, 1}, nan{std::nanf(""), 0};
  const std::vector<Relevance> good{{0, 0, 1}}, far{{0, 1, 1}}, none{{0, 0, 0}}, bad{{0, 0, -1}};
  EXPECT_ERROR(score_retrieval(two, three, 2, good), Code::shape, "rows of 2");
  EXPECT_ERROR(score_retrieval(two, two, 0, good), Code::shape, "rows of 0");
  EXPECT_ERROR(score_retrieval(two, two, 2, far), Code::usage, "document 1");
  EXPECT_ERROR(score_retrieval(two, two, 2, none), Code::usage, "no query has a relevant");
  EXPECT_ERROR(score_retrieval(two, two, 2, bad), Code::usage, "grade -1");
  EXPECT_ERROR(score_retrieval(two, nan, 2, good), Code::numeric, "not finite");
}

}  // namespace retrieval_test
}  // namespace sluice::engine
