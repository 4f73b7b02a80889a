// The networks of the comparison: VanillaNet in its training form and in its deployed form.
#pragma once
#include "sluice/data/dataset.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes::vanillanet {

struct Layout {
  std::vector<int64_t> widths;   ///< of the stem and behind each stage
  std::vector<int64_t> strides;  ///< of the max pool of each stage; 1: none
  int64_t series = 3;            ///< n of the series activation; 0: a plain relu
  int64_t stem_stride = 2;
};

/// `deep`: pairs of 1x1 convolutions with a fading activation between them, as it is trained;
/// otherwise one layer in place of each pair, as it is deployed. Every convolution has its batch
/// norm; the series activation is relu, a depthwise (2n+1)x(2n+1) convolution and a norm.
lab::Model make_network(const Layout& layout, bool deep, const data::ImageSet& data, uint64_t seed);

/// Convolutions and linear layers on the way through the network.
int64_t layer_count(const lab::Model& model);

}  // namespace sluice::recipes::vanillanet
