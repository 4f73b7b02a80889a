// How operators look at their node: inputs that must be known, attributes, dimensions.
#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/import/onnx/lowering.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::onnx {

void Call::refuse(Code code, const std::string& problem) const {
  fail(code, "{}: node '{}' ({}): {}", what, printable(to.path(), 80), printable(node.op, 40),
       problem);
}

const Val& Call::in(size_t i) const {
  if (!has(i)) refuse(Code::format, fmt::format("input {} is missing", i));
  return *inputs[i];
}

const Constant& Call::known(size_t i, const char* name) const {
  const Val& value = in(i);
  if (!value.constant)
    refuse(Code::unsupported,
           fmt::format("'{}' hangs on the input of the model; it must be a constant", name));
  return *value.constant;
}

std::vector<int64_t> Call::integers(size_t i, const char* name) const {
  const Constant& value = known(i, name);
  if (!value.integer)
    refuse(Code::dtype, fmt::format("'{}': expected integers, found other numbers", name));
  return value.integers;
}

double Call::number(size_t i, const char* name) const {
  const Constant& value = known(i, name);
  if (value.size() != 1)
    refuse(Code::shape, fmt::format("'{}': expected one number, found {}", name, value.size()));
  return value.at(0);
}

const AttributeSource* Call::find(const char* name, AttributeSource::Kind kind) const {
  const auto found = node.attributes.find(name);
  if (found == node.attributes.end()) return nullptr;
  if (found->second.kind != kind)
    refuse(Code::format, fmt::format("attribute '{}' is of another type than it should be", name));
  return &found->second;
}

int64_t Call::attr(const char* name, int64_t fallback) const {
  const AttributeSource* found = find(name, AttributeSource::Kind::integer);
  return found ? found->integer : fallback;
}
double Call::attr(const char* name, double fallback) const {
  const AttributeSource* found = find(name, AttributeSource::Kind::real);
  return found ? static_cast<double>(found->real) : fallback;
}
std::string Call::attr(const char* name, const char* fallback) const {
  const AttributeSource* found = find(name, AttributeSource::Kind::text);
  return found ? found->text : fallback;
}
std::vector<int64_t> Call::attr_list(const char* name, std::vector<int64_t> fallback) const {
  const AttributeSource* found = find(name, AttributeSource::Kind::integers);
  return found ? found->integers : fallback;
}

size_t Call::axis(int64_t value, size_t rank) const {
  const int64_t size = static_cast<int64_t>(rank);
  if (value < -size || value >= size)
    refuse(Code::shape, fmt::format("dimension {} of a value of {}", value, rank));
  return static_cast<size_t>(value < 0 ? value + size : value);
}

std::vector<int64_t> Call::axes(const std::vector<int64_t>& values, size_t rank) const {
  std::vector<int64_t> result;
  for (const int64_t value : values) result.push_back(static_cast<int64_t>(axis(value, rank)));
  std::sort(result.begin(), result.end());
  if (std::adjacent_find(result.begin(), result.end()) != result.end())
    refuse(Code::shape, "a dimension is given twice");
  return result;
}

const OperatorEntry* find_onnx_operator(std::string_view name) {
  static const std::vector<OperatorEntry> table = [] {
    std::vector<OperatorEntry> all;
    for (const auto family : {elementwise_operators, shape_operators, layer_operators,
                              window_operators, sequence_operators})
      for (const OperatorEntry& entry : family()) all.push_back(entry);
    return all;
  }();
  for (const OperatorEntry& entry : table)
    if (entry.name == name) return &entry;
  return nullptr;
}

}  // namespace sluice::bundle::onnx
