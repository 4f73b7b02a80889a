// The tree behind describe.h: dotted paths split into rows that sum what is beneath them. Internal
// to bundle.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

/// A tensor of a node.
struct RowTensor {
  std::string role, name, format;
  Shape shape;  ///< logical
  int64_t bytes = 0;
};

struct Row {
  std::string name, path;
  std::string kind;  ///< of a node: "conv2d 3x3, stride 2"; of a tensor: its element type; "" for a
                     ///< mere folder
  std::string op;    ///< of a node
  Shape shape;  ///< of a node's output or a tensor; an inner row has the output of its last node
  std::vector<std::string> formats;  ///< different ones beneath, in order of appearance
  int64_t params = 0, macs = 0, bytes = 0;
  int64_t zeros = 0;               ///< zero elements among `params`
  int64_t leaves = 0;              ///< nodes or tensors in this row and beneath
  std::vector<RowTensor> tensors;  ///< of a node, by role
  std::vector<Row> children;
};

/// The root's numbers are the bundle's totals: a tensor that several nodes share counts once there
/// and in every row of a node that uses it.
Row describe_tree(const Bundle& bundle, bool sparsity);
Row describe_tree(const SafetensorsFile& file, bool sparsity);

/// Elements that are zero (-0.0 too).
int64_t count_zeros(const TensorView& tensor);
/// Weights whose value is zero, in any format. Throws as view_packed for bytes that are impossible.
int64_t count_zeros(const TensorSpec& spec, const TensorView& tensor);

}  // namespace sluice::bundle
