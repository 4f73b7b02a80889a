// What is peculiar to convolutions in int8: the operator conv2d with a packed weight.
#pragma once
#include <cstdint>
#include <span>

#include "sluice/bundle/graph.h"

namespace sluice::bundle {

/// [O, C/groups, kh, kw] of a conv2d's weight, which is stored so or, packed, as [O, C/groups kh
/// kw] with kh and kw in the attribute 'kernel'. Of a node that was checked.
Shape conv2d_weight_shape(const Node& node, const TensorSpec& weight);

/// Whether a convolution with such a weight [O, C/groups, kh, kw] is faster on inputs that are
/// rounded to int8 first, where the processor multiplies int8: rounding is work for every input,
/// which many products per input outweigh. Depthwise convolutions and those of pictures are not.
bool rounding_pays(const Shape& weight, int64_t groups);

/// Dynamic activations of a convolution: a sample [C,H,W], in any order, to codes with one scale,
/// max |x| / 127, which is returned. Codes are rounded to nearest, ties to even, from
/// x * (1 / scale): a product, because pictures are large. Zeros, and samples so small that
/// 1 / scale overflows f32, have scale 0; NaN or infinity give scale NaN, and with it results that
/// are NaN.
float quantize_sample(std::span<const float> x, int8_t* codes);

}  // namespace sluice::bundle
