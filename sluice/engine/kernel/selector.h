// A selector with its settings, as operators name them: which entries of a score vector a token
// keeps.
#pragma once
#include <cstdint>

#include "sluice/engine/kernel/select.h"

namespace sluice::engine {

struct Selector {
  enum class Kind : uint8_t { all, top_k, threshold, statistical };
  Kind kind = Kind::all;
  Rank rank = Rank::magnitude;
  int64_t k = 0;        ///< top_k
  float threshold = 0;  ///< threshold
  double keep = 1;      ///< statistical: share of the scores

  /// Ascending indices into `index` (room for scores.n); the scores' own rank is replaced. When
  /// `bound` is set it gets the threshold that was used (0 for all and top_k).
  size_t operator()(Scores scores, int32_t* index, float* bound = nullptr) const;
};

}  // namespace sluice::engine
