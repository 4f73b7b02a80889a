// Properties of the packed products over shapes, alignments and values that RapidCheck makes up and
// shrinks: what one row of x gives depends neither on the path that computes it, nor on its
// neighbours, nor on threads, and it is the product of the values that the codes stand for.
#include <gtest/gtest.h>

#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "sluice/engine/kernel/gemm.h"
#include "sluice/engine/kernel/gemm_rows.h"
#include "sluice/engine/kernel/packed_accumulate.h"
#include "sluice/engine/kernel/packed_accumulate_testing.h"
#include "sluice/engine/kernel/packed_tiles.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace property_test {

using bundle::Format;
using bundle::PackedMatrix;
using testing::for_each_target;

Format any_format() {
  const auto formats = bundle::all_formats();
  return formats[*rc::gen::inRange<size_t>(0, formats.size())];
}

/// Most numbers are ordinary, some are what breaks kernels.
std::vector<float> any_values(size_t count, bool finite) {
  const float limit = std::numeric_limits<float>::denorm_min();
  std::vector<float> special{0.0f, -0.0f, limit, -limit, 1e-38f, 1e18f, -1e18f};
  if (!finite) {
    special.push_back(std::numeric_limits<float>::infinity());
    special.push_back(std::nanf(""));
  }
  const uint64_t seed = *rc::gen::arbitrary<uint64_t>();
  const int share = *rc::gen::element(0, 0, 1, 20);  // of special ones, in percent
  std::mt19937_64 random(seed);
  std::normal_distribution<float> ordinary;
  std::vector<float> values(count);
  for (float& v : values) {
    v = ordinary(random);
    if (static_cast<int>(random() % 100) < share) v = special[random() % special.size()];
  }
  return values;
}

/// Packed weights that begin `shift` bytes behind an aligned address.
struct Weights {
  std::vector<std::byte> bytes;
  std::vector<float> values;
  PackedMatrix matrix;

  Weights(Format format, int64_t rows, int64_t columns, size_t shift) {
    std::vector<float> x = any_values(static_cast<size_t>(rows * columns), true);
    for (float& v : x) v = std::clamp(v, -1000.0f, 1000.0f);  // scales are f16
    const std::vector<std::byte> packed = bundle::pack(format, x, rows, columns);
    bytes.resize(packed.size() + shift);
    std::memcpy(bytes.data() + shift, packed.data(), packed.size());
    matrix = bundle::view_packed(format, rows, columns, std::span(bytes).subspan(shift), "w");
    values.resize(x.size());
    bundle::unpack(matrix, values);
  }
};

std::vector<float> product(const Weights& w, DotKind kind, std::span<const float> x, int64_t rows,
                           int threads, GemmPath path) {
  onednn::PackCache cache;
  const Kernel kernel = make_packed_linear({w.matrix, kind, {}, Activation::none, false, threads},
                                           rows, 1, cache, "w", path);
  Buffer scratch(kernel.scratch_bytes);
  std::vector<float> input(x.begin(), x.end()), y(static_cast<size_t>(rows * w.matrix.rows), 7);
  float* inputs[] = {input.data()};
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.data();
  binding.scratch = scratch.data();
  kernel.bind(binding)();
  return y;
}

TEST(Properties, PackedLinearIsTheProductOfWhatTheCodesStandFor) {
  for_each_target([] {
    EXPECT_TRUE(rc::check([] {
      const Format format = any_format();
      const DotKind kind = *rc::gen::element(DotKind::f32, DotKind::bf16, DotKind::i8);
      const int64_t rows = *rc::gen::inRange<int64_t>(1, 40),
                    columns = *rc::gen::inRange<int64_t>(1, 300),
                    outputs = *rc::gen::inRange<int64_t>(1, 70);
      const int threads = *rc::gen::inRange(1, 4);
      const size_t shift = 4 * *rc::gen::inRange<size_t>(0, 3) +
                           (format == Format::mixed ? 0 : *rc::gen::inRange<size_t>(0, 4));
      const Weights w(format, outputs, columns, shift);
      const std::vector<float> x = any_values(static_cast<size_t>(rows * columns), false);
      std::vector<GemmPath> paths{GemmPath::automatic, GemmPath::dot};
      if (kind == DotKind::i8 && tiles_usable() && tiles_apply(w.matrix))
        paths.push_back(GemmPath::tiles);
      std::vector<float> rounded(static_cast<size_t>(columns));
      for (const GemmPath path : paths) {
        const std::vector<float> y = product(w, kind, x, rows, threads, path);
        for (int64_t r = 0; r < rows; ++r) {
          const double scale = round_row(kind, x.data() + r * columns, columns, rounded.data());
          for (int64_t o = 0; o < outputs; ++o) {
            // A small weight that is a sum of two large parts is as inexact as these.
            double sum = 0, size = 1e-30, apart = 0;
            if (format == Format::i4_group_min || format == Format::binary2) {
              for (int64_t i = 0; i < columns; ++i)
                apart = std::max<double>(
                    apart, std::fabs(scale * w.values[static_cast<size_t>(o * columns + i)]));
            }
            for (int64_t i = 0; i < columns; ++i) {
              const double weight = w.values[static_cast<size_t>(o * columns + i)];
              const double term =
                  scale * static_cast<double>(rounded[static_cast<size_t>(i)]) * weight;
              sum += term;
              size += std::fabs(term) + std::fabs(apart * rounded[static_cast<size_t>(i)]);
            }
            const double got = y[static_cast<size_t>(r * outputs + o)];
            if (std::isfinite(sum)) {
              // Sums of bits are taken apart as 2 (sum of the set ones) - (sum of all).
              RC_ASSERT(std::fabs(got - sum) <= 1e-5 * size);
            } else {
              RC_ASSERT(!std::isfinite(got));
            }
          }
        }
      }
    }));
  });
}

