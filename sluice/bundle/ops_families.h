// The operator table's parts, one source file each (ops_<family>.cpp).
#pragma once
#include <vector>

#include "sluice/bundle/ops.h"

namespace sluice::bundle {

std::vector<Operator> dense_operators();
std::vector<Operator> binary_operators();
std::vector<Operator> sparse_operators();
std::vector<Operator> conditional_operators();
std::vector<Operator> rows_operators();
std::vector<Operator> attention_operators();
std::vector<Operator> text_operators();
std::vector<Operator> array_operators();
std::vector<Operator> recurrent_operators();

}  // namespace sluice::bundle
