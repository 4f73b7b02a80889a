#include "sluice/bundle/rows.h"

#include <vector>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

std::string set_of(const RowSets& rows, const std::string& value) {
  const auto it = rows.of.find(value);
  return it == rows.of.end() ? "" : it->second;
}

std::string describe(const std::string& set) {
  return set.empty() ? "all rows" : "the rows kept by '" + printable(set) + "'";
}

int64_t per_sample(const RowSets& rows, const std::string& set) {
  return set.empty() ? 1 : rows.sets.at(set).per_sample;
}

void require_same(const Node& node, const std::string& place, const RowSets& rows, size_t a,
                  size_t b) {
  const std::string first = set_of(rows, node.inputs[a]), second = set_of(rows, node.inputs[b]);
  if (first != second)
    fail(Code::shape,
         "{}: input '{}' has {}, input '{}' has {}; compact both with the same keep, or scatter "
         "first",
         place, printable(node.inputs[a]), describe(first), printable(node.inputs[b]),
         describe(second));
}

void add_compact(const Node& node, const std::map<std::string, Shape>& shapes,
                 const std::string& place, RowSets& rows) {
  require_same(node, place, rows, 0, 1);
  const std::string parent = set_of(rows, node.inputs[0]);
  const int64_t count = shapes.at(node.inputs[1])[0], before = per_sample(rows, parent);
  if (before != 1 && count != before)
    fail(Code::shape,
         "{}: keep has one number per sample, but rows of '{}' left before; scatter them first",
         place, printable(node.inputs[0]));
  rows.sets.insert({node.inputs[1], {parent, count}});
  rows.of[node.output] = node.inputs[1];
}

/// attention whose queries are those that `keep` leaves of the keys' rows.
void add_fewer_queries(const Node& node, const std::string& place, RowSets& rows) {
  require_same(node, place, rows, 1, 2);
  require_same(node, place, rows, 1, 3);
  const std::string queries = set_of(rows, node.inputs[0]);
  if (queries != node.inputs[3])
    fail(Code::shape, "{}: input '{}' has {}; expected those that compact_rows kept by '{}'", place,
         printable(node.inputs[0]), describe(queries), printable(node.inputs[3]));
  rows.of[node.output] = queries;
}

void add_scatter(const Node& node, const std::string& place, RowSets& rows) {
  require_same(node, place, rows, 0, 2);
  const std::string inner = set_of(rows, node.inputs[1]);
  if (inner != node.inputs[2])
    fail(Code::shape, "{}: input '{}' has {}; expected those that compact_rows kept by '{}'", place,
         printable(node.inputs[1]), describe(inner), printable(node.inputs[2]));
  const std::string outer = set_of(rows, node.inputs[0]);
  if (!outer.empty()) rows.of[node.output] = outer;
}

}  // namespace

bool attends_from_some(const Node& node) {
  return node.op == "attention" && node.inputs.size() == 4 &&
         !attr_bool(node.attrs, "gated", false);
}

Rows rows_rule(const Node& node, const std::map<std::string, Shape>& shapes,
               const std::map<std::string, TensorSpec>& tensors) {
  const Operator* op = find_operator(node.op);
  if (!op || !op->rows) return Rows::mixed;
  std::vector<Shape> inputs;
  for (const std::string& name : node.inputs) inputs.push_back(shapes.at(name));
  std::map<std::string, TensorSpec> by_role;
  for (const auto& [role, name] : node.tensors) by_role.emplace(role, tensors.at(name));
  return op->rows({node, inputs, by_role});
}

void add_rows(const Node& node, const std::map<std::string, Shape>& shapes,
              const std::map<std::string, TensorSpec>& tensors, const std::string& what,
              RowSets& rows) {
  const std::string place = place_of(node, what);
  if (node.op == "compact_rows") return add_compact(node, shapes, place, rows);
  if (node.op == "scatter_rows") return add_scatter(node, place, rows);
  if (attends_from_some(node)) return add_fewer_queries(node, place, rows);
  for (size_t i = 1; i < node.inputs.size(); ++i) require_same(node, place, rows, 0, i);
  std::string set = set_of(rows, node.inputs[0]);
  if (set.empty()) return;
  if (per_sample(rows, set) > 1) {
    switch (rows_rule(node, shapes, tensors)) {
      case Rows::apart:
      case Rows::grouped:
        break;
      case Rows::pooled:
        while (per_sample(rows, set) > 1) set = rows.sets.at(set).parent;
        break;
      case Rows::mixed:
      case Rows::ordered:
        fail(Code::shape,
             "{}: input '{}' has {} and the operator needs every row in its place; scatter them "
             "first",
             place, printable(node.inputs[0]), describe(set));
    }
  }
  if (!set.empty()) rows.of[node.output] = set;
}

void require_all_rows(const std::string& output, const std::string& what, const RowSets& rows) {
  const std::string set = set_of(rows, output);
  if (!set.empty())
    fail(Code::shape, "{}: output '{}' has {}; scatter them into the others", what,
         printable(output), describe(set));
}

}  // namespace sluice::bundle
