#include "sluice/bundle/ops.h"

#include "sluice/bundle/ops_families.h"

namespace sluice::bundle {
namespace {

std::vector<Operator> collect() {
  std::vector<Operator> operators;
  for (const auto family :
       {dense_operators, binary_operators, sparse_operators, rows_operators, attention_operators,
        conditional_operators, text_operators, array_operators, recurrent_operators}) {
    for (Operator& op : family()) operators.push_back(std::move(op));
  }
  return operators;
}

const std::vector<Operator>& table() {
  static const std::vector<Operator> operators = collect();
  return operators;
}

}  // namespace

const Operator* find_operator(std::string_view name) {
  for (const Operator& op : table())
    if (op.name == name) return &op;
  return nullptr;
}

std::span<const Operator> all_operators() { return table(); }

}  // namespace sluice::bundle
