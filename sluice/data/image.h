// Still images for classification: PNG (libpng) and PGM/PPM (P2, P3, P5, P6), as grey or RGB bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::data {

struct Image {
  int64_t width = 0, height = 0, channels = 1;  ///< 1 grey, 3 RGB; alpha is blended over black
  std::vector<uint8_t> pixels;                  ///< height x width x channels
};

struct ImageLimits {
  int64_t max_pixels = 1 << 26;
};

/// By content, not by name. Throws Error{missing|io|format|limit} naming the file and the problem.
Image read_image(const std::string& path, const ImageLimits& limits = {});
/// The same from bytes already in memory; `what` names them in messages.
Image decode_image(std::span<const std::byte> file, std::string_view what,
                   const ImageLimits& limits = {});
/// PNG by the name's ending .png, else PGM/PPM; written aside and renamed.
void write_image(const std::string& path, const Image& image);

Image to_grey(const Image& image);  ///< ITU-R BT.601 luma
/// Area average when shrinking, bilinear when growing.
Image resize(const Image& image, int64_t width, int64_t height);

/// CHW floats (pixel / 255 - mean) / std of an image converted to `channels` and resized to height
/// x width.
std::vector<float> to_input(const Image& image, int64_t channels, int64_t height, int64_t width,
                            double mean, double std);
/// The same for a line of text: at the left, as high as `height` with its proportions kept (but not
/// wider than `width`), and 0 to its right.
std::vector<float> to_line_input(const Image& image, int64_t channels, int64_t height,
                                 int64_t width, double mean, double std);

}  // namespace sluice::data
