// The element types of ggml that are read, and the values their blocks stand for (ggml-common.h of
// llama.cpp describes the same layouts).
#include <array>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/bundle/gguf/gguf.h"
#include "sluice/bundle/packed.h"

namespace sluice::bundle::gguf {
namespace {

constexpr TensorType kTypes[] = {{kF32, "F32", 1, 4},       {kF16, "F16", 1, 2},
                                 {kQ4_0, "Q4_0", 32, 18},   {kQ4_1, "Q4_1", 32, 20},
                                 {kQ8_0, "Q8_0", 32, 34},   {kQ4_K, "Q4_K", 256, 144},
                                 {kQ6_K, "Q6_K", 256, 210}, {kBF16, "BF16", 1, 2}};
/// Of types that exist and are not read, for messages; "" where there is none.
constexpr std::array<const char*, 36> kOthers = {
    "",        "",      "",       "Q4_1",  "",      "",       "Q5_0", "Q5_1",    "",
    "Q8_1",    "Q2_K",  "Q3_K",   "",      "Q5_K",  "",       "Q8_K", "IQ2_XXS", "IQ2_XS",
    "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",   "I16",     "I32",
    "I64",     "F64",   "IQ1_M",  "",      "",      "",       "",     "TQ1_0",   "TQ2_0"};

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
float half(const std::byte* from) { return f16_to_f32(load<uint16_t>(from)); }
int u8(const std::byte* from, int index) { return static_cast<int>(from[index]); }
int i8(const std::byte* from, int index) { return static_cast<int8_t>(from[index]); }

// f16 d, 16 bytes: column k in the lower four bits of byte k, column k + 16 in the upper.
void q4_0(const std::byte* block, float* out) {
  const float d = half(block);
  for (int k = 0; k < 16; ++k) {
    const int both = u8(block + 2, k);
    out[k] = d * static_cast<float>((both & 15) - 8);
    out[k + 16] = d * static_cast<float>((both >> 4) - 8);
  }
}

// As q4_0 without the 8, f16 m behind d.
void q4_1(const std::byte* block, float* out) {
  const float d = half(block), m = half(block + 2);
  for (int k = 0; k < 16; ++k) {
    const int both = u8(block + 4, k);
    out[k] = d * static_cast<float>(both & 15) + m;
    out[k + 16] = d * static_cast<float>(both >> 4) + m;
  }
}

// f16 d, 32 int8.
void q8_0(const std::byte* block, float* out) {
  const float d = half(block);
  for (int k = 0; k < 32; ++k) out[k] = d * static_cast<float>(i8(block + 2, k));
}

// f16 d, f16 dmin, 8 scales and 8 minima of 6 bits in 12 bytes, 128 bytes of codes: of every 64
// columns the first 32 in the lower four bits.
void q4_k(const std::byte* block, float* out) {
  const float d = half(block), dmin = half(block + 2);
  const std::byte *packed = block + 4, *codes = block + 16;
  for (int group = 0; group < 8; ++group) {
    int scale, minimum;
    if (group < 4) {
      scale = u8(packed, group) & 63;
      minimum = u8(packed, group + 4) & 63;
    } else {
      scale = (u8(packed, group + 4) & 15) | (u8(packed, group - 4) >> 6 << 4);
      minimum = (u8(packed, group + 4) >> 4) | (u8(packed, group) >> 6 << 4);
    }
    const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
    for (int k = 0; k < 32; ++k) {
      const int both = u8(codes, group / 2 * 32 + k);
      out[group * 32 + k] = s * static_cast<float>(group % 2 == 0 ? both & 15 : both >> 4) - m;
    }
  }
}

// 128 bytes with the lower four bits, 64 with the upper two, 16 int8 scales of 16 columns, f16 d.
void q6_k(const std::byte* block, float* out) {
  const float d = half(block + 208);
  for (int part = 0; part < 2; ++part) {
    const std::byte *low = block + 64 * part, *high = block + 128 + 32 * part,
                    *scales = block + 192 + 8 * part;
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int k = 0; k < 32; ++k) {
        const int both = u8(low, quarter % 2 * 32 + k);
        const int code =
            (quarter < 2 ? both & 15 : both >> 4) | ((u8(high, k) >> (2 * quarter) & 3) << 4);
        const float s = d * static_cast<float>(i8(scales, 2 * quarter + k / 16));
        out[part * 128 + quarter * 32 + k] = s * static_cast<float>(code - 32);
      }
    }
  }
}

}  // namespace

const TensorType* find_type(uint32_t id) {
  for (const TensorType& type : kTypes)
    if (type.id == id) return &type;
  return nullptr;
}

std::string type_name(uint32_t id) {
  if (const TensorType* type = find_type(id)) return type->name;
  if (id < kOthers.size() && kOthers[id][0] != '\0') return kOthers[id];
  return fmt::format("type {}", id);
}

int64_t row_bytes(const TensorType& type, int64_t columns) {
  SLUICE_CHECK(columns % type.block == 0);
  return checked_mul(columns / type.block, type.bytes, "bytes of a row");
}

void dequantize(uint32_t id, std::span<const std::byte> bytes, std::span<float> out) {
  const TensorType* type = find_type(id);
  SLUICE_CHECK(type && bytes.size() % static_cast<size_t>(type->bytes) == 0);
  const size_t blocks = bytes.size() / static_cast<size_t>(type->bytes);
  SLUICE_CHECK(blocks * static_cast<size_t>(type->block) == out.size());
  if (id == kF32) {
    if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
    return;
  }
  for (size_t b = 0; b < blocks; ++b) {
    const std::byte* block = bytes.data() + b * static_cast<size_t>(type->bytes);
    float* values = out.data() + b * static_cast<size_t>(type->block);
    if (id == kF16) *values = half(block);
    if (id == kBF16) *values = bf16_to_f32(load<uint16_t>(block));
    if (id == kQ4_0) q4_0(block, values);
    if (id == kQ4_1) q4_1(block, values);
    if (id == kQ8_0) q8_0(block, values);
    if (id == kQ4_K) q4_k(block, values);
    if (id == kQ6_K) q6_k(block, values);
  }
}

}  // namespace sluice::bundle::gguf
