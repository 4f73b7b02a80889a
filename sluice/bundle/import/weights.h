// The tensors of a model: one safetensors file, or shards that model.safetensors.index.json lists.
#pragma once
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/bundle/import/hf.h"

namespace sluice::bundle::hf {

class Weights {
 public:
  /// `file` is one file of that folder; "": model.safetensors, or the shards of the index.
  Weights(const std::string& folder, const std::string& file, const ImportOptions& options);

  /// Names that begin with `canonical` are stored with `stored` in its place.
  void set_prefix(const std::string& canonical, const std::string& stored);
  bool has(const std::string& name) const;

  /// These add the tensor of that name, which must have that shape, to the bundle and return its
  /// name there. A vector (or any small tensor) is stored as f32.
  std::string vector(Builder& builder, const std::string& name, const Shape& shape);
  /// As the options say.
  std::string matrix(Builder& builder, const std::string& name, const Shape& shape);
  /// Rows of a matrix stored as [in][all rows]: what comes out is `as`, [rows][in].
  std::string transposed(Builder& builder, const std::string& name, const Shape& stored,
                         int64_t first, int64_t rows, const std::string& as);
  /// The values as f32.
  std::vector<float> values(const std::string& name, const Shape& shape);

  /// Tensors that no call took.
  std::vector<std::string> unused() const;
  /// Of the first file, for messages.
  const std::string& what() const { return what_; }

 private:
  const SafetensorsFile& shard(const std::string& path);
  const TensorView& take(const std::string& name, const Shape& shape);
  std::string stored_name(const std::string& name) const;
  [[noreturn]] void missing(const std::string& stored) const;

  const ImportOptions& options_;
  std::string what_, canonical_, stored_;
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, std::string> place_;  // tensor -> file
  std::set<std::string> used_;
};

}  // namespace sluice::bundle::hf
