// Tables of one vector per token id.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// Base of tables, however their values are stored: ids [B, T] (int64, or whole numbers as floats)
/// -> [B, T, width]. The head of a decoder may use the same values ("tied").
class TokenTable : public Brick {
 public:
  virtual int64_t rows() const = 0;
  virtual int64_t width() const = 0;
  /// [rows, width]; gradients flow into it where it is trained.
  virtual at::Tensor values() const = 0;
  virtual int64_t weight_bytes() const = 0;
  /// Adds the table as `path`.weight and returns that name.
  virtual std::string add_weight(bundle::Builder& builder, const std::string& path) const = 0;

  /// Throws Error{shape} for an id outside 0 .. rows - 1 (on the CPU).
  at::Tensor forward(const at::Tensor& ids, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
};

/// An ordinary table; first values normal with deviation 0.02.
class Embedding final : public TokenTable {
 public:
  Embedding(int64_t rows, int64_t width);
  std::string kind() const override { return "embedding"; }
  Json attributes() const override;
  int64_t rows() const override { return weight.size(0); }
  int64_t width() const override { return weight.size(1); }
  at::Tensor values() const override { return weight; }
  int64_t weight_bytes() const override { return 4 * weight.numel(); }
  std::string add_weight(bundle::Builder& builder, const std::string& path) const override;

  at::Tensor weight;  ///< [rows, width]
};

}  // namespace sluice::lab
