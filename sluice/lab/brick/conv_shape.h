// What a square convolution makes of a picture. Internal to brick.
#pragma once
#include <string_view>

#include "sluice/lab/brick/layers.h"

namespace sluice::lab {

/// [outputs, height, width] of input [inputs, height, width]. Throws Error{shape} naming `kind`
/// when the input is another or the kernel does not fit.
Shape conv2d_output_shape(const Conv2dOptions& options, const Shape& input, std::string_view kind);

}  // namespace sluice::lab
