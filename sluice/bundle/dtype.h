// Element types of stored tensors, with the names that safetensors uses.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace sluice::bundle {

enum class DType : uint8_t {
  boolean,
  u8,
  i8,
  u16,
  i16,
  f16,
  bf16,
  u32,
  i32,
  f32,
  u64,
  i64,
  f64,
  f8_e4m3,
  f8_e5m2
};

int64_t dtype_size(DType dtype);           ///< bytes per element
std::string_view dtype_name(DType dtype);  ///< "F32", "BF16", "BOOL", ...
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace sluice::bundle
