// Judging a search: how well vectors of queries find the documents that were judged relevant.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::engine {

struct Relevance {
  int64_t query = 0, document = 0;  ///< indices
  double grade = 1;                 ///< above 0: relevant, more is better
};

/// Means over the queries that have a relevant document.
struct RetrievalScores {
  int64_t queries = 0, documents = 0;
  double recall_at_1 = 0, recall_at_10 = 0,
         recall_at_100 = 0;  ///< share of the relevant documents among the first k
  /// Discounted gain of the first ten, sum of grade / log2(rank + 1), over the best possible
  /// (Järvelin and Kekäläinen 2002; linear gain, as trec_eval and BEIR have it).
  double ndcg_at_10 = 0;
  double mrr_at_10 = 0;  ///< 1 / rank of the first relevant one, 0 beyond ten
};

/// Documents ranked by cosine similarity, of equal ones the first; a vector of zeros is similar to
/// nothing. `queries` and `documents` are rows of `width` numbers. Throws Error{shape} for spans
/// that are no whole rows, Error{usage} for indices outside them, a negative grade, or judgements
/// without any relevant document,
/// Error{numeric} for a vector that is not finite.
RetrievalScores score_retrieval(std::span<const float> queries, std::span<const float> documents,
                                int64_t width, std::span<const Relevance> judgements);

/// The same from rankings: documents of each query, best first (at least the first 100).
RetrievalScores score_rankings(std::span<const std::vector<int64_t>> rankings, int64_t documents,
                               std::span<const Relevance> judgements);

}  // namespace sluice::engine
