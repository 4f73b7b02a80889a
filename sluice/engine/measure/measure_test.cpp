#include <gmock/gmock.h>

#include <cmath>
#include <set>

#include "sluice/base/probe_kernels.h"
#include "sluice/base/test_error.h"
#include "sluice/engine/measure/bars.h"
#include "sluice/engine/measure/limit_probe.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace measure_test {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

constexpr TimingOptions kFast{.rounds = 3, .min_seconds = 1e-6};

const ProbeMemory& memory() {
  static const ProbeMemory memory(0);
  return memory;
}

Contender busy(std::string name, Role role, int64_t rounds, std::vector<float> output) {
  Contender contender;
  contender.name = std::move(name);
  contender.role = role;
  contender.run = [rounds] { probe::keep(probe::multiply_add(rounds)); };
  contender.bytes = 100;
  contender.operations = static_cast<double>(rounds);
  contender.output = [output] { return std::span<const float>(output); };
  return contender;
}

KernelCase case_of(std::vector<Contender> contenders) {
  KernelCase c;
  c.kernel = "test kernel";
  c.shape = "1x1";
  c.prepare = [contenders] { return contenders; };
  return c;
}

TEST(SpreadOf, QuartilesLieBetweenSamples) {
  const Spread s = spread_of({5, 1, 2, 4, 3});
  EXPECT_EQ(s.median, 3);
  EXPECT_EQ(s.low, 2);
  EXPECT_EQ(s.high, 4);
  EXPECT_EQ(s.n, 5);
  EXPECT_EQ(spread_of({1, 2}).low, 1.25);
  expect_error(Code::shape, "median", [] { spread_of({}); });
}

TEST(NameMatches, BeginningsStarsAndAlternatives) {
  EXPECT_TRUE(name_matches("", "anything"));
  EXPECT_TRUE(name_matches("gemv i4", "gemv i4-32 4096x4096"));
  EXPECT_TRUE(name_matches("*i4", "gemv i4-32 4096x4096"));
  EXPECT_FALSE(name_matches("gemv", "sparse-gemv f32"));
  EXPECT_TRUE(name_matches("gemv*batch 1", "gemv i4-32 4096x4096 batch 1"));
  EXPECT_TRUE(name_matches("conv,gemv", "gemv f32"));
  EXPECT_FALSE(name_matches("conv,", "gemv f32"));
  EXPECT_FALSE(name_matches("f32*gemv", "gemv f32"));
  EXPECT_TRUE(is_one_of("gemm f32,gemm i8", "gemm i8"));
  EXPECT_FALSE(is_one_of("gemm f32,gemm i8", "gemm i8-32"));
  EXPECT_TRUE(is_one_of("gemv *", "gemv i8-32"));
}

TEST(Rotation, TakesEnoughCopiesAndReturnsToTheFirst) {
  const auto number = [](int64_t i) { return static_cast<int>(i); };
  Rotation<int> one(0, 100, number);
  EXPECT_EQ(one.size(), 1U);
  Rotation<int> three(250, 100, number);
  std::vector<int> order;
  for (int i = 0; i < 4; ++i) {
    order.push_back(three.next());
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 0));
}

TEST(SampleInterleaved, EveryFunctionInEveryRound) {
  std::string order;
  int rounds_seen = 0;
  const auto note = [&order](char c) {
    return [&order, c] {
      if (order.empty() || order.back() != c) {
        order += c;
      }
    };
  };
  const auto samples =
      sample_interleaved({note('a'), note('b')}, kFast, [&](int) { ++rounds_seen; });
  ASSERT_EQ(samples.size(), 2U);
  EXPECT_EQ(samples[1].size(), 3U);
  EXPECT_EQ(rounds_seen, 3);
  EXPECT_EQ(order, "abababab");  // sizing the batches, then three rounds
}

TEST(MeasureCase, RatiosFollowTheWork) {
  const auto measured = measure_case(
      case_of({busy("ours", Role::ours, 2000, {1}), busy("dense", Role::dense, 20000, {1}),
               busy("slow", Role::rival, 40000, {1}), busy("fast", Role::rival, 10000, {1})}),
      {.rounds = 5, .min_seconds = 1e-4}, memory());
  EXPECT_EQ(measured.ours().ours_over_this, 1);
  ASSERT_NE(measured.dense(), nullptr);
  EXPECT_LT(measured.dense()->ours_over_this, 0.5);
  ASSERT_NE(measured.best_rival(), nullptr);
  EXPECT_EQ(measured.best_rival()->name, "fast");
  EXPECT_FALSE(measured.ours().share.has_value());
}

