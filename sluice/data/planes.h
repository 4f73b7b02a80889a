// Pictures as planes of floats, for what is done to pixels: crops, turns, degradations, quality.
#pragma once
#include <cstdint>
#include <vector>

#include "sluice/data/image.h"

namespace sluice::data {

struct Planes {
  int64_t channels = 0, height = 0, width = 0;
  std::vector<float> values;  ///< channels x height x width, 0 black to 1 white

  int64_t pixels() const { return height * width; }
  float& at(int64_t c, int64_t y, int64_t x) {
    return values[static_cast<size_t>((c * height + y) * width + x)];
  }
  float at(int64_t c, int64_t y, int64_t x) const {
    return values[static_cast<size_t>((c * height + y) * width + x)];
  }
};

/// With 1 or 3 channels: grey pictures get three equal ones, colours become grey (to_grey). Throws
/// Error{usage} for another number.
Planes to_planes(const Image& image, int64_t channels = 3);
/// Clamped to 0..1 and rounded.
Image to_image(const Planes& planes);
/// Throws Error{usage} naming both sizes when the window leaves the picture.
Planes crop(const Planes& planes, int64_t top, int64_t left, int64_t height, int64_t width);
/// One of the eight symmetries of a square: `turns` mod 4 quarter turns counter-clockwise, from 4
/// on mirrored first.
Planes turned(const Planes& planes, int turns);

}  // namespace sluice::data
