// Operators on arrays as ONNX operators. Values have the batch in front: dimension i is ONNX's
// i + 1.
#include <algorithm>
#include <map>

#include "sluice/bundle/export/onnx/writer.h"
#include "sluice/bundle/scalar_ops.h"

namespace sluice::bundle::onnx {
namespace {

std::vector<int64_t> ints(const Writer& to, const char* name) {
  const bundle::Attribute& value = to.current().attrs.at(name);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) return *list;
  return {std::get<int64_t>(value)};
}

int64_t axis(const Writer& to, const std::string& value) {
  return attr_int(to.current().attrs, "axis", std::ssize(to.shape(value)) - 1) + 1;
}

void reshape(Writer& to) { to.reshaped(in(to), to.shape(out(to)), out(to)); }

void transpose(Writer& to) {
  std::vector<int64_t> perm{0};
  for (const int64_t each : ints(to, "perm")) perm.push_back(each + 1);
  to.node("Transpose", {in(to)}, {{"perm", perm}}, out(to));
}

void concat(Writer& to) {
  to.node("Concat", to.current().inputs, {{"axis", axis(to, in(to))}}, out(to));
}

void slice(Writer& to) {
  const int64_t at = axis(to, in(to)), start = attr_int(to.current().attrs, "start", 0),
                size = to.shape(out(to))[static_cast<size_t>(at - 1)];
  to.node("Slice", {in(to), to.integers({start}), to.integers({start + size}), to.integers({at})},
          {}, out(to));
}

void gather(Writer& to) {
  to.node("Gather", {in(to), to.integers(ints(to, "indices"))}, {{"axis", axis(to, in(to))}},
          out(to));
}

void pad(Writer& to) {
  std::vector<int64_t> pads{0};
  for (const int64_t each : ints(to, "before")) pads.push_back(each);
  pads.push_back(0);
  for (const int64_t each : ints(to, "after")) pads.push_back(each);
  const float value = static_cast<float>(attr_double(to.current().attrs, "value", 0));
  to.node("Pad", {in(to), to.integers(pads), to.number(value)}, {}, out(to));
}

void constant(Writer& to) {
  // One for every sample of the batch.
  const std::string batch =
      to.node("Shape", {in(to)}, {{"start", int64_t{0}}, {"end", int64_t{1}}});
  const Shape& shape = to.shape(out(to));
  const std::string sizes = to.node("Concat", {batch, to.integers(shape)}, {{"axis", int64_t{0}}});
  to.node("Expand", {to.stored("value"), sizes}, {}, out(to));
}

/// Dimensions are aligned at the last one: the batch has to stay in front.
std::string aligned(Writer& to, const std::string& value, size_t rank) {
  Shape shape = to.shape(value);
  if (shape.size() == rank) return value;
  shape.insert(shape.begin(), rank - shape.size(), 1);
  return to.reshaped(value, shape);
}

void matmul(Writer& to) {
  const size_t rank = to.shape(out(to)).size();
  std::string a = aligned(to, in(to, 0), rank), b = aligned(to, in(to, 1), rank);
  if (attr_bool(to.current().attrs, "transpose_b", false)) {
    std::vector<int64_t> perm;
    for (size_t i = 0; i <= rank; ++i) perm.push_back(static_cast<int64_t>(i));
    std::swap(perm[rank], perm[rank - 1]);
    b = to.node("Transpose", {b}, {{"perm", perm}});
  }
  const float scale = static_cast<float>(attr_double(to.current().attrs, "scale", 1));
  if (scale == 1) {
    to.node("MatMul", {a, b}, {}, out(to));
    return;
  }
  to.node("Mul", {to.node("MatMul", {a, b}), to.number(scale)}, {}, out(to));
}

std::string truth(Writer& to, const std::string& value) {
  return to.node("Cast", {value}, {{"to", int64_t{9}}});
}

void binary(Writer& to) {
  static const std::map<std::string, const char*> names = {
      {"add", "Add"},         {"sub", "Sub"},
      {"mul", "Mul"},         {"div", "Div"},
      {"pow", "Pow"},         {"min", "Min"},
      {"max", "Max"},         {"fmod", "Mod"},
      {"equal", "Equal"},     {"less", "Less"},
      {"greater", "Greater"}, {"less_equal", "LessOrEqual"},
      {"and", "And"},         {"or", "Or"},
      {"xor", "Xor"},         {"greater_equal", "GreaterOrEqual"}};
  const std::string kind = attr_string(to.current().attrs, "kind", "");
  const size_t rank = to.shape(out(to)).size();
  std::string a = aligned(to, in(to), rank),
              b = to.has("other") ? to.stored("other") : aligned(to, in(to, 1), rank);
  if (attr_bool(to.current().attrs, "reversed", false)) std::swap(a, b);
  if (kind == "mod") {
    // a - floor(a / b) b
    const std::string whole = to.node("Floor", {to.node("Div", {a, b})});
    to.node("Sub", {a, to.node("Mul", {whole, b})}, {}, out(to));
    return;
  }
  const bool logical = kind == "and" || kind == "or" || kind == "xor";
  if (logical) {
    a = truth(to, a);
    b = truth(to, b);
  }
  const bool question = is_question(*binary_from_name(kind));
  std::vector<Attribute> attributes;
  if (kind == "fmod") attributes.push_back({"fmod", int64_t{1}});
  if (!question) {
    to.node(names.at(kind), {a, b}, attributes, out(to));
    return;
  }
  to.node("Cast", {to.node(names.at(kind), {a, b})}, {{"to", int64_t{1}}}, out(to));
}

void unary(Writer& to) {
  static const std::map<std::string, const char*> simple = {
      {"abs", "Abs"},           {"neg", "Neg"},           {"exp", "Exp"},
      {"log", "Log"},           {"sqrt", "Sqrt"},         {"erf", "Erf"},
      {"floor", "Floor"},       {"ceil", "Ceil"},         {"round", "Round"},
      {"sign", "Sign"},         {"sin", "Sin"},           {"cos", "Cos"},
      {"tan", "Tan"},           {"asin", "Asin"},         {"acos", "Acos"},
      {"atan", "Atan"},         {"sinh", "Sinh"},         {"cosh", "Cosh"},
      {"asinh", "Asinh"},       {"acosh", "Acosh"},       {"atanh", "Atanh"},
      {"softplus", "Softplus"}, {"softsign", "Softsign"}, {"reciprocal", "Reciprocal"}};
  const std::string kind = attr_string(to.current().attrs, "kind", "");
  const std::string& x = in(to);
  const float alpha = static_cast<float>(attr_double(to.current().attrs, "alpha", 0)),
              beta = static_cast<float>(attr_double(to.current().attrs, "beta", 0));
  if (const auto found = simple.find(kind); found != simple.end()) {
    to.node(found->second, {x}, {}, out(to));
  } else if (kind == "linear") {
    if (beta == 0) {
      to.node("Mul", {x, to.number(alpha)}, {}, out(to));
    } else {
      const std::string scaled = alpha == 1 ? x : to.node("Mul", {x, to.number(alpha)});
      to.node("Add", {scaled, to.number(beta)}, {}, out(to));
    }
  } else if (kind == "clip") {
    to.node("Clip", {x, to.number(alpha), to.number(beta)}, {}, out(to));
  } else if (kind == "square") {
    to.node("Mul", {x, x}, {}, out(to));
  } else if (kind == "leaky_relu") {
    to.node("LeakyRelu", {x}, {{"alpha", alpha}}, out(to));
  } else if (kind == "elu") {
    to.node("Selu", {x}, {{"alpha", alpha}, {"gamma", beta}}, out(to));
  } else if (kind == "celu") {
    to.node("Celu", {x}, {{"alpha", alpha}}, out(to));
  } else if (kind == "hard_sigmoid") {
    to.node("HardSigmoid", {x}, {{"alpha", alpha}, {"beta", beta}}, out(to));
  } else if (kind == "thresholded_relu") {
    to.node("ThresholdedRelu", {x}, {{"alpha", alpha}}, out(to));
  } else if (kind == "shrink") {
    to.node("Shrink", {x}, {{"lambd", alpha}, {"bias", beta}}, out(to));
  } else if (kind == "trunc") {
    const std::string whole = to.node("Floor", {to.node("Abs", {x})});
    to.node("Mul", {to.node("Sign", {x}), whole}, {}, out(to));
  } else if (kind == "not") {
    to.node("Cast", {to.node("Equal", {x, to.number(0)})}, {{"to", int64_t{1}}}, out(to));
  } else {
    to.refuse("ONNX has no operator for kind '" + kind + "'");
  }
}

void where(Writer& to) {
  const size_t rank = to.shape(out(to)).size();
  const std::string condition = truth(to, aligned(to, in(to, 0), rank)),
                    a = aligned(to, in(to, 1), rank), b = aligned(to, in(to, 2), rank);
  to.node("Where", {condition, a, b}, {}, out(to));
}

void reduce(Writer& to) {
  const std::string kind = attr_string(to.current().attrs, "kind", "");
  std::vector<int64_t> axes = ints(to, "axes");
  for (int64_t& each : axes) ++each;
  if (kind.starts_with("arg")) {
    const std::string found = to.node(kind == "argmax" ? "ArgMax" : "ArgMin", {in(to)},
                                      {{"axis", axes[0]}, {"keepdims", int64_t{1}}});
    to.node("Cast", {found}, {{"to", int64_t{1}}}, out(to));
    return;
  }
  if (kind == "sum") {
    to.node("ReduceSum", {in(to), to.integers(axes)}, {{"keepdims", int64_t{1}}}, out(to));
    return;
  }
  const char* op = kind == "mean"  ? "ReduceMean"
                   : kind == "max" ? "ReduceMax"
                   : kind == "min" ? "ReduceMin"
                                   : "ReduceProd";
  to.node(op, {in(to)}, {{"axes", axes}, {"keepdims", int64_t{1}}}, out(to));
}

}  // namespace

std::vector<ExportEntry> array_exports() {
  return {{"reshape", reshape},   {"transpose", transpose}, {"concat", concat},
          {"slice", slice},       {"gather", gather},       {"pad", pad},
          {"constant", constant}, {"matmul", matmul},       {"binary", binary},
          {"unary", unary},       {"where", where},         {"reduce", reduce}};
}

}  // namespace sluice::bundle::onnx