TEST(MeasureCase, ResultsThatDifferAreFound) {
  const float nan = std::nanf("");
  const auto measured = measure_case(
      case_of({busy("ours", Role::ours, 10, {100, 2}), busy("near", Role::rival, 10, {100.05f, 2}),
               busy("far", Role::rival, 10, {101, 2}), busy("nan", Role::rival, 10, {100, nan}),
               busy("short", Role::rival, 10, {100})}),
      kFast, memory());
  EXPECT_TRUE(measured.contenders[1].agrees());
  EXPECT_NEAR(*measured.contenders[1].difference, 5e-4, 1e-5);
  EXPECT_FALSE(measured.contenders[2].agrees());
  EXPECT_FALSE(measured.contenders[3].agrees());
  EXPECT_FALSE(measured.contenders[4].agrees());
}

TEST(MeasureCase, ShareIsOfTheLimitInTheSameRun) {
  KernelCase c = case_of({busy("ours", Role::ours, 1 << 14, {1})});
  c.limit = Limit::f32_peak;
  auto contenders = c.prepare();
  contenders[0].operations = static_cast<double>(probe::flops_of_multiply_add(1 << 14));
  c.prepare = [contenders] { return contenders; };
  const auto measured = measure_case(c, {.rounds = 5, .min_seconds = 1e-3}, memory());
  EXPECT_GT(measured.limit_rate, 1e8);
  ASSERT_TRUE(measured.ours().share.has_value());
  EXPECT_GT(*measured.ours().share, 0.3);
  EXPECT_LT(*measured.ours().share, 3);
}

TEST(LimitProbe, KnowsItsAmount) {
  LimitProbe none(Limit::none, 1, memory());
  EXPECT_FALSE(none.available());
  for (const int threads : {1, 3}) {
    LimitProbe read(Limit::read_bandwidth, threads, memory());
    EXPECT_EQ(read.amount(), 1 << 18);
    for (int i = 0; i < 6; ++i) {
      read.run();
    }
  }
  LimitProbe one(Limit::f32_peak, 1, memory()), two(Limit::f32_peak, 2, memory());
  EXPECT_EQ(two.amount(), 2 * one.amount());
}

MeasuredCase measured_of(const std::string& kernel, double kept, double dense_ratio) {
  MeasuredCase c;
  c.kernel = kernel;
  c.shape = "4096x4096 batch 1";
  c.kept = kept;
  Measurement ours, dense, rival;
  ours.name = "sluice";
  ours.bytes = 10;
  dense.name = "sluice dense f32";
  dense.role = Role::dense;
  dense.bytes = 40;
  dense.ours_over_this = dense_ratio;
  rival.name = "oneDNN f32";
  rival.role = Role::rival;
  rival.seconds.median = 1;
  rival.ours_over_this = 0.9;
  c.contenders = {ours, dense, rival};
  return c;
}

Bar bar_of(std::string kernel, Metric metric, double bound) {
  Bar bar;
  bar.name = "bar";
  bar.kernel = std::move(kernel);
  bar.metric = metric;
  bar.bound = bound;
  return bar;
}

TEST(Judge, EachMetricHasItsMeaning) {
  std::vector<MeasuredCase> cases{measured_of("gemv i8", 0.5, 0.3)};
  cases[0].contenders[0].share = 0.8;
  Bar share = bar_of("gemv *", Metric::share_of_limit, 0.85);
  share.at_most = false;
  Bar against = bar_of("gemv *", Metric::time_ratio, 0.5);
  against.against = "oneDNN";
  const std::vector<Bar> bars{share,
                              bar_of("gemv *", Metric::time_ratio, 0.5),
                              against,
                              bar_of("gemv *", Metric::time_over_proportional, 0.5),
                              bar_of("gemv *", Metric::time_over_bytes, 1.25),
                              bar_of("conv", Metric::time_ratio, 0.5)};
  const auto judged = judge(cases, bars);
  ASSERT_EQ(judged.size(), 5U) << "the last bar is about another kernel";
  std::vector<double> values;
  for (const Judgement& j : judged) {
    values.push_back(j.value);
  }
  EXPECT_THAT(values,
              ElementsAre(DoubleNear(0.8, 1e-12), DoubleNear(0.3, 1e-12), DoubleNear(0.9, 1e-12),
                          DoubleNear(0.6, 1e-12), DoubleNear(1.2, 1e-12)));
  EXPECT_FALSE(judged[0].met);
  EXPECT_TRUE(judged[1].met);
  EXPECT_FALSE(judged[2].met);
  EXPECT_FALSE(judged[3].met);
  EXPECT_TRUE(judged[4].met);
  EXPECT_EQ(judged[2].against->name, "oneDNN f32");
}

