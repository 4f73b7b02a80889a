#include "sluice/base/text_overlap.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace sluice {

double rouge_l(std::span<const int64_t> found, std::span<const int64_t> expected) {
  if (found.empty() && expected.empty()) return 1;
  std::vector<size_t> row(expected.size() + 1, 0);  // longest with the first j expected tokens
  for (const int64_t token : found) {
    size_t diagonal = 0;
    for (size_t j = 1; j <= expected.size(); ++j) {
      const size_t above = row[j];
      row[j] = token == expected[j - 1] ? diagonal + 1 : std::max(above, row[j - 1]);
      diagonal = above;
    }
  }
  return 2.0 * static_cast<double>(row.back()) /
         static_cast<double>(found.size() + expected.size());
}

double bleu(std::span<const std::pair<std::vector<int64_t>, std::vector<int64_t>>> pairs) {
  constexpr size_t kLongest = 4;
  double log_precision = 0;
  size_t found_tokens = 0, expected_tokens = 0;
  for (const auto& [found, expected] : pairs) {
    found_tokens += found.size();
    expected_tokens += expected.size();
  }
  for (size_t length = 1; length <= kLongest; ++length) {
    int64_t agree = 0, all = 0;
    for (const auto& [found, expected] : pairs) {
      std::map<std::vector<int64_t>, int64_t> there;
      for (size_t i = 0; i + length <= expected.size(); ++i)
        ++there[{expected.begin() + static_cast<std::ptrdiff_t>(i),
                 expected.begin() + static_cast<std::ptrdiff_t>(i + length)}];
      for (size_t i = 0; i + length <= found.size(); ++i) {
        ++all;
        const auto at = there.find({found.begin() + static_cast<std::ptrdiff_t>(i),
                                    found.begin() + static_cast<std::ptrdiff_t>(i + length)});
        if (at == there.end() || at->second == 0) continue;
        --at->second;
        ++agree;
      }
    }
    if (agree == 0) return 0;
    log_precision += std::log(static_cast<double>(agree) / static_cast<double>(all));
  }
  const double brevity =
      found_tokens >= expected_tokens
          ? 0
          : 1 - static_cast<double>(expected_tokens) / static_cast<double>(found_tokens);
  return std::exp(log_precision / kLongest + brevity);
}

}  // namespace sluice
