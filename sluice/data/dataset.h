// Labelled image sets by name. A data set knows its splits; validation is always cut from training
// data, never from test.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sluice/base/shape.h"

namespace sluice::data {

struct Split {
  Shape sample_shape;           ///< [channels, height, width]
  std::vector<uint8_t> pixels;  ///< count x numel(sample_shape)
  std::vector<int64_t> labels;  ///< count
  int64_t count() const { return static_cast<int64_t>(labels.size()); }
  std::span<const uint8_t> sample(int64_t index) const;
};

struct ImageSet {
  std::string name;
  std::vector<std::string> labels;
  double mean = 0, std = 1;  ///< of pixel / 255 over the training split
  Split train, test;
};

/// Names that load_image_set knows: "fashion-mnist" (Debian dataset-fashion-mnist), "digits"
/// (python3-sklearn's 8x8 digits when installed), "emoji" (3x32x32 colour pictures in 10
/// categories, fetched by scripts/data.sh), "blobs" (made here: 10 seeded classes of 1x12x12
/// pictures for tests, no files needed).
std::vector<std::string> image_set_names();

struct LoadOptions {
  std::string
      directory;  ///< where the files are; empty: $SLUICE_DATA/<name>, then the package's own place
  int64_t train_limit = 0;  ///< first n training samples only; 0 all
  int64_t test_limit = 0;
};
/// Throws Error{missing} with the command that installs the data, Error{usage} for an unknown name
/// with the nearest.
ImageSet load_image_set(const std::string& name, const LoadOptions& options = {});

/// Cuts `fraction` of `split` off as a validation split, stratified by label, chosen by `seed`.
/// {rest, validation}.
std::pair<Split, Split> split_validation(const Split& split, double fraction, uint64_t seed);

/// Floats (pixel / 255 - mean) / std of samples [first, first + count) in one block.
void to_floats(const Split& split, int64_t first, int64_t count, double mean, double std,
               std::span<float> out);

}  // namespace sluice::data
