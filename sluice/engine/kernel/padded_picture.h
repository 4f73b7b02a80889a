// The picture with its zero border that our own convolutions read.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

struct PaddedPicture {
  int64_t height = 0, width = 0;
  int64_t bytes = 0;  ///< of all channels, f32
};

inline bool is_padded(const onednn::ConvShape& shape) {
  return shape.padding[0] > 0 || shape.padding[1] > 0;
}

/// As large as the last window reaches; without padding the picture itself. Throws Error{limit}
/// naming `what` above 2^32 bytes.
inline PaddedPicture padded_picture(const onednn::ConvShape& shape, const std::string& what) {
  const auto reach = [&](int i, int64_t size, int64_t made) {
    if (!is_padded(shape)) return size;
    return std::max(size + shape.padding[i],
                    (made - 1) * shape.stride[i] + (shape.kernel[i] - 1) * shape.dilation[i] + 1);
  };
  PaddedPicture picture{reach(0, shape.in_height, shape.out_height),
                        reach(1, shape.in_width, shape.out_width)};
  constexpr int64_t kFloat = sizeof(float);
  picture.bytes = checked_mul(checked_mul(picture.height, picture.width, "padded picture"),
                              shape.in_channels * kFloat, "padded picture");
  if (picture.bytes > int64_t{1} << 32) {
    fail(Code::limit, "{}: the padded picture {} x {} x {} is too large", what, shape.in_channels,
         picture.height, picture.width);
  }
  return picture;
}

}  // namespace sluice::engine
