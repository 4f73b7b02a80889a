#include "sluice/bundle/rotary_rows.h"

#include <cstring>

#include "sluice/base/error.h"

namespace sluice::bundle {

std::vector<std::byte> reorder_rotary_rows(std::span<const std::byte> rows, int64_t count,
                                           int64_t heads, int64_t dims, RotaryPairs to) {
  SLUICE_CHECK(count > 0 && heads > 0 && count % heads == 0 && dims >= 0 && dims <= count / heads &&
               rows.size() % static_cast<size_t>(count) == 0);
  std::vector<std::byte> out(rows.begin(), rows.end());
  const size_t each = rows.size() / static_cast<size_t>(count);
  const int64_t width = count / heads, pairs = dims / 2;
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      for (int64_t part = 0; part < 2; ++part) {
        const auto half = static_cast<size_t>(h * width + part * pairs + pair),
                   woven = static_cast<size_t>(h * width + 2 * pair + part);
        const bool weave = to == RotaryPairs::interleaved;
        std::memcpy(out.data() + (weave ? woven : half) * each,
                    rows.data() + (weave ? half : woven) * each, each);
      }
    }
  }
  return out;
}

}  // namespace sluice::bundle
