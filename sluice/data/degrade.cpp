#include "sluice/data/degrade.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "sluice/base/error.h"
#include "sluice/base/random.h"

namespace sluice::data {
namespace {

/// Not the distributions of the standard library: they differ from one to the next.
class Draw {
 public:
  Draw(uint64_t seed, std::string_view what) : engine_(derive_seed(seed, what)) {}
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1.0p-53; }
  double between(double low, double high) { return low + (high - low) * uniform(); }
  double normal() {  // Box and Muller
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  std::mt19937_64 engine_;
};

float within(double value) { return static_cast<float>(std::clamp(value, 0.0, 1.0)); }

/// How bright the rain is at each pixel, 0..1.
std::vector<double> streaks(int64_t height, int64_t width, Draw& draw) {
  const double angle = draw.between(70, 110) * std::numbers::pi / 180;
  const double length = draw.between(7, 15), density = draw.between(0.003, 0.01);
  const double dx = std::cos(angle), dy = -std::sin(angle);
  std::vector<double> light(static_cast<size_t>(height * width), 0.0);
  const auto margin = static_cast<int64_t>(std::ceil(length));
  for (int64_t y = -margin; y < height + margin; ++y) {
    for (int64_t x = -margin; x < width + margin; ++x) {
      const double noise = draw.uniform();
      if (noise >= density) continue;  // the dots: what is left of the noise behind a threshold
      const double dot = 0.5 + 0.5 * noise / density;
      for (double along = -length / 2; along <= length / 2; along += 0.5) {
        const double px = static_cast<double>(x) + along * dx;
        const double py = static_cast<double>(y) + along * dy;
        const auto left = static_cast<int64_t>(std::floor(px));
        const auto row = static_cast<int64_t>(std::lround(py));
        if (row < 0 || row >= height) continue;
        for (const int64_t column : {left, left + 1}) {
          if (column < 0 || column >= width) continue;
          const double share = 1 - std::abs(px - static_cast<double>(column));
          double& at = light[static_cast<size_t>(row * width + column)];
          at = std::max(at, share * dot);
        }
      }
    }
  }
  return light;
}

}  // namespace

void add_noise(Planes& picture, double sigma, uint64_t seed) {
  Draw draw(seed, "noise");
  for (float& value : picture.values) value = within(value + sigma / 255 * draw.normal());
}

void add_rain(Planes& picture, uint64_t seed) {
  Draw draw(seed, "rain");
  const double opacity = draw.between(0.25, 0.6);
  const std::vector<double> light = streaks(picture.height, picture.width, draw);
  for (int64_t c = 0; c < picture.channels; ++c) {
    for (size_t i = 0; i < light.size(); ++i) {
      float& value = picture.values[static_cast<size_t>(c * picture.pixels()) + i];
      value = within(value + opacity * light[i]);
    }
  }
}

void add_haze(Planes& picture, uint64_t seed) {
  Draw draw(seed, "haze");
  const double air = draw.between(0.7, 1), beta = draw.between(0.6, 1.8);
  const double angle = draw.between(0, 2 * std::numbers::pi);
  const double waves_x = draw.between(0.5, 1.5), waves_y = draw.between(0.5, 1.5);
  const double phase = draw.between(0, 2 * std::numbers::pi);
  const double dx = std::cos(angle), dy = std::sin(angle);
  const double reach = (std::abs(dx) + std::abs(dy)) / 2;  // of the ramp at the corners
  for (int64_t y = 0; y < picture.height; ++y) {
    for (int64_t x = 0; x < picture.width; ++x) {
      const double u = (static_cast<double>(x) + 0.5) / static_cast<double>(picture.width);
      const double v = (static_cast<double>(y) + 0.5) / static_cast<double>(picture.height);
      const double ramp = 0.5 + 0.5 * ((u - 0.5) * dx + (v - 0.5) * dy) / reach;
      const double wave =
          0.1 * std::sin(2 * std::numbers::pi * (waves_x * u + waves_y * v) + phase);
      const double through = std::exp(-beta * std::clamp(ramp + wave, 0.0, 1.0));
      for (int64_t c = 0; c < picture.channels; ++c) {
        float& value = picture.at(c, y, x);
        value = within(value * through + air * (1 - through));
      }
    }
  }
}

const std::vector<std::string>& degradation_names() {
  static const std::vector<std::string> names = {"noise15", "noise25", "noise50", "rain", "haze"};
  return names;
}

void degrade(Planes& picture, const std::string& name, uint64_t seed) {
  if (name == "noise15") return add_noise(picture, 15, seed);
  if (name == "noise25") return add_noise(picture, 25, seed);
  if (name == "noise50") return add_noise(picture, 50, seed);
  if (name == "rain") return add_rain(picture, seed);
  if (name == "haze") return add_haze(picture, seed);
  fail(Code::usage, "degradation '{}': known are {}", name.substr(0, 60),
       fmt::join(degradation_names(), ", "));
}

}  // namespace sluice::data
