#include "sluice/engine/text/retrieval.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {
namespace {

constexpr size_t kDeepest = 100;
constexpr int64_t kQueriesAtOnce = 64;

/// By query, then document; grades of 0 left out.
std::map<int64_t, std::map<int64_t, double>> relevant_of(std::span<const Relevance> judgements,
                                                         int64_t queries, int64_t documents) {
  std::map<int64_t, std::map<int64_t, double>> relevant;
  for (const Relevance& r : judgements) {
    if (r.query < 0 || r.query >= queries || r.document < 0 || r.document >= documents)
      fail(Code::usage, "judgement of query {} and document {}; there are {} and {}", r.query,
           r.document, queries, documents);
    if (!(r.grade >= 0) || !std::isfinite(r.grade))
      fail(Code::usage, "query {}, document {}: grade {}; expected 0 or more", r.query, r.document,
           r.grade);
    if (r.grade > 0) relevant[r.query][r.document] = r.grade;
  }
  if (relevant.empty()) fail(Code::usage, "no query has a relevant document");
  return relevant;
}

std::vector<float> normalized(std::span<const float> rows, int64_t width) {
  std::vector<float> out(rows.begin(), rows.end());
  for (size_t first = 0; first < out.size(); first += static_cast<size_t>(width)) {
    double squares = 0;
    for (size_t i = 0; i < static_cast<size_t>(width); ++i)
      squares += static_cast<double>(out[first + i]) * out[first + i];
    if (!std::isfinite(squares))
      fail(Code::numeric, "row {}: a vector that is not finite", first / size_t(width));
    const float scale = squares > 0 ? static_cast<float>(1 / std::sqrt(squares)) : 0;
    for (size_t i = 0; i < static_cast<size_t>(width); ++i) out[first + i] *= scale;
  }
  return out;
}

}  // namespace

RetrievalScores score_rankings(std::span<const std::vector<int64_t>> rankings, int64_t documents,
                               std::span<const Relevance> judgements) {
  const auto relevant = relevant_of(judgements, std::ssize(rankings), documents);
  RetrievalScores scores;
  scores.documents = documents;
  scores.queries = std::ssize(relevant);
  for (const auto& [query, grades] : relevant) {
    const std::vector<int64_t>& ranking = rankings[static_cast<size_t>(query)];
    double gain = 0, found = 0, first = 0, at_1 = 0, at_10 = 0;
    const size_t depth = std::min(ranking.size(), kDeepest);
    for (size_t rank = 1; rank <= depth; ++rank) {
      const auto it = grades.find(ranking[rank - 1]);
      if (it != grades.end()) {
        found += 1;
        if (rank <= 10) gain += it->second / std::log2(static_cast<double>(rank) + 1);
        if (rank <= 10 && first == 0) first = 1.0 / static_cast<double>(rank);
      }
      if (rank == 1) at_1 = found;
      if (rank <= 10) at_10 = found;
    }
    std::vector<double> best;
    for (const auto& [document, grade] : grades) best.push_back(grade);
    std::sort(best.rbegin(), best.rend());
    double ideal = 0;
    for (size_t rank = 1; rank <= std::min<size_t>(10, best.size()); ++rank)
      ideal += best[rank - 1] / std::log2(static_cast<double>(rank) + 1);
    const double count = static_cast<double>(grades.size());
    scores.recall_at_1 += at_1 / count;
    scores.recall_at_10 += at_10 / count;
    scores.recall_at_100 += found / count;
    scores.ndcg_at_10 += gain / ideal;
    scores.mrr_at_10 += first;
  }
  for (double* value : {&scores.recall_at_1, &scores.recall_at_10, &scores.recall_at_100,
                        &scores.ndcg_at_10, &scores.mrr_at_10})
    *value /= static_cast<double>(scores.queries);
  return scores;
}

RetrievalScores score_retrieval(std::span<const float> queries, std::span<const float> documents,
                                int64_t width, std::span<const Relevance> judgements) {
  if (width < 1 || std::ssize(queries) % width != 0 || std::ssize(documents) % width != 0)
    fail(Code::shape, "{} and {} numbers are no rows of {}", queries.size(), documents.size(),
         width);
  const int64_t count = std::ssize(queries) / width, of = std::ssize(documents) / width;
  relevant_of(judgements, count, of);
  const std::vector<float> q = normalized(queries, width), d = normalized(documents, width);
  std::vector<std::vector<int64_t>> rankings(static_cast<size_t>(count));
  std::vector<float> similar(
      static_cast<size_t>(checked_mul(std::min(count, kQueriesAtOnce), of, "similarities")));
  std::vector<int64_t> order(static_cast<size_t>(of));
  const size_t depth = std::min(order.size(), kDeepest);
  for (int64_t first = 0; first < count; first += kQueriesAtOnce) {
    const int64_t now = std::min(kQueriesAtOnce, count - first);
    onednn::multiply_rows(q.data() + first * width, d.data(), now, width, of, similar.data(), of);
    for (int64_t i = 0; i < now; ++i) {
      const float* row = similar.data() + i * of;
      std::iota(order.begin(), order.end(), int64_t{0});
      std::partial_sort(
          order.begin(), order.begin() + static_cast<std::ptrdiff_t>(depth), order.end(),
          [row](int64_t a, int64_t b) { return row[a] > row[b] || (row[a] == row[b] && a < b); });
      rankings[static_cast<size_t>(first + i)].assign(
          order.begin(), order.begin() + static_cast<std::ptrdiff_t>(depth));
    }
  }
  return score_rankings(rankings, of, judgements);
}

}  // namespace sluice::engine
