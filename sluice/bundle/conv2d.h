// What is peculiar to convolutions in int8: the operator conv2d with a packed weight.
#pragma once
#include <cstdint>
#include <span>

#include "sluice/bundle/graph.h"

namespace sluice::bundle {

/// [O, C/groups, kh, kw] of a conv2d's weight, which is stored so or, packed, as [O, C/groups kh
/// kw] with kh and kw in the attribute 'kernel'. Of a node that was checked.
Shape conv2d_weight_shape(const Node& node, const TensorSpec& weight);

/// Whether a convolution with such a weight [O, C/groups, kh, kw] should round its input to int8
/// where the processor multiplies int8: 16 outputs and more than 4096 weights a group. Rounding is
/// work for every input, which many products outweigh: not in depthwise convolutions. Small ones
/// come first in a network, on large pictures with a wide range of values: of PP-OCRv4's recogniser
/// two of 32 and 64 channels cost most of the lines that rounding loses, and no time.
bool rounding_pays(const Shape& weight, int64_t groups);

/// Dynamic activations of a convolution: a sample [C,H,W], in any order, to codes with one scale,
/// max |x| / 127, which is returned. Codes are rounded to nearest, ties to even, from
/// x * (1 / scale): a product, because pictures are large. Zeros, and samples so small that
/// 1 / scale overflows f32, have scale 0; NaN or infinity give scale NaN, and with it results that
/// are NaN.
float quantize_sample(std::span<const float> x, int8_t* codes);

}  // namespace sluice::bundle
