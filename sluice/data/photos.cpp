#include "sluice/data/photos.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/random.h"
#include "sluice/data/directory.h"

namespace sluice::data {
namespace {

const std::vector<std::string> kTrain = {"astronaut",
                                         "brick",
                                         "camera",
                                         "coins",
                                         "dog",
                                         "giraffe",
                                         "grass",
                                         "gravel",
                                         "hubble_deep_field",
                                         "ihc",
                                         "kite",
                                         "moon",
                                         "motorcycle_left",
                                         "person",
                                         "retina",
                                         "rocket"};
const std::vector<std::string> kValidation = {"eagle", "flower"};
const std::vector<std::string> kTest = {"chelsea", "china", "coffee", "horses"};
constexpr int kFrames = 11, kEvery = 20;

Photo read(const std::string& directory, const std::string& name) {
  const std::string path = directory + "/" + name + ".png";
  if (!file_exists(path)) {
    fail(Code::missing,
         "photos: {} is not there; fetch them with: scripts/data.sh photos (or set SLUICE_DATA to "
         "a directory that holds photos/)",
         path);
  }
  return {name, to_planes(read_image(path))};
}

/// Rectangles, discs and stripes of random colours over a gradient: edges, flat parts, texture.
Photo made(uint64_t index) {
  constexpr int64_t kSide = 48;
  std::mt19937_64 engine(derive_seed(20251014, "photo", index));
  const auto uniform = [&] { return static_cast<float>(engine() >> 40) * 0x1.0p-24f; };
  Planes planes{3, kSide, kSide, std::vector<float>(static_cast<size_t>(3 * kSide * kSide))};
  float from[3], to[3];
  for (int c = 0; c < 3; ++c) from[c] = uniform(), to[c] = uniform();
  for (int64_t c = 0; c < 3; ++c) {
    for (int64_t y = 0; y < kSide; ++y) {
      for (int64_t x = 0; x < kSide; ++x) {
        const float t = static_cast<float>(x + y) / static_cast<float>(2 * kSide);
        planes.at(c, y, x) = (1 - t) * from[c] + t * to[c];
      }
    }
  }
  for (int shape = 0; shape < 8; ++shape) {
    const float cx = uniform() * kSide, cy = uniform() * kSide, size = 3 + uniform() * 12;
    const int kind = static_cast<int>(engine() % 3);
    float colour[3];
    for (float& value : colour) value = uniform();
    for (int64_t y = 0; y < kSide; ++y) {
      for (int64_t x = 0; x < kSide; ++x) {
        const float dx = static_cast<float>(x) - cx, dy = static_cast<float>(y) - cy;
        const bool inside = kind == 0 ? dx * dx + dy * dy < size * size
                                      : std::abs(dx) < size && std::abs(dy) < size / 2;
        if (!inside || (kind == 2 && (x + y) % 4 < 2)) continue;
        for (int64_t c = 0; c < 3; ++c) planes.at(c, y, x) = colour[c];
      }
    }
  }
  return {fmt::format("made{}", index), std::move(planes)};
}

}  // namespace

PhotoSet load_photos(const std::string& name, const std::string& directory) {
  PhotoSet set;
  set.name = name;
  if (name == "made") {
    for (uint64_t i = 0; i < 8; ++i) set.train.push_back(made(i));
    for (uint64_t i = 8; i < 10; ++i) set.validation.push_back(made(i));
    for (uint64_t i = 10; i < 12; ++i) set.test.push_back(made(i));
    return set;
  }
  if (name != "photos") {
    fail(Code::usage, "unknown photographs '{}'; known: photos, made", name.substr(0, 60));
  }
  const std::string from = directory.empty() ? data_directory(name) : directory;
  for (const std::string& each : kTrain) set.train.push_back(read(from, each));
  for (const std::string& each : kValidation) set.validation.push_back(read(from, each));
  for (const std::string& each : kTest) set.test.push_back(read(from, each));
  for (int i = 0; i < kFrames; ++i) {
    set.sequence.push_back(read(from, fmt::format("sequence/image{:04}", i * kEvery)));
  }
  return set;
}

}  // namespace sluice::data
