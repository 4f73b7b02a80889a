#include "sluice/engine/kernel/gemm.h"

#include <cstring>
#include <limits>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/gemm_rows.h"
#include "sluice/engine/kernel/packed_tiles.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace gemm_test {

using bundle::Format;
using bundle::PackedMatrix;
using testing::for_each_target;
using testing::random_floats;

constexpr DotKind kKinds[] = {DotKind::f32, DotKind::bf16, DotKind::i8};

struct Weights {
  std::vector<std::byte> bytes;
  std::vector<float> values;
  PackedMatrix matrix;
  Weights(Format format, int64_t rows, int64_t columns, uint64_t seed)
      : values(static_cast<size_t>(rows * columns)) {
    std::mt19937_64 random(seed);
    bytes = bundle::pack(format, random_floats(random, values.size()), rows, columns);
    matrix = bundle::view_packed(format, rows, columns, bytes, "w");
    bundle::unpack(matrix, values);
  }
};

struct Case {
  int64_t rows;
  bool bias = false, adds = false;
  Activation activation = Activation::none;
  int threads = 1;
  GemmPath path = GemmPath::automatic;
};

std::vector<float> run(const Weights& w, DotKind kind, const Case& c, std::span<const float> x,
                       std::span<const float> bias, std::span<const float> other,
                       std::string* name = nullptr) {
  onednn::PackCache cache;
  PackedLinear layer{w.matrix, kind, {}, c.activation, c.adds, c.threads};
  if (c.bias) layer.bias = bias;
  const Kernel kernel = make_packed_linear(layer, c.rows, 1, cache, "w", c.path);
  if (name) *name = kernel.name;
  Buffer scratch(kernel.scratch_bytes);
  std::vector<float> input(x.begin(), x.end()), addend(other.begin(), other.end()),
      y(static_cast<size_t>(c.rows * w.matrix.rows), std::nanf(""));
  float* inputs[] = {input.data(), addend.data()};
  Binding binding;
  binding.inputs = std::span(inputs).first(c.adds ? 2 : 1);
  binding.output = y.data();
  binding.scratch = scratch.data();
  const auto call = kernel.bind(binding);
  call();
  call();  // nothing may be left behind by the first
  return y;
}

void check(const Weights& w, DotKind kind, const Case& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  const size_t columns = static_cast<size_t>(w.matrix.columns),
               out = static_cast<size_t>(w.matrix.rows), rows = static_cast<size_t>(c.rows);
  const auto x = random_floats(random, rows * columns), bias = random_floats(random, out),
             other = random_floats(random, rows * out);
  std::string name;
  const auto y = run(w, kind, c, x, bias, other, &name);
  SCOPED_TRACE(name);
  std::vector<float> rounded(columns);
  for (size_t r = 0; r < rows; ++r) {
    const float scale = round_row(kind, x.data() + r * columns, w.matrix.columns, rounded.data());
    for (size_t o = 0; o < out; ++o) {
      double sum = 0, size = 1;
      for (size_t i = 0; i < columns; ++i) {
        const double product = static_cast<double>(scale) * rounded[i] * w.values[o * columns + i];
        sum += product;
        size += std::fabs(product);
      }
      if (c.bias) sum += bias[o];
      if (c.adds) sum += other[r * out + o];
      if (c.activation == Activation::relu) sum = std::max(sum, 0.0);
      ASSERT_NEAR(y[r * out + o], sum, 4e-6 * size)
          << bundle::format_name(w.matrix.format) << " row " << r << " output " << o;
    }
  }
}

