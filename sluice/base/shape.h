// Shapes and overflow-checked size arithmetic. A Shape never contains the batch unless its name
// says so.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

using Shape = std::vector<int64_t>;

/// a*b or a+b of non-negative values; throws Error{limit} naming `what` on overflow or a negative
/// value.
int64_t checked_mul(int64_t a, int64_t b, std::string_view what);
int64_t checked_add(int64_t a, int64_t b, std::string_view what);

/// Product of all dimensions (1 for a scalar); throws Error{limit} on overflow or a negative
/// dimension.
int64_t numel(std::span<const int64_t> shape, std::string_view what = "shape");

/// "64 x 3 x 3"; "scalar" for an empty shape.
std::string to_string(std::span<const int64_t> shape);

}  // namespace sluice
