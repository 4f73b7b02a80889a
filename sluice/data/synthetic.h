// The "blobs" data set, made from seeds: a stand-in for real pictures where tests must not depend
// on files.
#pragma once
#include "sluice/data/dataset.h"

namespace sluice::data {

/// Ten classes of 1x12x12 pictures: a class is a smooth random field; a sample is that field moved
/// by up to two pixels, at a random contrast and brightness, with noise. The same on every machine:
/// no libm, no floating-point sums whose order could change.
ImageSet make_blobs();

}  // namespace sluice::data
