// IDX files (MNIST family), plain or gzipped: magic 0 0 type rank, big-endian sizes, then the
// elements.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/shape.h"

namespace sluice::data {

struct IdxArray {
  Shape shape;
  std::vector<uint8_t> bytes;  ///< unsigned bytes only (type 0x08)
};

/// Throws Error{missing|io|format|limit|dtype} naming file, field, expected and found. Truncated
/// gzip, a wrong magic, sizes that do not match the data and trailing bytes are refused.
/// `max_bytes` bounds the inflated size.
IdxArray read_idx(const std::string& path, size_t max_bytes = size_t{1} << 30);

/// The same from bytes already in memory; `what` names them in messages.
IdxArray parse_idx(std::span<const std::byte> file, std::string_view what,
                   size_t max_bytes = size_t{1} << 30);

}  // namespace sluice::data
