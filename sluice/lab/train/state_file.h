// Tensors and one JSON document in a safetensors file: checkpoints, prune-loop state. Internal to
// train and recipes.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "sluice/base/json_fwd.h"

namespace sluice::lab {

struct StateFile {
  Json document;
  std::map<std::string, at::Tensor> tensors;  ///< on the CPU, owning

  /// The entries whose names start with `prefix`, without it.
  std::map<std::string, at::Tensor> section(const std::string& prefix) const;
  void add_section(const std::string& prefix, const std::map<std::string, at::Tensor>& entries);
};

/// Atomic: the file is either the old or the new one, whenever the process dies. `key` names the
/// document in the metadata.
void write_state_file(const std::string& path, const std::string& key, const StateFile& state);
/// Throws Error{missing|format|unsupported} naming file and field; `what` is the kind of file: "a
/// checkpoint". The document's "version" must be `version`.
StateFile read_state_file(const std::string& path, const std::string& key, const std::string& what,
                          int version);

/// A JSON document as a u8 tensor, for hooks whose state is a map of tensors.
at::Tensor json_to_tensor(const Json& json);
Json json_from_tensor(const at::Tensor& tensor, const std::string& what);

}  // namespace sluice::lab
