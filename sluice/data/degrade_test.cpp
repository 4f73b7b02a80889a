#include "sluice/data/degrade.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "sluice/base/test_error.h"
#include "sluice/data/image_quality.h"
#include "sluice/data/photos.h"

namespace sluice::data {
namespace degrade_test {

Planes flat(float value, int64_t channels = 3, int64_t height = 40, int64_t width = 48) {
  return {channels, height, width,
          std::vector<float>(static_cast<size_t>(channels * height * width), value)};
}

double mean_of(const Planes& planes) {
  double sum = 0;
  for (const float value : planes.values) sum += value;
  return sum / static_cast<double>(planes.values.size());
}

TEST(Degrade, DependsOnTheSeedAlone) {
  for (const std::string& name : degradation_names()) {
    Planes a = flat(0.4f), b = flat(0.4f), c = flat(0.4f);
    degrade(a, name, 7);
    degrade(b, name, 7);
    degrade(c, name, 8);
    EXPECT_EQ(a.values, b.values) << name;
    EXPECT_NE(a.values, c.values) << name;
    EXPECT_NE(a.values, flat(0.4f).values) << name;
    for (const float value : a.values) {
      ASSERT_GE(value, 0);
      ASSERT_LE(value, 1);
    }
  }
}

TEST(Degrade, NoiseHasTheAskedDeviation) {
  for (const double sigma : {15.0, 25.0}) {
    Planes picture = flat(0.5f, 3, 100, 100);
    add_noise(picture, sigma, 3);
    double squares = 0;
    for (const float value : picture.values) squares += (value - 0.5) * (value - 0.5);
    EXPECT_NEAR(255 * std::sqrt(squares / 30000), sigma, 0.02 * sigma);
    EXPECT_NEAR(mean_of(picture), 0.5, 0.002);
  }
}

TEST(Degrade, RainIsSparseBrightAndStandsUp) {
  int64_t along = 0, across = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    Planes picture = flat(0.2f);
    add_rain(picture, seed);
    int64_t wet = 0;
    for (int64_t y = 0; y < picture.height; ++y) {
      for (int64_t x = 0; x < picture.width; ++x) {
        const float value = picture.at(0, y, x);
        EXPECT_GE(value, 0.2f);  // rain only adds
        EXPECT_EQ(value, picture.at(2, y, x));
        const bool here = value > 0.3f;
        wet += here ? 1 : 0;
        if (!here || y + 4 >= picture.height || x + 4 >= picture.width) continue;
        along += picture.at(0, y + 4, x) > 0.3f ? 1 : 0;
        across += picture.at(0, y, x + 4) > 0.3f ? 1 : 0;
      }
    }
    EXPECT_GT(wet, 0);
    EXPECT_LT(wet, picture.pixels() / 2);
  }
  EXPECT_GT(along, 2 * across);
}

TEST(Degrade, HazeDrawsEveryPixelTowardsTheAir) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Planes dark = flat(0.1f), light = flat(0.6f);
    add_haze(dark, seed);
    add_haze(light, seed);
    double least = 1, most = 0;
    for (size_t i = 0; i < dark.values.size(); ++i) {
      // J t + A (1 - t) of two J: the difference is 0.5 t, and both give the same A.
      const double t = (light.values[i] - dark.values[i]) / 0.5;
      ASSERT_GT(t, std::exp(-1.81));
      ASSERT_LE(t, 1.0001);
      if (t < 0.9) {
        const double air = (dark.values[i] - 0.1 * t) / (1 - t);
        ASSERT_GT(air, 0.69);
        ASSERT_LT(air, 1.01);
      }
      least = std::min(least, t);
      most = std::max(most, t);
    }
    EXPECT_GT(most - least, 0.2);  // near and far
  }
}

TEST(Degrade, RefusesUnknownNames) {
  Planes picture = flat(0.5f);
  expect_error(Code::usage, "known are noise15, noise25, noise50, rain, haze",
               [&] { degrade(picture, "snow", 1); });
}

TEST(Planes, CropsAndTurns) {
  Planes picture{1, 2, 3, {0, 1, 2, 3, 4, 5}};
  EXPECT_EQ(crop(picture, 0, 1, 2, 2).values, (std::vector<float>{1, 2, 4, 5}));
  EXPECT_EQ(turned(picture, 0).values, picture.values);
  const Planes quarter = turned(picture, 1);
  EXPECT_EQ(quarter.height, 3);
  EXPECT_EQ(quarter.values, (std::vector<float>{2, 5, 1, 4, 0, 3}));
  EXPECT_EQ(turned(picture, 2).values, (std::vector<float>{5, 4, 3, 2, 1, 0}));
  EXPECT_EQ(turned(picture, 3).values, (std::vector<float>{3, 0, 4, 1, 5, 2}));
  EXPECT_EQ(turned(picture, 4).values, (std::vector<float>{2, 1, 0, 5, 4, 3}));
  for (int turns = 1; turns < 4; ++turns) {
    EXPECT_EQ(turned(turned(picture, turns), 4 - turns).values, picture.values);
  }
  expect_error(Code::usage, "2 x 2 pixels from row 1, column 0 of a picture of 2 x 3",
               [&] { crop(picture, 1, 0, 2, 2); });
}

