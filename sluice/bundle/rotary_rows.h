// The rows of query and key projections, and what goes with them, by how rotary positions pair
// columns of a head: (i, i + dims/2), as Hugging Face has them, or (2i, 2i + 1), as GGUF's
// architecture llama does. The first `dims` rows of each head are moved; the others stay.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::bundle {

enum class RotaryPairs : uint8_t { halves, interleaved };

/// `rows` holds `count` rows of equal size (a matrix's, or the numbers of a bias or a norm),
/// `heads` dividing count; they come in the other order than `to`.
std::vector<std::byte> reorder_rotary_rows(std::span<const std::byte> rows, int64_t count,
                                           int64_t heads, int64_t dims, RotaryPairs to);

}  // namespace sluice::bundle
