// PNG through libpng, inside its longjmp fence. Used by image.cpp only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "sluice/data/image.h"

namespace sluice::data {

bool is_png(std::span<const std::byte> file);
Image decode_png(std::span<const std::byte> file, std::string_view what, const ImageLimits& limits);
std::vector<std::byte> encode_png(const Image& image, std::string_view what);

}  // namespace sluice::data
