#include "sluice/data/planes.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"

namespace sluice::data {

Planes to_planes(const Image& image, int64_t channels) {
  if (channels != 1 && channels != 3) {
    fail(Code::usage, "planes of a picture: expected 1 or 3 channels, found {}", channels);
  }
  const Image& from = channels == 1 && image.channels != 1 ? to_grey(image) : image;
  Planes planes{channels, image.height, image.width, {}};
  planes.values.resize(static_cast<size_t>(channels * planes.pixels()));
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t source = from.channels == 1 ? 0 : c;
    for (int64_t i = 0; i < planes.pixels(); ++i) {
      planes.values[static_cast<size_t>(c * planes.pixels() + i)] =
          static_cast<float>(from.pixels[static_cast<size_t>(i * from.channels + source)]) / 255.0f;
    }
  }
  return planes;
}

Image to_image(const Planes& planes) {
  Image image{planes.width, planes.height, planes.channels, {}};
  image.pixels.resize(planes.values.size());
  for (int64_t c = 0; c < planes.channels; ++c) {
    for (int64_t i = 0; i < planes.pixels(); ++i) {
      const float value = planes.values[static_cast<size_t>(c * planes.pixels() + i)];
      image.pixels[static_cast<size_t>(i * planes.channels + c)] =
          static_cast<uint8_t>(std::lround(255.0f * std::clamp(value, 0.0f, 1.0f)));
    }
  }
  return image;
}

Planes crop(const Planes& planes, int64_t top, int64_t left, int64_t height, int64_t width) {
  if (top < 0 || left < 0 || height < 1 || width < 1 || top + height > planes.height ||
      left + width > planes.width) {
    fail(Code::usage, "crop: {} x {} pixels from row {}, column {} of a picture of {} x {}", height,
         width, top, left, planes.height, planes.width);
  }
  Planes result{planes.channels, height, width, {}};
  result.values.reserve(static_cast<size_t>(planes.channels * height * width));
  for (int64_t c = 0; c < planes.channels; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      const float* row =
          &planes.values[static_cast<size_t>((c * planes.height + top + y) * planes.width + left)];
      result.values.insert(result.values.end(), row, row + width);
    }
  }
  return result;
}

Planes turned(const Planes& planes, int turns) {
  const bool mirror = (turns & 4) != 0;
  const int quarters = turns & 3;
  const bool lies = quarters % 2 == 1;
  Planes result{planes.channels,
                lies ? planes.width : planes.height,
                lies ? planes.height : planes.width,
                {}};
  result.values.resize(planes.values.size());
  for (int64_t c = 0; c < planes.channels; ++c) {
    for (int64_t y = 0; y < result.height; ++y) {
      for (int64_t x = 0; x < result.width; ++x) {
        int64_t from_y = y, from_x = x;  // of the mirrored picture
        if (quarters == 1) {
          from_y = x, from_x = planes.width - 1 - y;
        } else if (quarters == 2) {
          from_y = planes.height - 1 - y, from_x = planes.width - 1 - x;
        } else if (quarters == 3) {
          from_y = planes.height - 1 - x, from_x = y;
        }
        if (mirror) from_x = planes.width - 1 - from_x;
        result.at(c, y, x) = planes.at(c, from_y, from_x);
      }
    }
  }
  return result;
}

}  // namespace sluice::data
