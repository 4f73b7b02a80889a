// What the operators of ops_sparse.cpp and their kernels agree on.
#pragma once
#include <vector>

#include "sluice/bundle/ops.h"
#include "sluice/bundle/packed.h"

namespace sluice::bundle {

inline constexpr size_t kMaxSizes = 256;  ///< of a nested network

/// Leading rows and columns of a nested layer's weight [O,I] or [O,C,kh,kw].
struct PrefixSize {
  int64_t rows = 0, columns = 0;
};
/// The attributes 'rows' and 'columns' of a node with weight [O,I]: one size or a list, absent:
/// all. Throws Error{shape} for sizes outside of the weight and lists of different lengths.
std::vector<PrefixSize> prefix_sizes(const Attributes& attrs, int64_t rows, int64_t columns);

/// The attribute 'choice' of a size_switch node: which input each size takes. Throws Error{shape}.
std::vector<int64_t> switch_choices(const Attributes& attrs, int64_t inputs);

/// What a selector keeps, for one size of the network.
struct SelectSize {
  int64_t k = 0;
  double keep = 1, threshold = 0;
};
/// The attribute that the node's `select` uses (topk: k, statistical: keep, threshold: threshold),
/// a number or a list of 1 to kMaxSizes. Throws Error{shape|numeric} for numbers out of range.
std::vector<SelectSize> select_sizes(const Attributes& attrs);
/// The most MACs per sample of each size of a sparse_input_linear or sparse_ffn node.
std::vector<int64_t> select_macs(const OpInput& in, const Shape& output);
/// The attribute 'value' of a threshold node, likewise.
std::vector<double> threshold_values(const Attributes& attrs);

/// Whether the leading `part` of `columns` packed columns is a view. For bf16 and i8 always; for
/// formats with groups or bits when it is a multiple of 64, or all; for i4-32-min,
/// binary-2 and mixed only all.
bool prefix_columns_fit(Format format, int64_t columns, int64_t part);

}  // namespace sluice::bundle