TEST(PackedLinear, EveryFormatKindAndNumberOfRows) {
  uint64_t seed = 1;
  for (const Format format : bundle::all_formats()) {
    const Weights w(format, 37, 150, 3);
    for (const DotKind kind : kKinds) {
      for (const int64_t rows : {1, 2, 7, 8, 9, 15, 16, 33}) {
        check(w, kind, {.rows = rows, .bias = true}, ++seed);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(PackedLinear, EveryPathComputesTheSame) {
  for (const Format format : bundle::all_formats()) {
    const Weights w(format, 70, 96, 4);
    for (const DotKind kind : kKinds) {
      for (const GemmPath path : {GemmPath::dot, GemmPath::unpacked})
        check(w, kind, {.rows = 21, .bias = true, .threads = 2, .path = path}, 5);
    }
  }
  for (const Format format : {Format::f32, Format::bf16}) {
    for (const DotKind kind : {DotKind::f32, DotKind::bf16})
      check(Weights(format, 70, 96, 4), kind,
            {.rows = 21, .bias = true, .threads = 2, .path = GemmPath::panels}, 7);
  }
  if (onednn::product_usable(onednn::ProductType::i8))
    check(Weights(Format::i8, 70, 96, 4), DotKind::i8, {.rows = 3, .path = GemmPath::integers}, 6);
  if (onednn::product_usable(onednn::ProductType::bf16))
    check(Weights(Format::bf16, 70, 96, 4), DotKind::bf16, {.rows = 3, .path = GemmPath::bf16}, 6);
}

TEST(PackedLinear, PanelsGiveARowTheSameBitsInAnyBatchOnAnyThreads) {
  std::mt19937_64 random(18);
  testing::for_each_target([&] {
    for (const Format format : {Format::f32, Format::bf16}) {
      for (const auto [out, columns] : {std::pair{1, 1}, {33, 7}, {67, 1030}, {130, 2051}}) {
        const Weights w(format, out, columns, 16);
        check(w, DotKind::bf16, {.rows = 19, .bias = true, .path = GemmPath::panels}, 19);
        if (HasFatalFailure()) return;
        const auto x = random_floats(random, size_t(260 * columns));
        const auto all = run(w, DotKind::f32, {.rows = 260, .path = GemmPath::panels}, x, {}, {});
        for (const int64_t rows : {1, 5, 260}) {
          const auto some = run(w, DotKind::f32,
                                {.rows = rows, .threads = 3, .path = GemmPath::panels}, x, {}, {});
          ASSERT_EQ(some, std::vector<float>(all.begin(), all.begin() + rows * out));
        }
      }
    }
  });
}

TEST(PackedLinear, TilesComputeWhatDotsDo) {
  if (!tiles_usable()) GTEST_SKIP() << "no AMX here";
  std::mt19937_64 random(15);
  for (const Format format : bundle::all_formats()) {
    for (const auto [out, columns] :
         {std::pair{70, 96}, {1, 1}, {16, 128}, {33, 1025}, {47, 2500}}) {
      const Weights w(format, out, columns, 16);
      if (!tiles_apply(w.matrix)) continue;
      const bool grouped = format == Format::i8_group || format == Format::i4_group ||
                           format == Format::i4_group_min;
      for (const int64_t rows : {9, 48, 273}) {
        check(w, DotKind::i8, {.rows = rows, .bias = true, .path = GemmPath::tiles}, 17);
        if (HasFatalFailure()) return;
        const auto x = random_floats(random, static_cast<size_t>(rows * columns));
        const auto tiles = run(w, DotKind::i8, {.rows = rows, .path = GemmPath::tiles}, x, {}, {});
        EXPECT_EQ(tiles, run(w, DotKind::i8, {.rows = rows, .threads = 3, .path = GemmPath::tiles},
                             x, {}, {}));
        if (!grouped && format != Format::binary2 && format != Format::mixed) {
          EXPECT_EQ(tiles, run(w, DotKind::i8, {.rows = rows, .path = GemmPath::dot}, x, {}, {}))
              << bundle::format_name(format);
        }
      }
    }
  }
}

TEST(PackedLinear, RowsThatAreNotFiniteSpoilOnlyThemselves) {
  std::mt19937_64 random(18);
  for (const Format format : bundle::all_formats()) {
    const Weights w(format, 40, 200, 19);
    auto x = random_floats(random, 20 * 200);
    x[3 * 200 + 7] = std::numeric_limits<float>::infinity();
    x[9 * 200 + 199] = std::nanf("");
    std::fill_n(x.begin() + 5 * 200, 200, 0.0f);
    const auto y = run(w, DotKind::i8, {.rows = 20, .threads = 2}, x, {}, {});
    for (size_t r = 0; r < 20; ++r) {
      for (size_t o = 0; o < 40; ++o) {
        EXPECT_EQ(std::isnan(y[r * 40 + o]), r == 3 || r == 9) << bundle::format_name(format);
        if (r == 5) {
          EXPECT_EQ(y[r * 40 + o], 0.0f);
        }
      }
    }
  }
}

TEST(PackedLinear, BiasAddendAndActivationFollowTheProduct) {
  for (const Format format : {Format::bf16, Format::i8, Format::i4_group}) {
    const Weights w(format, 20, 64, 7);
    for (const DotKind kind : kKinds) {
      for (const int64_t rows : {3, 20}) {
        for (const bool bias : {false, true}) {
          for (const bool adds : {false, true}) {
            for (const Activation activation : {Activation::none, Activation::relu}) {
              check(w, kind, {.rows = rows, .bias = bias, .adds = adds, .activation = activation},
                    8);
            }
          }
        }
      }
    }
  }
}

TEST(PackedLinear, ThreadsChangeNoBit) {
  std::mt19937_64 random(9);
  for (const Format format : bundle::all_formats()) {
    const Weights w(format, 90, 130, 10);
    for (const DotKind kind : kKinds) {
      for (const int64_t rows : {1, 11, 20}) {
        const auto x = random_floats(random, static_cast<size_t>(rows * 130));
        const auto one = run(w, kind, {.rows = rows, .threads = 1}, x, {}, {});
        for (const int threads : {2, 3}) {
          const auto many = run(w, kind, {.rows = rows, .threads = threads}, x, {}, {});
          // What oneDNN multiplies as a whole is its own to split.
          for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], many[i], 1e-4);
        }
        if (kind == DotKind::i8 && format != Format::f32 && format != Format::bf16) {
          EXPECT_EQ(one, run(w, kind, {.rows = rows, .threads = 3}, x, {}, {}));
        }
      }
    }
  }
}

TEST(PackedLinear, LiveRowsAreComputedAndOthersLeftAlone) {
  const Weights w(Format::ternary, 12, 64, 11);
  std::mt19937_64 random(12);
  auto x = random_floats(random, 20 * 64);
  onednn::PackCache cache;
  const Kernel kernel = make_packed_linear({w.matrix, DotKind::i8, {}, Activation::none, false, 2},
                                           10, 2, cache, "w");
  ASSERT_TRUE(kernel.counts_rows);
  Buffer scratch(kernel.scratch_bytes);
  std::vector<float> y(20 * 12, 7.0f);
  float* inputs[] = {x.data()};
  LiveRows live;
  Binding binding;
  binding.inputs = inputs;
  binding.output = y.data();
  binding.scratch = scratch.data();
  binding.rows = &live;
  const auto call = kernel.bind(binding);
  call();
  EXPECT_EQ(y, std::vector<float>(20 * 12, 7.0f));
  live.count = 3;
  call();
  const auto expected = run(w, DotKind::i8, {.rows = 6}, std::span(x).first(6 * 64), {}, {});
  EXPECT_EQ(std::vector<float>(y.begin(), y.begin() + 72), expected);
  EXPECT_EQ(y[72], 7.0f);
}

TEST(PackedLinear, OneRowOfAPlannedBlockIsReadAsOneRow) {
  // A decoder is planned for blocks of a prompt and then computes a token at a time: the same bits
  // as a kernel that was made for one row.
  std::mt19937_64 random(17);
  for (const Format format : bundle::all_formats()) {
    const Weights w(format, 40, 96, 18);
    const auto x = random_floats(random, 200 * 96);
    for (const DotKind kind : kKinds) {
      onednn::PackCache cache;
      const Kernel kernel =
          make_packed_linear({w.matrix, kind, {}, Activation::none, false, 2}, 200, 1, cache, "w");
      if (!kernel.counts_rows) continue;  // the planner makes another one for fewer rows
      Buffer scratch(kernel.scratch_bytes);
      std::vector<float> y(200 * 40);
      float* inputs[] = {const_cast<float*>(x.data())};
      LiveRows live;
      Binding binding;
      binding.inputs = inputs;
      binding.output = y.data();
      binding.scratch = scratch.data();
      binding.rows = &live;
      const auto call = kernel.bind(binding);
      for (const int64_t rows : {1, 8}) {
        live.count = rows;
        call();
        const auto expected = run(w, kind, {.rows = rows, .path = GemmPath::dot},
                                  std::span(x).first(static_cast<size_t>(rows) * 96), {}, {});
        EXPECT_EQ(std::vector<float>(y.begin(), y.begin() + rows * 40), expected)
            << bundle::format_name(format) << " " << kernel.name;
      }
    }
  }
}

TEST(GemmRows, UnpackAsTheFormatsSay) {
  for_each_target([] {
    for (const Format format : bundle::all_formats()) {
      for (const int64_t columns : {1, 31, 32, 33, 64, 100, 129}) {
        const Weights w(format, 5, columns, 13);
        std::vector<float> out(static_cast<size_t>(4 * columns + 1), -5.0f);
        unpack_rows(w.matrix, 1, 4, out.data());
        for (size_t i = 0; i + 1 < out.size(); ++i)
          ASSERT_NEAR(out[i], w.values[static_cast<size_t>(columns) + i], 1e-6)
              << bundle::format_name(format);
        EXPECT_EQ(out.back(), -5.0f);
      }
    }
  });
}

TEST(GemmRows, QuantizeAsTheBundleDoes) {
  for_each_target([] {
    std::mt19937_64 random(14);
    for (const int64_t count : {1, 3, 15, 16, 17, 64, 100}) {
      const size_t n = static_cast<size_t>(count);
      for (int special = 0; special < 5; ++special) {
        auto x = random_floats(random, n);
        if (special == 1) x[n / 2] = std::nanf("");
        if (special == 2) x[n / 2] = -std::numeric_limits<float>::infinity();
        if (special == 3) std::fill(x.begin(), x.end(), 0.0f);
        if (special == 4) x.assign(n, 190 * std::numeric_limits<float>::denorm_min());
        std::vector<int8_t> codes(n), expected(n);
        const float scale = quantize_row(x.data(), count, codes.data()),
                    should = bundle::quantize_activations(x, expected.data());
        EXPECT_EQ(codes, expected);
        EXPECT_EQ(std::memcmp(&scale, &should, 4), 0) << scale << " " << should;
        std::vector<uint16_t> halves(n);
        bf16_row(x.data(), count, halves.data());
        std::vector<float> rounded(n);
        round_row(DotKind::bf16, x.data(), count, rounded.data());
        for (size_t i = 0; i < n; ++i) {
          EXPECT_EQ(halves[i], bundle::f32_to_bf16(x[i]));
          if (!std::isnan(x[i])) {
            EXPECT_EQ(rounded[i], bundle::bf16_to_f32(halves[i]));
          }
        }
      }
    }
  });
}

}  // namespace gemm_test
}  // namespace sluice::engine
