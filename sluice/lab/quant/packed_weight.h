// Weights that stay as they were packed (bundle/packed.h): what bricks that hold them share.
#pragma once
#include <ATen/core/Tensor.h>

#include <span>
#include <string>

#include "sluice/bundle/packed.h"

namespace sluice::lab {

/// The values that packed bytes stand for, kept until the bytes change.
class UnpackedValues {
 public:
  /// [rows, columns] on the device of `weight` (uint8, the stored bytes). No gradient flows.
  const at::Tensor& of(const at::Tensor& weight, bundle::Format format, int64_t rows,
                       int64_t columns);

 private:
  at::Tensor values_;
  const void* from_ = nullptr;
  uint32_t version_ = 0;
};

at::Tensor byte_tensor(std::span<const std::byte> bytes);
/// Of a tensor on the CPU.
std::span<const std::byte> bytes_view(const at::Tensor& weight);
/// A f32 matrix of any device, packed.
at::Tensor packed_bytes(const at::Tensor& values, bundle::Format format,
                        const bundle::PackOptions& options = {});

/// Base of bricks whose `weight` is packed.
class PackedBrick {
 public:
  virtual ~PackedBrick() = default;
  virtual bundle::Format format() const = 0;
  /// Throws Error{shape|format|numeric} naming `what` when the bytes are no such matrix.
  virtual void check_bytes(const std::string& what) const = 0;
};

}  // namespace sluice::lab
