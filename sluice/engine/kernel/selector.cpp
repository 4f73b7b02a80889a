#include "sluice/engine/kernel/selector.h"

#include <numeric>

namespace sluice::engine {

size_t Selector::operator()(Scores scores, int32_t* index, float* bound) const {
  scores.rank = rank;
  float used = 0;
  size_t count = 0;
  switch (kind) {
    case Kind::all:
      std::iota(index, index + scores.n, 0);
      count = scores.n;
      break;
    case Kind::top_k:
      count = select_top_k(scores, static_cast<size_t>(k), index);
      break;
    case Kind::threshold:
      used = threshold;
      count = select_above(scores, used, index);
      break;
    case Kind::statistical:
      used = statistical_threshold(scores, keep);
      count = select_above(scores, used, index);
      break;
  }
  if (bound) *bound = used;
  return count;
}

}  // namespace sluice::engine
