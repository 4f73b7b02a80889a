// Spark feed-forward networks that choose otherwise: rivals and controls.
#pragma once
#include "sluice/lab/brick/spark.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes::spark_transformer {

enum class Rule : uint8_t {
  statistical,  ///< the paper's: soft, from the token's own mean and deviation
  exact,        ///< soft, at the (k+1)-th largest score: a sort for every token
  hard,         ///< scores above the statistical threshold as they are, no shift
  random,       ///< control: as many neurons, chosen at random; the predictor is ignored
  foreign       ///< control: the threshold of the token before
};

struct SparkSizes {
  lab::SparkFfnOptions ffn;
  lab::SparkAttentionOptions attention;
  int64_t heads = 4, layers = 3;
  bool spark_attention = true;
  double init_std = 0.02;
  /// First weights of the feed-forward networks, also of the dense ones, normal with variance 1 /
  /// inputs (of `down`: the neurons awake) in place of init_std.
  bool fan_in = false;
};

/// The feed-forward networks of a gated decoder with first weights by fan-in.
void draw_by_fan_in(lab::Model& model, int64_t layers, uint64_t seed);

/// The decoder with Spark feed-forward networks (and attention) in the place of its own, weights
/// normal as the zoo draws them.
void make_spark(lab::Model& model, const SparkSizes& sizes, Rule rule, uint64_t seed);

/// A copy of a Spark model whose feed-forward networks follow `rule`, with the same weights.
lab::Model with_rule(const lab::Model& model, Rule rule, uint64_t seed);

/// A copy of a gated decoder that computes only the share `keep` of neurons whose activated gate is
/// largest: sparsity after the fact.
lab::Model post_hoc(const lab::Model& model, double keep);

}  // namespace sluice::recipes::spark_transformer
