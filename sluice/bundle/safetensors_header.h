// The JSON header of a safetensors file, read token by token: no document is built, so that a
// header costs memory in proportion to the tensors it names whatever it contains. Internal to
// bundle.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/bundle/safetensors.h"

namespace sluice::bundle {

struct HeaderEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  uint64_t begin = 0, end = 0;  ///< relative to the first byte behind the header
};

struct Header {
  std::vector<HeaderEntry> tensors;  ///< in header order, names unique
  std::map<std::string, std::string> metadata;
};

/// Throws Error naming `what`, tensor, field, expected and found. Offsets are not compared with
/// anything yet.
Header parse_header(std::string_view json, const std::string& what, const ReadLimits& limits);

}  // namespace sluice::bundle
