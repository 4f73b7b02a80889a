// The kernels over chosen rows, called directly: threads, union or lists, memory.
#include "sluice/engine/kernel/active_rows.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/expert_groups.h"
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

TEST(Experts, ThreadsThatShareOutExpertsDoNotChangeABit) {
  Matrices m;
  constexpr size_t kRows = 300, kIn = 45;
  for (const bool gated : {false, true}) {
    Experts experts;
    experts.top_k = 2;
    for (int e = 0; e < 5; ++e) {  // inputs in two parts, tokens in several
      experts.up.push_back(m.make(Format::f32, 600, kIn));
      if (gated) experts.gate.push_back(m.make(Format::f32, 600, kIn));
      experts.down.push_back(m.make(Format::f32, 600, 70));
    }
    const auto x = random_floats(m.random(), kRows * kIn);
    auto logits = random_floats(m.random(), kRows * 5);
    for (size_t t = 0; t < kRows; ++t) {  // one expert of most tokens, one of nobody, one of two
      logits[5 * t] += t % 8 ? 9.0f : 0.0f;
      logits[5 * t + 3] = -99;
      logits[5 * t + 4] = t == 3 || t == 299 ? 99.0f : -98.0f;
    }
    std::vector<float> want(kRows * 70), got(want.size());
    Buffer plain(experts_scratch(experts, kRows, 1));
    run_experts(experts, x.data(), logits.data(), want.data(), kRows, plain.data(), 1, nullptr);
    make_expert_panels(experts);
    Buffer memory(experts_scratch(experts, kRows, 1));
    run_experts(experts, x.data(), logits.data(), got.data(), kRows, memory.data(), 1, nullptr);
    const float scale = *std::max_element(want.begin(), want.end());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5f * scale);
    expect_same_for_threads(kRows * 70, [&](int threads, float* y) {
      Buffer scratch(experts_scratch(experts, kRows, threads));
      run_experts(experts, x.data(), logits.data(), y, kRows, scratch.data(), threads, nullptr);
    });
  }
}

TEST(ExpertGroups, SortTokensByExpert) {
  constexpr size_t kRows = 6, kExperts = 3;
  const std::vector<float> logits{3, 2, 1, 1, 2, 3, 5, 5, 0, 0, 1, 0, 2, 1, 1, NAN, 1, 2};
  Buffer scratch(ExpertGroups::scratch_bytes(kRows, kExperts, 2));
  ExpertGroups groups(scratch.data(), kRows, kExperts, 2);
  groups.route(logits.data(), false);
  EXPECT_EQ(std::vector<int32_t>(groups.start, groups.start + 4),
            (std::vector<int32_t>{0, 4, 10, 12}));
  EXPECT_EQ(std::vector<int32_t>(groups.token, groups.token + 12),
            (std::vector<int32_t>{0, 2, 3, 4, 0, 1, 2, 3, 4, 5, 1, 5}));
  for (size_t t = 0; t < kRows; ++t) {
    double sum = 0;
    for (size_t i = 0; i < 2; ++i) {
      const int32_t place = groups.places[2 * t + i];
      EXPECT_EQ(groups.token[place], int32_t(t));
      sum += double(groups.weight[place]);
    }
    EXPECT_LT(groups.places[2 * t], groups.places[2 * t + 1]);
    EXPECT_NEAR(sum, 1, 1e-6);
  }
}

TEST(ExpertGroups, NoThreadGetsMoreThanItsPartOfTheJobs) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const int threads = 1 + int(random() % 6);
    std::vector<ExpertJob> jobs(1 + random() % 20);
    int64_t all = 0;
    for (ExpertJob& job : jobs) {
      job.last = 1 + int32_t(random() % 112);
      all += job.tokens() + 2;
    }
    std::vector<int32_t> order(jobs.size());
    std::vector<int64_t> loads(static_cast<size_t>(threads));
    share_jobs(jobs, threads, order.data(), loads.data());
    std::vector<int64_t> found(loads.size());
    int64_t shared = 0;
    for (const ExpertJob& job : jobs) {
      ASSERT_LT(job.owner, threads);
      (job.owner == ExpertJob::kAll ? shared : found[size_t(job.owner)]) += job.tokens() + 2;
    }
    for (const int64_t load : found) EXPECT_LE(load * threads * 32, (all + threads) * 33);
    // What remains did not fit anywhere.
    if (threads == 1) EXPECT_EQ(shared, 0);
    if (int64_t(jobs.size()) < threads) EXPECT_GT(shared, 0);
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
