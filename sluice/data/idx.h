// IDX files (MNIST family), plain or gzipped: magic 0 0 type rank, big-endian sizes, then the elements.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/base/shape.h"

namespace sluice::data {

struct IdxArray {
  Shape shape;
  std::vector<uint8_t> bytes;  ///< unsigned bytes only (type 0x08)
};

/// Throws Error{missing|io|format|limit|dtype} naming file, field, expected and found. Truncated gzip, a wrong magic, sizes
/// that do not match the data and trailing bytes are refused. `max_bytes` bounds the inflated size.
IdxArray read_idx(const std::string& path, size_t max_bytes = size_t{1} << 30);

}  // namespace sluice::data
