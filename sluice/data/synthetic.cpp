#include "sluice/data/synthetic.h"

#include <algorithm>
#include <array>
#include <string>

#include "sluice/base/random.h"

namespace sluice::data {
namespace {

constexpr int kClasses = 10, kSide = 12, kShift = 2;
constexpr int kField = kSide + 2 * kShift;  // room to move the window
constexpr int kKnots = 5;  // a coarse grid, interpolated: what makes a field smooth
constexpr uint64_t kSeed = 20230401;

/// Integers only, hence equal everywhere.
class Stream {
 public:
  Stream(const std::string& name, uint64_t index) : name_(name), index_(index) {}
  uint64_t next() { return derive_seed(derive_seed(kSeed, name_, index_), "draw", count_++); }
  /// Uniform in [low, high].
  int between(int low, int high) {
    return low + static_cast<int>(next() % static_cast<uint64_t>(high - low + 1));
  }
  /// Roughly normal: the sum of the eight bytes of a draw, of deviation 209, scaled to `deviation`.
  int noise(int deviation) {
    int sum = -8 * 255 / 2;
    for (uint64_t bits = next(); bits != 0; bits >>= 8) {
      sum += static_cast<int>(bits & 0xFF);
    }
    return sum * deviation / 209;
  }

 private:
  std::string name_;
  uint64_t index_, count_ = 0;
};

using Field = std::array<int, kField * kField>;

Field prototype(int label) {
  Stream stream("prototype", static_cast<uint64_t>(label));
  std::array<int, kKnots * kKnots> knots{};
  for (int& k : knots) {
    k = stream.between(-128, 128);
  }
  Field field{};
  for (int y = 0; y < kField; ++y) {
    for (int x = 0; x < kField; ++x) {
      // Bilinear in units of 1/(kField - 1) of a cell.
      const int py = y * (kKnots - 1), px = x * (kKnots - 1), unit = kField - 1;
      const int ky = std::min(py / unit, kKnots - 2), kx = std::min(px / unit, kKnots - 2);
      const int fy = py - ky * unit, fx = px - kx * unit;
      const auto knot = [&](int j, int i) { return knots[static_cast<size_t>(j * kKnots + i)]; };
      const int top = knot(ky, kx) * (unit - fx) + knot(ky, kx + 1) * fx;
      const int bottom = knot(ky + 1, kx) * (unit - fx) + knot(ky + 1, kx + 1) * fx;
      field[static_cast<size_t>(y * kField + x)] =
          (top * (unit - fy) + bottom * fy) / (unit * unit);
    }
  }
  return field;
}

Split make_split(const std::string& name, int count, const std::array<Field, kClasses>& fields) {
  Split split;
  split.sample_shape = {1, kSide, kSide};
  split.pixels.reserve(static_cast<size_t>(count * kSide * kSide));
  for (int i = 0; i < count; ++i) {
    Stream stream(name, static_cast<uint64_t>(i));
    const int label = i % kClasses;
    split.labels.push_back(label);
    const int dy = stream.between(0, 2 * kShift), dx = stream.between(0, 2 * kShift);
    const int contrast = stream.between(50, 100), brightness = 128 + stream.between(-24, 24);
    for (int y = 0; y < kSide; ++y) {
      for (int x = 0; x < kSide; ++x) {
        const int value =
            fields[static_cast<size_t>(label)][static_cast<size_t>((y + dy) * kField + x + dx)];
        split.pixels.push_back(static_cast<uint8_t>(
            std::clamp(brightness + value * contrast / 100 + stream.noise(28), 0, 255)));
      }
    }
  }
  return split;
}

}  // namespace

ImageSet make_blobs() {
  std::array<Field, kClasses> fields;
  ImageSet set;
  set.name = "blobs";
  for (int label = 0; label < kClasses; ++label) {
    fields[static_cast<size_t>(label)] = prototype(label);
    set.labels.push_back(std::string("blob ") + static_cast<char>('0' + label));
  }
  set.train = make_split("train", 2000, fields);
  set.test = make_split("test", 500, fields);
  return set;
}

}  // namespace sluice::data
