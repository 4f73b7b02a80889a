// The kernels over chosen rows, called directly: threads, union or lists, memory.
#include "sluice/engine/kernel/active_rows.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/experts.h"
#include "sluice/engine/kernel/lora.h"
#include "sluice/engine/kernel/sparse_ffn.h"
#include "sluice/engine/kernel/sparse_input.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace active_rows_test {

using bundle::Format;
using bundle::PackedMatrix;
using testing::Guarded;
using testing::random_floats;

/// Matrices that live as long as this.
class Matrices {
 public:
  PackedMatrix make(Format format, int64_t rows, int64_t columns) {
    const auto values = random_floats(random_, static_cast<size_t>(rows * columns));
    memory_.push_back(bundle::pack(format, values, rows, columns));
    return bundle::view_packed(format, rows, columns, memory_.back(), "test");
  }
  std::mt19937_64& random() { return random_; }

 private:
  std::mt19937_64 random_{5};
  std::vector<std::vector<std::byte>> memory_;
};

/// Calls run(threads, y) for several thread counts; all must write the same, inside y only.
template <class Run>
void expect_same_for_threads(size_t count, Run run) {
  std::vector<float> once;
  for (const int threads : {1, 2, 3, 8}) {
    Guarded y(count);
    run(threads, y.data());
    EXPECT_TRUE(y.intact());
    const std::vector<float> found(y.data(), y.data() + count);
    if (once.empty()) once = found;
    EXPECT_EQ(found, once) << threads << " threads";
  }
}

constexpr Format kFormats[] = {Format::f32, Format::bf16, Format::i8, Format::i4_group,
                               Format::ternary};

TEST(ActiveRows, UnionAndListsSayWhoAskedForWhat) {
  ActiveRows rows;
  Buffer memory(ActiveRows::scratch_bytes(kMaxTokens, 10));
  rows.bind(memory.data(), kMaxTokens, 10);
  rows.tokens = 2;
  const auto set = [&](size_t t, std::vector<int32_t> list) {
    std::copy(list.begin(), list.end(), rows.index + t * 10);
    rows.count[t] = list.size();
  };
  set(0, {1, 4, 9});
  set(1, {1, 4, 5, 9});
  rows.settle(Format::f32);
  ASSERT_TRUE(rows.shared);
  EXPECT_EQ(rows.merged_count, 4u);
  EXPECT_EQ(rows.pairs(), 8u);
  EXPECT_THAT(std::vector<int32_t>(rows.list(0), rows.list(0) + 4),
              ::testing::ElementsAre(1, 4, 5, 9));
  EXPECT_TRUE(rows.asked(1, 2));
  EXPECT_FALSE(rows.asked(0, 2));
  rows.tokens = 3;
  set(0, {0});
  set(1, {});
  set(2, {7, 8});
  rows.settle(Format::i8);
  EXPECT_FALSE(rows.shared);
  EXPECT_EQ(rows.pairs(), 3u);
  EXPECT_EQ(rows.merged_count, 3u);
}

TEST(SparseInput, ThreadsDoNotChangeABit) {
  Matrices m;
  for (const Format format : kFormats) {
    SparseInput layer;
    layer.weight = m.make(format, 90, 333);
    layer.select = {Selector::Kind::top_k, Rank::magnitude, 20};
    const auto x = random_floats(m.random(), 11 * 90);
    expect_same_for_threads(11 * 333, [&](int threads, float* y) {
      Buffer scratch(sparse_input_scratch(layer, threads));
      run_sparse_input(layer, x.data(), y, 11, scratch.data(), threads, nullptr);
    });
  }
}

TEST(SparseInput, WhatATokenGetsDoesNotDependOnItsNeighbours) {
  Matrices m;
  constexpr size_t kIn = 700;
  for (const Format format : {Format::i8_group, Format::i4_group, Format::i4_group_min}) {
    for (const double keep : {0.05, 0.9}) {
      SparseInput layer;
      layer.weight = m.make(format, kIn, 65);
      layer.select = {Selector::Kind::statistical, Rank::magnitude, 0, 0, keep};
      const auto x = random_floats(m.random(), 8 * kIn);
      Buffer scratch(sparse_input_scratch(layer, 1));
      std::vector<float> together(8 * 65), alone(8 * 65);
      run_sparse_input(layer, x.data(), together.data(), 8, scratch.data(), 1, nullptr);
      for (size_t t = 0; t < 8; ++t)
        run_sparse_input(layer, x.data() + t * kIn, alone.data() + t * 65, 1, scratch.data(), 1,
                         nullptr);
      EXPECT_EQ(together, alone);
    }
  }
}

TEST(SparseFfn, ThreadsDoNotChangeABit) {
  Matrices m;
  for (const Format format : kFormats) {
    for (const int64_t k : {3, 150}) {  // own lists, union
      SparseFfn layer;
      layer.up = m.make(format, 200, 77);
      layer.gate = m.make(format, 200, 77);
      layer.down = m.make(format, 200, 130);
      layer.activation = Activation::silu;
      layer.source = SparseFfn::Source::first;
      layer.select = {Selector::Kind::top_k, Rank::value, k};
      const auto x = random_floats(m.random(), 9 * 77);
      expect_same_for_threads(9 * 130, [&](int threads, float* y) {
        Buffer scratch(sparse_ffn_scratch(layer, threads));
        run_sparse_ffn(layer, x.data(), nullptr, y, 9, scratch.data(), threads, nullptr);
      });
    }
  }
}

TEST(Experts, ThreadsDoNotChangeABit) {
  Matrices m;
  for (const Format format : kFormats) {
    Experts experts;
    experts.top_k = 2;
    for (int e = 0; e < 4; ++e) {
      experts.up.push_back(m.make(format, 70, 33));
      experts.gate.push_back(m.make(format, 70, 33));
      experts.down.push_back(m.make(format, 70, 45));
    }
    make_expert_panels(experts);
    EXPECT_EQ(experts.up_panels.empty(), format != Format::f32);
    const auto x = random_floats(m.random(), 40 * 33), logits = random_floats(m.random(), 40 * 4);
    expect_same_for_threads(40 * 45, [&](int threads, float* y) {
      Buffer scratch(experts_scratch(experts, 40, threads));
      run_experts(experts, x.data(), logits.data(), y, 40, scratch.data(), threads, nullptr);
    });
  }
}

TEST(Lora, ThreadsDoNotChangeABit) {
  Matrices m;
  Lora lora;
  for (int a = 0; a < 3; ++a) {
    lora.a.push_back(m.make(Format::f32, 64, 1500));
    lora.b.push_back(m.make(Format::f32, 64, 1700));
  }
  const auto x = random_floats(m.random(), 12 * 1500), start = random_floats(m.random(), 12 * 1700);
  const std::vector<float> ids{0, 2, -1, 0, 1, 2, 2, -1, 0, 0, 1, 2};
  expect_same_for_threads(12 * 1700, [&](int threads, float* y) {
    std::copy(start.begin(), start.end(), y);
    Buffer scratch(lora_scratch(lora, 12, threads));
    run_lora(lora, x.data(), ids.data(), y, 12, scratch.data(), threads, nullptr);
  });
}

}  // namespace active_rows_test
}  // namespace sluice::engine
