// How near one picture is to another.
#pragma once
#include "sluice/data/planes.h"

namespace sluice::data {

/// Peak signal-to-noise ratio in decibels, -10 log10 of the mean squared difference of all values,
/// both clamped to 0..1. At most 100, which equal pictures have. Throws Error{shape} for pictures
/// of different sizes.
double psnr(const Planes& a, const Planes& b);
/// Structural similarity (Wang et al. 2004), -1..1: the mean over channels and over the places
/// where a Gaussian window of 11 x 11 pixels (deviation 1.5) lies inside; K1 = 0.01, K2 = 0.03.
/// Throws Error{shape} for different sizes, and pictures smaller than the window.
double ssim(const Planes& a, const Planes& b);

}  // namespace sluice::data
