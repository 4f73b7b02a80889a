// Whole gzip files in memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace sluice::data {

bool is_gzip(std::span<const std::byte> file);

/// Inflates every member of a gzip file. Throws Error{format} when it is truncated, damaged or
/// followed by other bytes, Error{limit} when it inflates to more than `max_bytes`.
std::vector<uint8_t> inflate_gzip(std::span<const std::byte> file, std::string_view what,
                                  size_t max_bytes);

}  // namespace sluice::data
