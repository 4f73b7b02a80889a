// What the operators on arrays of any rank (ops_array.cpp) share with their kernels.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "sluice/base/shape.h"

namespace sluice::bundle {

/// Both shapes repeated along dimensions of 1, aligned at the last dimension. Throws Error{shape}.
Shape broadcast_shapes(const Shape& a, const Shape& b);

enum class Reduce : uint8_t { sum, mean, max, min, prod, argmax, argmin };
std::optional<Reduce> reduce_from_name(std::string_view name);

}  // namespace sluice::bundle
