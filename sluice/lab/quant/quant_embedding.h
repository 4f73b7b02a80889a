// A table of token vectors whose values are stored in few bits.
#pragma once
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/quant/packed_weight.h"

namespace sluice::lab {

/// Embedding of packed rows; a tied head multiplies with the same bytes. Not trained.
class QuantEmbedding final : public TokenTable, public PackedBrick {
 public:
  QuantEmbedding(bundle::Format format, int64_t rows, int64_t width);
  static std::shared_ptr<QuantEmbedding> pack(const Embedding& table, bundle::Format format);

  std::string kind() const override { return "quant_embedding"; }
  Json attributes() const override;
  int64_t rows() const override { return rows_; }
  int64_t width() const override { return width_; }
  at::Tensor values() const override;
  int64_t weight_bytes() const override { return weight.numel(); }
  std::string add_weight(bundle::Builder& builder, const std::string& path) const override;
  /// An ordinary table of these values.
  std::shared_ptr<Embedding> unpacked() const;

  bundle::Format format() const override { return format_; }
  void check_bytes(const std::string& what) const override;

  at::Tensor weight;  ///< buffer: uint8, the stored bytes

 private:
  bundle::Format format_;
  int64_t rows_, width_;
  mutable UnpackedValues values_;
};

}  // namespace sluice::lab