TEST(Judge, LooksOnlyAtItsThreadsAndFractions) {
  std::vector<MeasuredCase> cases{measured_of("k", 0.1, 1), measured_of("k", 0.35, 1),
                                  measured_of("k", 0.35, 1)};
  cases[2].threads = 2;
  Bar bar = bar_of("k", Metric::time_ratio, 2);
  bar.threads = 1;
  bar.kept_low = 0.3;
  const auto judged = judge(cases, {bar});
  ASSERT_EQ(judged.size(), 1U);
  EXPECT_EQ(judged[0].measured, &cases[1]);
}

TEST(Cases, EveryOneRunsAndItsContendersAgree) {
  for (const KernelCase& c : all_cases({.threads = {1}, .quick = true})) {
    const MeasuredCase measured = measure_case(c, {.rounds = 1, .min_seconds = 1e-7}, memory());
    for (const Measurement& m : measured.contenders) {
      EXPECT_TRUE(m.agrees()) << measured.name() << " kept " << c.kept << ": " << m.name << " "
                              << m.difference.value_or(0);
      EXPECT_GT(m.seconds.median, 0) << measured.name() << ": " << m.name;
    }
    if (c.limit == Limit::read_bandwidth) {
      EXPECT_GT(measured.ours().bytes, 0) << measured.name();
    }
  }
}

TEST(Cases, EveryBarHasACaseAndNamesAreUnique) {
  std::set<std::string> names;
  for (const KernelCase& c : all_cases({.threads = {1}, .quick = false})) {
    EXPECT_TRUE(names.insert(c.kernel + c.shape + std::to_string(c.kept)).second)
        << c.kernel << " " << c.shape << " " << c.kept;
  }
  for (const Bar& bar : all_bars()) {
    bool found = false;
    for (const KernelCase& c : all_cases({.threads = {1}, .quick = false})) {
      found = found || (is_one_of(bar.kernel, c.kernel) && name_matches(bar.shape, c.shape) &&
                        c.kept >= bar.kept_low && c.kept <= bar.kept_high);
    }
    EXPECT_TRUE(found) << bar.name;
  }
}

TEST(Rivals, AgreeWithEachOther) {
  const std::vector<float> x = random_values(3 * 64, 1), weight = random_values(64 * 32, 2);
  const LinearProblem problem{3, 64, 32, x, weight, 1, 100};
  std::vector<Contender> contenders;
  add_linear_rivals(problem, contenders);
  ASSERT_FALSE(contenders.empty());
  for (const Precision precision : {Precision::bf16, Precision::int8}) {
    for (auto rival :
         {onednn_matmul(problem, precision), onednn_inner_product(problem, precision)}) {
      if (rival) {
        contenders.push_back(*rival);
      }
    }
  }
  for (const Contender& contender : contenders) {
    contender.run();
    const std::span<const float> y = contender.output();
    ASSERT_EQ(y.size(), 96U) << contender.name;
    for (size_t r = 0; r < 3; ++r) {
      for (size_t o = 0; o < 32; ++o) {
        double sum = 0, size = 0;
        for (size_t i = 0; i < 64; ++i) {
          sum += double(x[r * 64 + i]) * weight[o * 64 + i];
          size += std::abs(double(x[r * 64 + i]) * weight[o * 64 + i]);
        }
        ASSERT_NEAR(y[r * 32 + o], sum, size * contender.tolerance) << contender.name;
      }
    }
  }
}

TEST(Rivals, TapsInThePaddingAreNoWork) {
  ConvProblem problem;
  problem.shape.in_channels = 2;
  problem.shape.out_channels = 3;
  for (int i = 0; i < 2; ++i) {
    problem.shape.kernel[i] = 3;
    problem.shape.padding[i] = 1;
  }
  EXPECT_EQ(problem.operations(), 2 * 2 * 3) << "of 3 x 3 taps on one pixel, one";
  problem.shape.in_height = problem.shape.out_height = 2;
  EXPECT_EQ(problem.operations(), 2 * 2 * 3 * 4);
}

TEST(RandomValues, AreTheSameEverywhere) {
  const std::vector<float> values = random_values(10000, 3, 2.0f);
  double sum = 0, squares = 0;
  for (const float v : values) {
    sum += v;
    squares += double(v) * v;
  }
  EXPECT_NEAR(sum / 10000, 0, 0.1);
  EXPECT_NEAR(std::sqrt(squares / 10000), 2, 0.1);
  EXPECT_EQ(values, random_values(10000, 3, 2.0f));
}

}  // namespace measure_test
}  // namespace sluice::engine::measure
