// Internal: what both enumerations share.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace sluice::lab {

inline constexpr int64_t kMostPatterns = 65536;

/// Throws Error{limit} for more than kMostPatterns.
int64_t pattern_count(const std::vector<int64_t>& choices);
/// Cross-entropy of each row [rows]: logits [.., classes], labels of as many rows.
at::Tensor row_losses(const at::Tensor& logits, const at::Tensor& labels);

}  // namespace sluice::lab
