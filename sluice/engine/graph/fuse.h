// The first half of planning: which nodes run as one step, with batch norms and constant scales
// folded into the weights.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

/// Nodes that run together. Groups are in execution order: every input is the output of an earlier
/// group or of the graph.
struct Group {
  size_t main = 0;                  ///< index of the node that names the group
  std::vector<size_t> fused;        ///< nodes folded into it, in order
  std::vector<std::string> inputs;  ///< values
  std::string output;
  /// conv2d, linear: after folding. The bundle's own bytes where nothing was folded in, otherwise
  /// `folded`.
  std::span<const float> weight;
  std::vector<float> folded, bias;  ///< bias may be empty
  std::vector<float> scales;        ///< of a packed conv2d: of its output channels, after folding
  double density = 1;  ///< share of the weights that are not 0, of a linear or 1 x 1 conv2d
  /// A linear whose weight is packed or whose input is rounded: `weight` is empty, and nothing is
  /// folded into it; or a conv2d that multiplies codes, with `scales` to fold into. A packed conv2d
  /// whose input is not rounded is none: `weight` has the values its codes stand for.
  bool packed = false;
  bool adds = false;  ///< the last of `inputs` is added to a product's result
  Activation activation = Activation::none;  ///< after everything else, but
  float factor = 1, offset = 0;              ///< a conv2d's result times this plus that
};

/// Fusion needs a value with one consumer that is no output of the graph:
///   conv2d | linear, then batch_norm and scale (folded), then activation, or add and activation
///   (a packed linear and a prefix_conv2d without the folding); after a conv2d's activation, unary
///   linear
///   add | gathered_conv2d, then activation
std::vector<Group> group_nodes(const bundle::Bundle& bundle, bool fuse);

/// Per-channel factor and offset of a batch_norm node.
struct ScaleShift {
  std::vector<float> scale, shift;
};
ScaleShift batch_norm_factors(const bundle::Bundle& bundle, const bundle::Node& node);

}  // namespace sluice::engine
