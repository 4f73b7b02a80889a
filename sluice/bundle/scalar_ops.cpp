#include "sluice/bundle/scalar_ops.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace sluice::bundle {
namespace {

// In the order of the enumerations.
constexpr std::array<std::string_view, 35> kUnary = {
    "linear", "clip",  "leaky_relu", "elu",   "celu",     "hard_sigmoid", "thresholded_relu",
    "shrink", "abs",   "neg",        "exp",   "log",      "sqrt",         "reciprocal",
    "square", "erf",   "floor",      "ceil",  "round",    "trunc",        "sign",
    "sin",    "cos",   "tan",        "asin",  "acos",     "atan",         "sinh",
    "cosh",   "asinh", "acosh",      "atanh", "softplus", "softsign",     "not"};
constexpr std::array<std::string_view, 17> kBinary = {
    "add",   "sub",  "mul",        "div",     "pow",           "min", "max", "mod", "fmod",
    "equal", "less", "less_equal", "greater", "greater_equal", "and", "or",  "xor"};
static_assert(kUnary.size() == static_cast<size_t>(Unary::logical_not) + 1);
static_assert(kBinary.size() == static_cast<size_t>(Binary::logical_xor) + 1);

template <class Enum, size_t N>
std::optional<Enum> find(const std::array<std::string_view, N>& names, std::string_view name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<Enum>(found - names.begin());
}

}  // namespace

std::optional<Unary> unary_from_name(std::string_view name) { return find<Unary>(kUnary, name); }
std::string_view unary_name(Unary kind) { return kUnary[static_cast<size_t>(kind)]; }
std::span<const std::string_view> unary_names() { return kUnary; }
std::optional<Binary> binary_from_name(std::string_view name) {
  return find<Binary>(kBinary, name);
}
std::string_view binary_name(Binary kind) { return kBinary[static_cast<size_t>(kind)]; }
std::span<const std::string_view> binary_names() { return kBinary; }

double unary_value(Unary kind, double x, double alpha, double beta) {
  switch (kind) {
    case Unary::linear:
      return alpha * x + beta;
    case Unary::clip:
      return std::min(std::max(x, alpha), beta);
    case Unary::leaky_relu:
      return x >= 0 ? x : alpha * x;
    case Unary::elu:
      return x >= 0 ? beta * x : beta * alpha * std::expm1(x);
    case Unary::celu:
      return std::max(x, 0.0) + std::min(alpha * std::expm1(x / alpha), 0.0);
    case Unary::hard_sigmoid:
      return std::min(std::max(alpha * x + beta, 0.0), 1.0);
    case Unary::thresholded_relu:
      return x > alpha ? x : 0;
    case Unary::shrink:
      return x < -alpha ? x + beta : x > alpha ? x - beta : 0;
    case Unary::abs:
      return std::abs(x);
    case Unary::neg:
      return -x;
    case Unary::exp:
      return std::exp(x);
    case Unary::log:
      return std::log(x);
    case Unary::sqrt:
      return std::sqrt(x);
    case Unary::reciprocal:
      return 1 / x;
    case Unary::square:
      return x * x;
    case Unary::erf:
      return std::erf(x);
    case Unary::floor:
      return std::floor(x);
    case Unary::ceil:
      return std::ceil(x);
    case Unary::round:
      return std::nearbyint(x);
    case Unary::trunc:
      return std::trunc(x);
    case Unary::sign:
      return x > 0 ? 1 : x < 0 ? -1 : x;
    case Unary::sin:
      return std::sin(x);
    case Unary::cos:
      return std::cos(x);
    case Unary::tan:
      return std::tan(x);
    case Unary::asin:
      return std::asin(x);
    case Unary::acos:
      return std::acos(x);
    case Unary::atan:
      return std::atan(x);
    case Unary::sinh:
      return std::sinh(x);
    case Unary::cosh:
      return std::cosh(x);
    case Unary::asinh:
      return std::asinh(x);
    case Unary::acosh:
      return std::acosh(x);
    case Unary::atanh:
      return std::atanh(x);
    case Unary::softplus:
      return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
    case Unary::softsign:
      return x / (1 + std::abs(x));
    case Unary::logical_not:
      return x == 0 ? 1 : 0;
  }
  return x;
}

double binary_value(Binary kind, double a, double b) {
  switch (kind) {
    case Binary::add:
      return a + b;
    case Binary::sub:
      return a - b;
    case Binary::mul:
      return a * b;
    case Binary::div:
      return a / b;
    case Binary::pow:
      return std::pow(a, b);
    case Binary::min:
      return std::isnan(a) ? a : b < a || std::isnan(b) ? b : a;
    case Binary::max:
      return std::isnan(a) ? a : b > a || std::isnan(b) ? b : a;
    case Binary::mod: {
      const double r = std::fmod(a, b);
      return r != 0 && (r < 0) != (b < 0) ? r + b : r;
    }
    case Binary::fmod:
      return std::fmod(a, b);
    case Binary::equal:
      return a == b;
    case Binary::less:
      return a < b;
    case Binary::less_equal:
      return a <= b;
    case Binary::greater:
      return a > b;
    case Binary::greater_equal:
      return a >= b;
    case Binary::logical_and:
      return a != 0 && b != 0;
    case Binary::logical_or:
      return a != 0 || b != 0;
    case Binary::logical_xor:
      return (a != 0) != (b != 0);
  }
  return a;
}

}  // namespace sluice::bundle
