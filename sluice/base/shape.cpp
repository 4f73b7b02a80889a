#include "sluice/base/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include "sluice/base/error.h"

namespace sluice {

int64_t checked_mul(int64_t a, int64_t b, std::string_view what) {
  int64_t result = 0;
  if (a < 0 || b < 0) {
    fail(Code::limit, "{}: {} x {} has a negative factor", what, a, b);
  }
  if (__builtin_mul_overflow(a, b, &result)) {
    fail(Code::limit, "{}: {} x {} does not fit 63 bits", what, a, b);
  }
  return result;
}

int64_t checked_add(int64_t a, int64_t b, std::string_view what) {
  int64_t result = 0;
  if (a < 0 || b < 0) {
    fail(Code::limit, "{}: {} + {} has a negative term", what, a, b);
  }
  if (__builtin_add_overflow(a, b, &result)) {
    fail(Code::limit, "{}: {} + {} does not fit 63 bits", what, a, b);
  }
  return result;
}

int64_t numel(std::span<const int64_t> shape, std::string_view what) {
  // A zero anywhere makes the product zero, but the other dimensions must still be plausible:
  // readers multiply prefixes of the same shape.
  int64_t product = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0) {
      fail(Code::limit, "{}: {} has a negative dimension", what, to_string(shape));
    }
    product = checked_mul(product, dimension, what);
  }
  return product;
}

std::string to_string(std::span<const int64_t> shape) {
  if (shape.empty()) {
    return "scalar";
  }
  return fmt::format("{}", fmt::join(shape.begin(), shape.end(), " x "));
}

}  // namespace sluice
