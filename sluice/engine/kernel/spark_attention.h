// Causal attention that reads few of the keys and values (Spark Transformer: You et al. 2025, arXiv
// 2506.06644): the first columns of queries and keys are the predictor, whose scores are computed
// for the whole prefix; the other columns of a key, and its value, are read only where the score
// reaches the statistical threshold of the prefix. Per head, with q = [q1 (split), q2], k likewise:
//
//   a_j = q1 . k1_j / sqrt(split)           for the n keys of the prefix
//   kept: all where n <= tokens, else a_j >= mean(a) + deviation(a) normal_quantile(1 - tokens / n)
//   out = sum over kept j of softmax_kept(a)_j softplus(q2 . k2_j / sqrt(width - split)) v_j
//
// The deviation has n - 1 in the denominator. A row of which nothing is kept is zeros, one with a
// score that is not finite NaN.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

struct SparkAttentionSpec {
  int64_t heads = 1;
  int64_t split = 1, rest = 1;  ///< columns of a head of queries and keys
  int64_t value_width = 1;
  int64_t tokens = 1;  ///< how many a row looks at, about; shorter prefixes whole
  int64_t cache = 0;   ///< positions kept per sample, f32; 0: none
};

/// One sample's rows in this call; keys are those of the same rows, appended where there is a
/// cache.
struct SparkAttentionRows {
  const float* q = nullptr;  ///< [rows][heads * (split + rest)]
  const float* k = nullptr;
  const float* v = nullptr;  ///< [rows][heads * value_width]
  float* out = nullptr;      ///< as v
  int64_t rows = 0;
  int64_t seen = 0;            ///< with a cache: positions before these
  std::byte* cache = nullptr;  ///< spark_cache_bytes()
};

/// Of one sample; throws Error{limit} on overflow. Predictor columns lie apart, so that they stream
/// and nothing else does.
int64_t spark_cache_bytes(const SparkAttentionSpec& spec);
/// For that many threads and rows of a run.
int64_t spark_scratch_bytes(const SparkAttentionSpec& spec, int64_t rows, int threads);

/// The sample's rows into its cache, as spark_attention() begins.
void spark_append(const SparkAttentionSpec& spec, const SparkAttentionRows& sample);
/// Appends to the caches, then attends; seen + rows <= cache. The result does not depend on
/// `threads`. Work counts what was read and multiplied: all predictor columns, the rest of what was
/// kept.
Work spark_attention(const SparkAttentionSpec& spec, std::span<const SparkAttentionRows> samples,
                     int threads, std::byte* scratch);

}  // namespace sluice::engine
