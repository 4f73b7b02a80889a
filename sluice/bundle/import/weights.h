// The tensors of a model on their way into a bundle: checked, and in the type that the options ask
// for.
#pragma once
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/bundle/import/hf.h"
#include "sluice/bundle/import/source.h"

namespace sluice::bundle::hf {

class Weights {
 public:
  Weights(std::unique_ptr<Source> source, const ImportOptions& options);

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
  /// Matrices of one shape, one after the other, as the tensor `as` [names, rows, columns]; with
  /// `turn` each is transposed first.
  std::string stacked(Builder& builder, const std::vector<std::string>& names, const Shape& shape,
                      bool turn, const std::string& as);
  /// The values as f32.
  std::vector<float> values(const std::string& name, const Shape& shape);

  /// Some of what was taken was f16, which a bundle holds as f32.
  bool any_f16() const { return any_f16_; }
  /// Tensors that no call took.
  std::vector<std::string> unused() const;
  /// Of the first file, for messages.
  const std::string& what() const { return source_->what(); }

 private:
  StoredTensor take(const std::string& name, const Shape& shape);
  std::string stored_name(const std::string& name) const;
  [[noreturn]] void missing(const std::string& stored) const;
  std::vector<float> values_of(const StoredTensor& tensor) const;
  std::string add_vector(Builder& builder, const std::string& name, const StoredTensor& tensor);
  /// Of a matrix that is stored in `stored`, or in no format that there is.
  Format wanted(std::optional<Format> stored) const;

  std::unique_ptr<Source> source_;
  const ImportOptions& options_;
  int64_t count_ = 0;
  bool any_f16_ = false;
  std::string canonical_, stored_;
  std::set<std::string> used_;
  std::vector<std::shared_ptr<const std::vector<std::byte>>> kept_;  // until the bundle is written
};

}  // namespace sluice::bundle::hf
