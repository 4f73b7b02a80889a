// Which entries of a row of scores are worth computing: exact top-k, a calibrated threshold and
// statistical top-k, as the engine's operators define them (docs/formats.md, "What the input
// decides"). On the CPU the engine's own code decides, so that lab and engine skip the same
// entries; elsewhere, and in builds without the engine, the same definitions in tensor operations.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/bundle/graph.h"

namespace sluice::lab {

struct Selector {
  enum class Kind : uint8_t { all, top_k, threshold, statistical };
  Kind kind = Kind::all;
  bool magnitude = true;  ///< scores are |x|; else x itself
  int64_t k = 0;          ///< top_k
  float threshold = 0;    ///< threshold: scores above it are kept
  double keep = 1;        ///< statistical: share of the scores

  static Selector top(int64_t k) { return {Kind::top_k, true, k, 0, 1}; }
  static Selector above(float threshold) { return {Kind::threshold, true, 0, threshold, 1}; }
  static Selector share(double keep) { return {Kind::statistical, true, 0, 0, keep}; }

  /// The most of n entries that it may keep.
  int64_t most_kept(int64_t n) const;
};

/// {"select": "all" | "topk" | "threshold" | "statistical"} and what the kind needs: k, threshold,
/// keep. The magnitude is not part of it: bricks know what they rank.
Json selector_json(const Selector& selector);
/// Strict about kinds, types and ranges; other keys are the caller's. Throws Error{config} naming
/// the key and `kind`.
Selector read_selector(const Json& attributes, std::string_view kind);
/// As a node's attributes: select, k, threshold, keep. SLUICE_CHECKs that the kind is not `all`.
void add_selector(const Selector& selector, bundle::Attributes& attributes);

/// The same for a selector per size of a network, all of one kind but `all`: what the kind needs is
/// a list. One selector is no list.
Json selectors_json(const std::vector<Selector>& selectors);
std::vector<Selector> read_selectors(const Json& attributes, std::string_view kind);
void add_selectors(const std::vector<Selector>& selectors, bundle::Attributes& attributes);

/// For x [.., n] of a float type: [.., n] of bool, true where a row of n keeps the entry. Scores
/// are |x| or x, times `weight` [n] (numbers >= 0) where it is defined. NaN is never kept, unless
/// everything is. No gradient passes.
at::Tensor select(const at::Tensor& x, const Selector& selector, const at::Tensor& weight = {});

/// The threshold of statistical top-k with its gradient, [.., 1] for scores [.., n]: mean +
/// deviation * normal_quantile(1 - keep) of the row, the deviation with n - 1 in the denominator.
/// As normalisation it pulls on every score. Throws Error{config} for keep outside (0, 1).
at::Tensor statistical_bound(const at::Tensor& scores, double keep);

namespace detail {
/// The tensor operations behind select() where the engine's code cannot run; for tests.
at::Tensor select_by_tensors(const at::Tensor& x, const Selector& selector,
                             const at::Tensor& weight);
}  // namespace detail

}  // namespace sluice::lab
