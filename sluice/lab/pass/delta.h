// Sparse differences of models (bundle/delta.h): what they are made of, and applying them.
#pragma once
#include "sluice/bundle/delta.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

/// The floats of a model by path, parameters and buffers, as a delta sees them.
class ModelWeights {
 public:
  explicit ModelWeights(const Model& model);
  const bundle::NamedWeights& named() const { return named_; }

 private:
  std::vector<at::Tensor> keep_;  ///< f32 on the CPU
  bundle::NamedWeights named_;
};

/// The difference between two models of the same bricks. Throws as bundle::make_delta, and
/// Error{shape} naming the first place where the bricks differ, Error{unsupported} for packed
/// weights that differ.
bundle::SparseDelta make_delta(const Model& base, const Model& tuned,
                               const bundle::DeltaOptions& options,
                               bundle::DeltaSummary* summary = nullptr);

/// Pass apply-delta {file, scale=1, force=false}: adds a sparse difference, `scale` times; -1 takes
/// it away. Several add up. Error{config} for one that was made from another network: the weights
/// have to be those of its base, or of that base with other deltas of it, which the provenance
/// tells; `force` adds it all the same where names and shapes fit (Error{missing|shape}). Report:
/// base (digest), scale, tensors, entries, exact (entries that became the tuned value, or the
/// base's, bit for bit).
Json apply_delta(Model& model, const PassInput& input);

}  // namespace sluice::lab