TEST(Planes, ComeFromImagesAndGoBack) {
  const Image image{2, 1, 3, {0, 128, 255, 10, 20, 30}};
  const Planes planes = to_planes(image);
  EXPECT_EQ(planes.at(1, 0, 0), 128 / 255.0f);
  EXPECT_EQ(planes.at(2, 0, 1), 30 / 255.0f);
  EXPECT_EQ(to_image(planes).pixels, image.pixels);
  const Image grey{1, 1, 1, {7}};
  EXPECT_EQ(to_planes(grey).values, (std::vector<float>{7 / 255.0f, 7 / 255.0f, 7 / 255.0f}));
  EXPECT_EQ(to_planes(image, 1).channels, 1);
  EXPECT_EQ(to_image({1, 1, 2, {-1, 2}}).pixels, (std::vector<uint8_t>{0, 255}));
  expect_error(Code::usage, "expected 1 or 3 channels, found 2", [&] { to_planes(image, 2); });
}

TEST(Psnr, IsTheLogarithmOfTheMeanSquare) {
  EXPECT_NEAR(psnr(flat(0.5f), flat(0.6f)), 20, 1e-5);
  Planes half = flat(0.5f, 1, 10, 10);
  for (size_t i = 0; i < 50; ++i) half.values[i] = 0.7f;  // mean square 0.02
  EXPECT_NEAR(psnr(half, flat(0.5f, 1, 10, 10)), -10 * std::log10(0.02), 1e-4);
  EXPECT_EQ(psnr(flat(0.3f), flat(0.3f)), 100);
  EXPECT_EQ(psnr(flat(1.5f), flat(1)), 100);  // clamped first
  expect_error(Code::shape, "3 x 40 x 48 and 1 x 40 x 48", [] { psnr(flat(0), flat(0, 1)); });
}

TEST(Ssim, OfFlatPicturesIsThatOfTheirMeans) {
  const double c1 = 1e-4;
  EXPECT_NEAR(ssim(flat(0.2f), flat(0.8f)), (2 * 0.16 + c1) / (0.04 + 0.64 + c1), 1e-6);
  EXPECT_NEAR(ssim(flat(0.4f), flat(0.4f)), 1, 1e-9);
}

TEST(Ssim, SeesStructureAndItsReverse) {
  Planes stripes = flat(0, 1, 20, 20), reverse = stripes;
  for (int64_t y = 0; y < 20; ++y) {
    for (int64_t x = 0; x < 20; ++x) {
      stripes.at(0, y, x) = x % 2 == 0 ? 0.25f : 0.75f;
      reverse.at(0, y, x) = x % 2 == 0 ? 0.75f : 0.25f;
    }
  }
  EXPECT_NEAR(ssim(stripes, stripes), 1, 1e-9);
  // Equal means of 1/2, variances of 1/16, covariance of -1/16.
  EXPECT_NEAR(ssim(stripes, reverse), (-2.0 / 16 + 9e-4) / (2.0 / 16 + 9e-4), 0.01);
  Planes noisy = stripes;
  add_noise(noisy, 25, 1);
  const double little = ssim(stripes, noisy);
  add_noise(noisy, 50, 2);
  EXPECT_LT(little, 1);
  EXPECT_LT(ssim(stripes, noisy), little);
  expect_error(Code::shape, "the window has 11 x 11",
               [] { ssim(flat(0, 1, 10, 20), flat(0, 1, 10, 20)); });
}

TEST(Photos, MadeOnesAreTheSameEveryTimeAndAllDifferent) {
  const PhotoSet a = load_photos("made"), b = load_photos("made");
  ASSERT_EQ(a.train.size(), 8u);
  ASSERT_EQ(a.test.size(), 2u);
  for (size_t i = 0; i < a.train.size(); ++i) {
    EXPECT_EQ(a.train[i].planes.values, b.train[i].planes.values);
    EXPECT_LT(psnr(a.train[i].planes, a.test[0].planes), 30);
  }
}

TEST(Photos, SayHowToFetchThem) {
  expect_error(Code::missing, "scripts/data.sh photos",
               [] { load_photos("photos", "/there/is/no/such/folder"); });
  expect_error(Code::usage, "known: photos, made", [] { load_photos("photo"); });
}

}  // namespace degrade_test
}  // namespace sluice::data
