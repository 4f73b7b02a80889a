// The tensor types of ggml that hold the same numbers as a packed format of Sluice: Q8_0 is i8-32,
// Q4_0 is i4-32 and Q4_1 is i4-32-min. Only the order of bytes differs (blocks of 32 columns with
// their scale in front; here codes and scales are apart), so going over loses nothing.
#pragma once
#include <optional>

#include "sluice/bundle/gguf/gguf.h"
#include "sluice/bundle/packed.h"

namespace sluice::bundle::gguf {

/// f32, bf16 and those three; nothing for the others.
std::optional<uint32_t> type_of(Format format);
std::optional<Format> format_of(uint32_t type);

/// A matrix of a format that has a type, as blocks. Columns of a packed one are a multiple of 32.
std::vector<std::byte> to_blocks(const PackedMatrix& matrix);
/// Blocks as a stored matrix of format_of(type). Nothing when a Q8_0 block has the code -128, which
/// i8-32 does not.
std::optional<std::vector<std::byte>> from_blocks(uint32_t type, std::span<const std::byte> blocks,
                                                  int64_t rows, int64_t columns);

}  // namespace sluice::bundle::gguf
