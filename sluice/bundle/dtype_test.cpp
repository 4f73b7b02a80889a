#include "sluice/bundle/dtype.h"

#include <gtest/gtest.h>

namespace sluice::bundle {
namespace dtype_test {

TEST(DType, NamesAndSizesAreThoseOfSafetensors) {
  struct Row {
    const char* name;
    DType dtype;
    int64_t size;
  };
  for (const Row& row : {Row{"BOOL", DType::boolean, 1},
                         {"U8", DType::u8, 1},
                         {"I8", DType::i8, 1},
                         {"U16", DType::u16, 2},
                         {"I16", DType::i16, 2},
                         {"F16", DType::f16, 2},
                         {"BF16", DType::bf16, 2},
                         {"U32", DType::u32, 4},
                         {"I32", DType::i32, 4},
                         {"F32", DType::f32, 4},
                         {"U64", DType::u64, 8},
                         {"I64", DType::i64, 8},
                         {"F64", DType::f64, 8},
                         {"F8_E4M3", DType::f8_e4m3, 1},
                         {"F8_E5M2", DType::f8_e5m2, 1}}) {
    EXPECT_EQ(dtype_from_name(row.name), row.dtype) << row.name;
    EXPECT_EQ(dtype_name(row.dtype), row.name);
    EXPECT_EQ(dtype_size(row.dtype), row.size) << row.name;
  }
}

TEST(DType, OtherNamesAreUnknown) {
  for (const char* name : {"", "f32", "F4", "FLOAT", "F32 "})
    EXPECT_FALSE(dtype_from_name(name)) << name;
}

}  // namespace dtype_test
}  // namespace sluice::bundle
