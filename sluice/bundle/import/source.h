// Where an import's tensors come from, under the names that Hugging Face gives them: safetensors in
// a folder, or a GGUF file.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sluice/bundle/packed.h"

namespace sluice::bundle::hf {

/// A tensor as its file has it.
struct StoredTensor {
  std::string file, name;  ///< for messages: as the file calls it
  Shape shape;
  DType dtype = DType::f32;      ///< f32, f16, bf16 can be read; others are named and refused
  std::optional<Format> packed;  ///< a stored matrix of this format instead
  std::span<const std::byte> bytes;
  std::shared_ptr<const std::vector<std::byte>> owned;  ///< bytes that are not in the file as such
};

class Source {
 public:
  virtual ~Source() = default;
  /// The file to name where something is missing.
  virtual const std::string& what() const = 0;
  /// What says which tensors there should be: "config.json".
  virtual const char* asker() const = 0;
  virtual bool has(const std::string& name) const = 0;
  /// What the file calls a tensor of this name, or would.
  virtual std::string own_name(const std::string& name) const { return name; }
  /// For a name that it has.
  virtual StoredTensor get(const std::string& name) const = 0;
  virtual std::vector<std::string> names() const = 0;
};

/// `file` is one file of that folder; "": model.safetensors, or the shards that
/// model.safetensors.index.json lists. Throws Error{missing, config, limit} and what
/// SafetensorsFile::open throws.
std::unique_ptr<Source> open_folder(const std::string& folder, const std::string& file);

}  // namespace sluice::bundle::hf
