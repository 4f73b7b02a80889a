// PGM and PPM, text (P2, P3) and binary (P5, P6). Used by image.cpp only.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "sluice/data/image.h"

namespace sluice::data {

bool is_pnm(std::span<const std::byte> file);
Image decode_pnm(std::span<const std::byte> file, std::string_view what, const ImageLimits& limits);
std::string encode_pnm(const Image& image);

}  // namespace sluice::data
