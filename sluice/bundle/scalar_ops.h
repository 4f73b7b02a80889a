// The scalar functions behind the operators `unary` and `binary` (docs/formats.md): what their
// kinds are called and what they compute, in double precision. Constant folding and the reference
// use them as they are; the engine's kernels are compared with them.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace sluice::bundle {

enum class Unary : uint8_t {
  linear,            ///< alpha x + beta
  clip,              ///< min(max(x, alpha), beta)
  leaky_relu,        ///< x >= 0 ? x : alpha x
  elu,               ///< x >= 0 ? beta x : beta alpha (exp(x) - 1)
  celu,              ///< max(0, x) + min(0, alpha (exp(x / alpha) - 1))
  hard_sigmoid,      ///< max(0, min(1, alpha x + beta))
  thresholded_relu,  ///< x > alpha ? x : 0
  shrink,            ///< x < -alpha ? x + beta : x > alpha ? x - beta : 0
  abs,
  neg,
  exp,
  log,
  sqrt,
  reciprocal,
  square,
  erf,
  floor,
  ceil,
  round,
  trunc,
  sign,  ///< round: to the nearest, ties to even
  sin,
  cos,
  tan,
  asin,
  acos,
  atan,
  sinh,
  cosh,
  asinh,
  acosh,
  atanh,
  softplus,    ///< log(exp(x) + 1)
  softsign,    ///< x / (1 + |x|)
  logical_not  ///< x == 0 ? 1 : 0
};

enum class Binary : uint8_t {
  add,
  sub,
  mul,
  div,
  pow,
  min,
  max,
  mod,   ///< sign of the divisor
  fmod,  ///< sign of the dividend
  equal,
  less,
  less_equal,
  greater,
  greater_equal,  ///< 1 or 0
  logical_and,
  logical_or,
  logical_xor  ///< of values that are 0 or not
};

std::optional<Unary> unary_from_name(std::string_view name);
std::string_view unary_name(Unary kind);
std::span<const std::string_view> unary_names();
double unary_value(Unary kind, double x, double alpha, double beta);

/// Comparisons and logic: the result is 0 or 1.
inline bool is_question(Binary kind) { return kind >= Binary::equal; }

std::optional<Binary> binary_from_name(std::string_view name);
std::string_view binary_name(Binary kind);
std::span<const std::string_view> binary_names();
double binary_value(Binary kind, double a, double b);

}  // namespace sluice::bundle
