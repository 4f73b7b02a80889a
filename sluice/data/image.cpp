#include "sluice/data/image.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/shape.h"
#include "sluice/data/png_codec.h"
#include "sluice/data/pnm_codec.h"

namespace sluice::data {
namespace {

void check(const Image& image, std::string_view what) {
  const bool sized =
      image.width > 0 && image.height > 0 && (image.channels == 1 || image.channels == 3);
  if (!sized || image.pixels.size() !=
                    static_cast<size_t>(numel(Shape{image.height, image.width, image.channels}))) {
    fail(Code::shape, "{}: an image of {} x {} with {} channels and {} bytes is not possible", what,
         image.width, image.height, image.channels, image.pixels.size());
  }
}

/// Which source pixels make one target pixel along one axis; the weights add up to 1.
struct Taps {
  size_t first = 0;
  std::vector<float> weights;
};

std::vector<Taps> axis_taps(int64_t from, int64_t to) {
  std::vector<Taps> taps(static_cast<size_t>(to));
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  for (int64_t i = 0; i < to; ++i) {
    Taps& t = taps[static_cast<size_t>(i)];
    if (to < from) {  // the part of each source pixel that [begin, end) covers
      const double begin = static_cast<double>(i) * scale;
      const double end = std::min(begin + scale, static_cast<double>(from));
      t.first = static_cast<size_t>(begin);
      for (size_t s = t.first; s < static_cast<size_t>(from) && static_cast<double>(s) < end; ++s) {
        const double covered =
            std::min(end, static_cast<double>(s) + 1) - std::max(begin, static_cast<double>(s));
        t.weights.push_back(static_cast<float>(covered / (end - begin)));
      }
    } else {  // between the two nearest pixel centres, clamped at the border
      const double centre = std::clamp((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0,
                                       static_cast<double>(from - 1));
      t.first = static_cast<size_t>(centre);
      const auto part = static_cast<float>(centre - static_cast<double>(t.first));
      t.weights.push_back(1 - part);
      if (part > 0) {
        t.weights.push_back(part);
      }
    }
  }
  return taps;
}

}  // namespace

Image decode_image(std::span<const std::byte> file, std::string_view what,
                   const ImageLimits& limits) {
  if (is_png(file)) {
    return decode_png(file, what, limits);
  }
  if (is_pnm(file)) {
    return decode_pnm(file, what, limits);
  }
  if (file.empty()) {
    fail(Code::format, "{}: the file is empty, expected an image", what);
  }
  fail(Code::format, "{}: neither PNG nor PGM/PPM (P2, P3, P5, P6); convert it to PNG first", what);
}

Image read_image(const std::string& path, const ImageLimits& limits) {
  return decode_image(MappedFile::open(path).bytes(), path, limits);
}

void write_image(const std::string& path, const Image& image) {
  check(image, path);
  AtomicFile file(path);
  if (path.ends_with(".png") || path.ends_with(".PNG")) {
    file.write(encode_png(image, path));
  } else {
    file.write(encode_pnm(image));
  }
  file.commit();
}

Image to_grey(const Image& image) {
  check(image, "to_grey");
  if (image.channels == 1) {
    return image;
  }
  Image grey{image.width, image.height, 1, {}};
  grey.pixels.resize(static_cast<size_t>(image.width * image.height));
  for (size_t i = 0; i < grey.pixels.size(); ++i) {
    const uint8_t* rgb = image.pixels.data() + 3 * i;
    // 0.299, 0.587, 0.114 in 1/65536; they add up to 1, so that grey stays grey.
    grey.pixels[i] =
        static_cast<uint8_t>((19595U * rgb[0] + 38470U * rgb[1] + 7471U * rgb[2] + 32768U) >> 16);
  }
  return grey;
}

Image resize(const Image& image, int64_t width, int64_t height) {
  check(image, "resize");
  if (width < 1 || height < 1 || checked_mul(width, height, "resize") > ImageLimits{}.max_pixels) {
    fail(Code::shape, "resize: expected a size from 1 x 1 to {} pixels, found {} x {}",
         ImageLimits{}.max_pixels, width, height);
  }
  if (width == image.width && height == image.height) {
    return image;
  }
  const std::vector<Taps> columns = axis_taps(image.width, width);
  const std::vector<Taps> lines = axis_taps(image.height, height);
  const auto channels = static_cast<size_t>(image.channels);
  const size_t in_row = static_cast<size_t>(image.width) * channels;
  const size_t out_row = static_cast<size_t>(width) * channels;
  Image result{width, height, image.channels, {}};
  result.pixels.resize(static_cast<size_t>(height) * out_row);
  std::vector<float> row(in_row);  // one target line, still at the source's width
  for (size_t y = 0; y < lines.size(); ++y) {
    std::fill(row.begin(), row.end(), 0.0F);
    for (size_t k = 0; k < lines[y].weights.size(); ++k) {
      const uint8_t* source = image.pixels.data() + (lines[y].first + k) * in_row;
      const float weight = lines[y].weights[k];
      for (size_t i = 0; i < in_row; ++i) {
        row[i] += weight * static_cast<float>(source[i]);
      }
    }
    for (size_t x = 0; x < columns.size(); ++x) {
      for (size_t c = 0; c < channels; ++c) {
        float sum = 0;
        for (size_t k = 0; k < columns[x].weights.size(); ++k) {
          sum += columns[x].weights[k] * row[(columns[x].first + k) * channels + c];
        }
        result.pixels[y * out_row + x * channels + c] =
            static_cast<uint8_t>(std::clamp(sum + 0.5F, 0.0F, 255.0F));
      }
    }
  }
  return result;
}

std::vector<float> to_input(const Image& image, int64_t channels, int64_t height, int64_t width,
                            double mean, double std) {
  if (channels != 1 && channels != 3) {
    fail(Code::shape, "to_input: expected 1 or 3 channels, found {}", channels);
  }
  if (!(std > 0) || !std::isfinite(std) || !std::isfinite(mean)) {
    fail(Code::numeric,
         "to_input: expected a finite mean and a standard deviation above 0, found {} and {}", mean,
         std);
  }
  const Image sized = resize(channels == 1 ? to_grey(image) : image, width, height);
  const auto plane = static_cast<size_t>(width * height);
  const auto found = static_cast<size_t>(sized.channels);
  std::vector<float> result(static_cast<size_t>(channels) * plane);
  for (size_t c = 0; c < static_cast<size_t>(channels); ++c) {
    const size_t source = found == 1 ? 0 : c;  // grey fills all three channels
    for (size_t i = 0; i < plane; ++i) {
      result[c * plane + i] =
          static_cast<float>((sized.pixels[i * found + source] / 255.0 - mean) / std);
    }
  }
  return result;
}

std::vector<float> to_line_input(const Image& image, int64_t channels, int64_t height,
                                 int64_t width, double mean, double std) {
  check(image, "to_line_input");
  const double scaled = std::ceil(static_cast<double>(height) * static_cast<double>(image.width) /
                                  static_cast<double>(image.height));
  const int64_t used = scaled < static_cast<double>(width)
                           ? std::max<int64_t>(1, static_cast<int64_t>(scaled))
                           : width;
  const std::vector<float> line = to_input(image, channels, height, used, mean, std);
  std::vector<float> result(static_cast<size_t>(channels * height * width), 0.0F);
  for (int64_t row = 0; row < channels * height; ++row) {
    std::copy_n(line.begin() + row * used, used, result.begin() + row * width);
  }
  return result;
}

}  // namespace sluice::data