TEST(Properties, ARowOfIntegersKnowsNeitherItsNeighboursNorTheThreads) {
  for_each_target([] {
    if (dot_name() == "sluice gemv") return;  // without AVX2, many rows are unpacked to floats
    EXPECT_TRUE(rc::check([] {
      const Format format =
          *rc::gen::element(Format::i8, Format::i8_group, Format::i4_group, Format::i4_group_min,
                            Format::ternary, Format::binary, Format::binary2, Format::mixed);
      const int64_t rows = *rc::gen::inRange<int64_t>(9, 40),
                    columns = *rc::gen::inRange<int64_t>(1, 300),
                    outputs = *rc::gen::inRange<int64_t>(1, 70);
      const Weights w(format, outputs, columns, 0);
      const std::vector<float> x = any_values(static_cast<size_t>(rows * columns), true);
      const std::vector<float> all =
          product(w, DotKind::i8, x, rows, *rc::gen::inRange(1, 4), GemmPath::automatic);
      const int64_t first = *rc::gen::inRange<int64_t>(0, rows - 8);
      const std::vector<float> some =
          product(w, DotKind::i8, std::span(x).subspan(static_cast<size_t>(first * columns)),
                  rows - first, 1, GemmPath::automatic);
      for (size_t i = 0; i < some.size(); ++i)
        RC_ASSERT(some[i] == all[static_cast<size_t>(first * outputs) + i]);
    }));
  });
}

TEST(Properties, ChosenRowsAddUpInEveryFormat) {
  EXPECT_TRUE(rc::check([] {
    const Format format = any_format();
    const int64_t rows = *rc::gen::inRange<int64_t>(1, 60) * *rc::gen::element<int64_t>(1, 1, 10),
                  columns = *rc::gen::inRange<int64_t>(1, 300);
    const size_t count = *rc::gen::inRange<size_t>(0, static_cast<size_t>(rows) + 1),
                 tokens = *rc::gen::inRange<size_t>(1, 20), width = static_cast<size_t>(columns);
    const int threads = *rc::gen::inRange(1, 4);
    const Weights w(format, rows, columns, 0);
    std::vector<int32_t> index;
    for (size_t i = 0; i < count; ++i)
      index.push_back(*rc::gen::inRange<int32_t>(0, static_cast<int32_t>(rows)));
    const std::vector<float> factors = any_values(tokens * count, true);
    std::vector<float> y(tokens * width);
    Buffer scratch(packed_accumulate_scratch(w.matrix, threads));
    packed_accumulate(w.matrix, {index.data(), count}, {factors.data(), tokens, count}, y.data(),
                      width, scratch.data(), threads);
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t c = 0; c < width; ++c) {
        double sum = 0, size = 1e-30;
        for (size_t j = 0; j < count; ++j) {
          const size_t row = static_cast<size_t>(index[j]);
          const double term =
              static_cast<double>(factors[t * count + j]) * w.values[row * width + c];
          sum += term;
          size += std::fabs(term);
        }
        RC_ASSERT(std::fabs(y[t * width + c] - sum) <=
                  1e-5 * size + testing::sums_off_by(w.matrix, index,
                                                     std::span(factors).subspan(t * count, count),
                                                     c));
      }
    }
  }));
}

}  // namespace property_test
}  // namespace sluice::engine
