#include "sluice/bundle/dtype.h"

#include <array>

#include "sluice/base/error.h"

namespace sluice::bundle {
namespace {

struct DTypeEntry {
  DType dtype;
  std::string_view name;
  int64_t size;
};

constexpr std::array<DTypeEntry, 15> kTypes = {{
    {DType::boolean, "BOOL", 1},
    {DType::u8, "U8", 1},
    {DType::i8, "I8", 1},
    {DType::u16, "U16", 2},
    {DType::i16, "I16", 2},
    {DType::f16, "F16", 2},
    {DType::bf16, "BF16", 2},
    {DType::u32, "U32", 4},
    {DType::i32, "I32", 4},
    {DType::f32, "F32", 4},
    {DType::u64, "U64", 8},
    {DType::i64, "I64", 8},
    {DType::f64, "F64", 8},
    {DType::f8_e4m3, "F8_E4M3", 1},
    {DType::f8_e5m2, "F8_E5M2", 1},
}};

const DTypeEntry& entry_of(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  SLUICE_CHECK(index < kTypes.size() && kTypes[index].dtype == dtype);
  return kTypes[index];
}

}  // namespace

int64_t dtype_size(DType dtype) { return entry_of(dtype).size; }

std::string_view dtype_name(DType dtype) { return entry_of(dtype).name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DTypeEntry& entry : kTypes)
    if (entry.name == name) return entry.dtype;
  return std::nullopt;
}

}  // namespace sluice::bundle
