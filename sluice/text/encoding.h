// What encoding a text gives.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/text/slice.h"

namespace sluice::text {

struct Encoding {
  std::vector<int32_t> ids;
  std::vector<int32_t> type_ids;   ///< 0 for the first text, 1 for the second, as the template says
  std::vector<uint8_t> attention;  ///< 0 for padding
  std::vector<uint8_t> special;    ///< 1 for tokens that a template or padding added
  std::vector<ByteRange> offsets;  ///< bytes of the text per token, when asked for

  size_t size() const { return ids.size(); }
};

struct Truncation {
  enum class Strategy { longest_first, only_first, only_second };
  int64_t max_length = 512;
  int64_t stride = 0;
  Strategy strategy = Strategy::longest_first;
  bool left = false;  ///< cuts at the beginning
};

struct Padding {
  int64_t fixed_length = 0;  ///< 0: to the longest of the batch
  int64_t multiple_of = 0;
  bool left = false;
  int32_t id = 0, type_id = 0;
  std::string token = "[PAD]";
};

}  // namespace sluice::text
