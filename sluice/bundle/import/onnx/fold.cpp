#include "sluice/bundle/import/onnx/fold.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sluice/base/error.h"

namespace sluice::bundle::onnx {
namespace {

using Index = std::vector<int64_t>;

Index strides_of(const Shape& shape) {
  Index strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

/// Strides of `shape` repeated to `out`, aligned at the last dimension.
Index repeated(const Shape& shape, const Shape& out) {
  const Index strides = strides_of(shape);
  Index result(out.size(), 0);
  for (size_t i = 0; i < shape.size(); ++i)
    if (shape[i] != 1) result[out.size() - shape.size() + i] = strides[i];
  return result;
}

/// Calls each(index, element number) in row-major order.
template <class F>
void for_all(const Shape& shape, F each) {
  const int64_t count = numel(shape);
  Index index(shape.size(), 0);
  for (int64_t n = 0; n < count; ++n) {
    each(index, static_cast<size_t>(n));
    for (size_t i = shape.size(); i-- > 0;) {
      if (++index[i] < shape[i]) break;
      index[i] = 0;
    }
  }
}

size_t dot(const Index& index, const Index& strides) {
  int64_t at = 0;
  for (size_t i = 0; i < index.size(); ++i) at += index[i] * strides[i];
  return static_cast<size_t>(at);
}

/// Elements of `x` picked by from(index) of the result.
template <class F>
ConstantPtr pick(const Constant& x, const Shape& shape, F from) {
  auto result = std::make_shared<Constant>();
  result->shape = shape;
  result->integer = x.integer;
  const size_t count = static_cast<size_t>(numel(shape));
  if (x.integer) {
    result->integers.reserve(count);
  } else {
    result->reals.reserve(count);
  }
  for_all(shape, [&](const Index& index, size_t) {
    const size_t at = from(index);
    if (x.integer) {
      result->integers.push_back(x.integers[at]);
    } else {
      result->reals.push_back(x.reals[at]);
    }
  });
  return result;
}

int64_t to_integer(double value) {
  if (std::isnan(value)) return 0;
  if (value >= 9.2e18) return std::numeric_limits<int64_t>::max();
  if (value <= -9.2e18) return std::numeric_limits<int64_t>::min();
  return static_cast<int64_t>(value);
}

/// Wraps around, as integers of ONNX do.
int64_t integer_value(Binary kind, int64_t a, int64_t b) {
  const auto ua = static_cast<uint64_t>(a), ub = static_cast<uint64_t>(b);
  switch (kind) {
    case Binary::add:
      return static_cast<int64_t>(ua + ub);
    case Binary::sub:
      return static_cast<int64_t>(ua - ub);
    case Binary::mul:
      return static_cast<int64_t>(ua * ub);
    case Binary::min:
      return std::min(a, b);
    case Binary::max:
      return std::max(a, b);
    case Binary::div:
    case Binary::mod:
    case Binary::fmod: {
      if (b == 0) fail(Code::numeric, "an integer divided by zero");
      if (b == -1) return kind == Binary::div ? static_cast<int64_t>(0 - ua) : 0;
      if (kind == Binary::div) return a / b;
      const int64_t r = a % b;
      return kind == Binary::mod && r != 0 && (r < 0) != (b < 0) ? r + b : r;
    }
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
    default:
      return to_integer(binary_value(kind, static_cast<double>(a), static_cast<double>(b)));
  }
}

}  // namespace

ConstantPtr make_constant(Shape shape, std::vector<float> values) {
  auto result = std::make_shared<Constant>();
  result->shape = std::move(shape);
  result->reals = std::move(values);
  return result;
}

ConstantPtr make_constant(Shape shape, std::vector<int64_t> values) {
  auto result = std::make_shared<Constant>();
  result->shape = std::move(shape);
  result->integer = true;
  result->integers = std::move(values);
  return result;
}

ConstantPtr fold_reshape(const Constant& x, Shape shape) {
  auto result = std::make_shared<Constant>(x);
  result->shape = std::move(shape);
  return result;
}

ConstantPtr fold_transpose(const Constant& x, const std::vector<int64_t>& perm) {
  const Index strides = strides_of(x.shape);
  Shape shape;
  Index turned;
  for (const int64_t axis : perm) {
    shape.push_back(x.shape[static_cast<size_t>(axis)]);
    turned.push_back(strides[static_cast<size_t>(axis)]);
  }
  return pick(x, shape, [&](const Index& index) { return dot(index, turned); });
}

ConstantPtr fold_concat(const std::vector<ConstantPtr>& parts, size_t axis) {
  Shape shape = parts[0]->shape;
  shape[axis] = 0;
  for (const ConstantPtr& part : parts) shape[axis] += part->shape[axis];
  auto result = std::make_shared<Constant>();
  result->shape = shape;
  result->integer = parts[0]->integer;
  size_t outer = 1;
  for (size_t i = 0; i < axis; ++i) outer *= static_cast<size_t>(shape[i]);
  for (size_t o = 0; o < outer; ++o) {
    for (const ConstantPtr& part : parts) {
      const size_t run = part->size() / outer;
      for (size_t i = o * run; i < (o + 1) * run; ++i) {
        if (result->integer) {
          result->integers.push_back(part->integer ? part->integers[i]
                                                   : to_integer(part->reals[i]));
        } else {
          result->reals.push_back(static_cast<float>(part->at(i)));
        }
      }
    }
  }
  return result;
}

ConstantPtr fold_gather(const Constant& x, size_t axis, const std::vector<int64_t>& indices) {
  const Index strides = strides_of(x.shape);
  Shape shape = x.shape;
  shape[axis] = std::ssize(indices);
  return pick(x, shape, [&](const Index& index) {
    return dot(index, strides) +
           static_cast<size_t>((indices[static_cast<size_t>(index[axis])] - index[axis]) *
                               strides[axis]);
  });
}

ConstantPtr fold_pad(const Constant& x, const std::vector<int64_t>& before, const Shape& shape,
                     double value) {
  auto result = std::make_shared<Constant>();
  result->shape = shape;
  result->integer = x.integer;
  const Index strides = strides_of(x.shape);
  for_all(shape, [&](const Index& index, size_t) {
    int64_t at = 0;
    bool inside = true;
    for (size_t i = 0; i < index.size(); ++i) {
      const int64_t from = index[i] - before[i];
      inside = inside && from >= 0 && from < x.shape[i];
      at += from * strides[i];
    }
    if (x.integer) {
      result->integers.push_back(inside ? x.integers[static_cast<size_t>(at)] : to_integer(value));
    } else {
      result->reals.push_back(inside ? x.reals[static_cast<size_t>(at)]
                                     : static_cast<float>(value));
    }
  });
  return result;
}

ConstantPtr fold_binary(Binary kind, const Constant& a, const Constant& b) {
  auto result = std::make_shared<Constant>();
  result->shape = broadcast_shapes(a.shape, b.shape);
  const bool integers = a.integer && b.integer;
  result->integer = integers || is_question(kind);
  const Index at_a = repeated(a.shape, result->shape), at_b = repeated(b.shape, result->shape);
  for_all(result->shape, [&](const Index& index, size_t) {
    const size_t i = dot(index, at_a), k = dot(index, at_b);
    if (integers) {
      result->integers.push_back(integer_value(kind, a.integers[i], b.integers[k]));
    } else if (result->integer) {
      result->integers.push_back(binary_value(kind, a.at(i), b.at(k)) != 0);
    } else {
      result->reals.push_back(static_cast<float>(binary_value(kind, a.at(i), b.at(k))));
    }
  });
  return result;
}

ConstantPtr fold_unary(Unary kind, const Constant& x, double alpha, double beta) {
  auto result = std::make_shared<Constant>();
  result->shape = x.shape;
  result->integer = x.integer;
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = unary_value(kind, x.at(i), alpha, beta);
    if (x.integer) {
      result->integers.push_back(to_integer(value));
    } else {
      result->reals.push_back(static_cast<float>(value));
    }
  }
  return result;
}

ConstantPtr fold_where(const Constant& condition, const Constant& a, const Constant& b) {
  auto result = std::make_shared<Constant>();
  result->shape = broadcast_shapes(broadcast_shapes(condition.shape, a.shape), b.shape);
  result->integer = a.integer && b.integer;
  const Index at_c = repeated(condition.shape, result->shape),
              at_a = repeated(a.shape, result->shape), at_b = repeated(b.shape, result->shape);
  for_all(result->shape, [&](const Index& index, size_t) {
    const bool first = condition.at(dot(index, at_c)) != 0;
    const Constant& from = first ? a : b;
    const size_t i = dot(index, first ? at_a : at_b);
    if (result->integer) {
      result->integers.push_back(from.integers[i]);
    } else {
      result->reals.push_back(static_cast<float>(from.at(i)));
    }
  });
  return result;
}

ConstantPtr fold_reduce(Reduce kind, const Constant& x, const std::vector<int64_t>& axes) {
  Shape shape = x.shape;
  for (const int64_t axis : axes) shape[static_cast<size_t>(axis)] = 1;
  const size_t results = static_cast<size_t>(numel(shape));
  const Index strides = repeated(shape, x.shape);
  std::vector<double> value(results, kind == Reduce::prod ? 1.0 : 0.0);
  std::vector<int64_t> seen(results, 0), best(results, 0);
  for_all(x.shape, [&](const Index& index, size_t n) {
    const size_t to = dot(index, strides);
    const double v = x.at(n);
    const bool first = seen[to]++ == 0;
    switch (kind) {
      case Reduce::sum:
      case Reduce::mean:
        value[to] += v;
        break;
      case Reduce::prod:
        value[to] *= v;
        break;
      default: {
        const bool most = kind == Reduce::max || kind == Reduce::argmax;
        if (first || (most ? v > value[to] : v < value[to])) {
          value[to] = v;
          best[to] = seen[to] - 1;
        }
      }
    }
  });
  auto result = std::make_shared<Constant>();
  result->shape = shape;
  const bool position = kind == Reduce::argmax || kind == Reduce::argmin;
  result->integer = x.integer || position;
  for (size_t i = 0; i < results; ++i) {
    double v = position ? static_cast<double>(best[i]) : value[i];
    if (kind == Reduce::mean) v /= static_cast<double>(std::max<int64_t>(seen[i], 1));
    if (result->integer) {
      result->integers.push_back(to_integer(v));
    } else {
      result->reals.push_back(static_cast<float>(v));
    }
  }
  return result;
}

ConstantPtr fold_matmul(const Constant& a, const Constant& b, const Shape& shape) {
  const size_t rows = static_cast<size_t>(shape[shape.size() - 2]),
               columns = static_cast<size_t>(shape.back()),
               inner = static_cast<size_t>(a.shape.back());
  const Shape outer(shape.begin(), shape.end() - 2), outer_a(a.shape.begin(), a.shape.end() - 2),
      outer_b(b.shape.begin(), b.shape.end() - 2);
  const Index at_a = repeated(outer_a, outer), at_b = repeated(outer_b, outer);
  std::vector<float> values;
  values.reserve(static_cast<size_t>(numel(shape)));
  for_all(outer, [&](const Index& index, size_t) {
    const size_t first_a = dot(index, at_a) * rows * inner,
                 first_b = dot(index, at_b) * inner * columns;
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns; ++c) {
        double sum = 0;
        for (size_t k = 0; k < inner; ++k)
          sum += a.at(first_a + r * inner + k) * b.at(first_b + k * columns + c);
        values.push_back(static_cast<float>(sum));
      }
    }
  });
  return make_constant(shape, std::move(values));
}

ConstantPtr fold_cast(const Constant& x, bool integer, bool boolean) {
  if (x.integer == integer && !boolean) return std::make_shared<Constant>(x);
  auto result = std::make_shared<Constant>();
  result->name = x.name;
  result->shape = x.shape;
  result->integer = integer;
  for (size_t i = 0; i < x.size(); ++i) {
    if (boolean) {
      result->integers.push_back(x.at(i) != 0);
    } else if (integer) {
      result->integers.push_back(to_integer(x.at(i)));
    } else {
      result->reals.push_back(static_cast<float>(x.at(i)));
    }
  }
  return result;
}

}  // namespace sluice::bundle::onnx
