// A fine-tuning as a sparse difference: of the weights that changed those that changed most, as one
// file that is added to the network it was made from and taken away again (task arithmetic: Ilharco
// et al. 2023, arXiv 2212.04089; few entries are enough: Yadav et al. 2023, TIES, 2306.01708).
//
// A safetensors file with metadata "sluice.delta":
//   {"version": 1, "base": "<16 hex digits>", "made": {...}, "tensors": {"head.weight": [10, 64]}}
// and per tensor "<name>/index" i32 [n], ascending places in row-major order, "<name>/before" and
// "<name>/after" f32 [n]: the values of the base and of the tuned network there.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/safetensors.h"

namespace sluice::bundle {

/// f32 weights that live elsewhere.
struct WeightView {
  Shape shape;
  std::span<const float> values;
};
using NamedWeights = std::map<std::string, WeightView>;

/// 16 hex digits of names, shapes and values.
std::string weights_digest(const NamedWeights& weights);

struct DeltaTensor {
  Shape shape;
  std::vector<int32_t> index;  ///< ascending, in row-major order
  std::vector<float> before, after;
};

struct SparseDelta {
  std::string base;                            ///< weights_digest of the network it belongs to
  std::string made;                            ///< JSON: where it came from, for people; "" nothing
  std::map<std::string, DeltaTensor> tensors;  ///< those with entries
  int64_t entries() const;
};

struct DeltaOptions {
  /// Kept entries / weights of the matrices and kernels (two dimensions and more) that may change.
  double density = 0.05;
  bool by_layer = false;  ///< that share of each tensor, instead of the largest of all together
  /// Tensors whose path matches may change (base/path_pattern.h); all others stay as in the base.
  std::string pattern = "**";
};

/// What of the difference a delta keeps.
struct DeltaSummary {
  int64_t weights = 0;  ///< of matrices that may change
  int64_t changed = 0;  ///< of these
  int64_t kept = 0;     ///< of these
  int64_t vectors = 0;  ///< entries of biases, norms and statistics, which are kept all
  double energy = 0;    ///< kept squares / squares of all differences; 1 where nothing differs
};

/// `tuned` - `base`: the round(density * weights) entries of matrices whose values differ most, and
/// every entry of vectors that differs. Throws Error{config} for a density outside 0 to 1,
/// Error{missing|shape} naming the tensor that only one has or that has another shape,
/// Error{numeric} naming one with a value that is not finite, Error{usage} when the pattern matches
/// nothing, Error{limit} for a tensor of more than 2^31 - 1 values.
SparseDelta make_delta(const NamedWeights& base, const NamedWeights& tuned,
                       const DeltaOptions& options, DeltaSummary* summary = nullptr);

/// values += scale * delta, with the difference and the sum in double, rounded once. Where scale is
/// 1 and a value is bit for bit `before`, it becomes `after`; where scale is -1 and it is `after`,
/// it becomes `before`. Hence added to its base a delta gives the tuned values, and taken away
/// again the base, bit for bit; so do several whose places differ, in any order. Returns how many
/// values went that way. Where deltas share a place, it holds the base again to one rounding of f32
/// for each of them. Throws Error{numeric} naming `what` when a value is not finite afterwards,
/// having changed nothing.
int64_t apply_delta(const DeltaTensor& delta, double scale, std::span<float> values,
                    const std::string& what);

void write_delta(const std::string& path, const SparseDelta& delta);
/// Throws Error{format|unsupported|numeric} naming file and tensor for anything that write_delta
/// would not have written.
SparseDelta read_delta(const std::string& path);
SparseDelta parse_delta(const SafetensorsFile& file);

}  // namespace sluice::bundle
