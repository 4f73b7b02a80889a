#include "sluice/base/machine.h"

#include "sluice/base/probe_kernels.h"
#include "sluice/base/test_error.h"

namespace sluice {
namespace machine_test {

TEST(DescribeMachine, KnowsWhereItRuns) {
  const Machine machine = describe_machine();
  EXPECT_FALSE(machine.cpu.empty());
  EXPECT_THAT(machine.isa,
              ::testing::AnyOf("avx512-amx", "avx512-vnni", "avx512", "avx2", "generic"));
  EXPECT_GE(machine.cores, 1);
  EXPECT_GT(machine.memory_bytes, 1 << 20);
}

TEST(Statistics, MedianOfOddAndEvenCounts) {
  EXPECT_DOUBLE_EQ(median({3, 1, 2}), 2);
  EXPECT_DOUBLE_EQ(median({4, 1, 3, 2}), 2.5);
  EXPECT_DOUBLE_EQ(median({7}), 7);
  expect_error(Code::shape, "median", [&] { median({}); });
}

TEST(Statistics, MeanAndSampleDeviation) {
  const std::vector<double> values{2, 4, 4, 4, 5, 5, 7, 9};
  EXPECT_DOUBLE_EQ(mean(values), 5);
  EXPECT_NEAR(stddev(values), 2.13809, 1e-5);
  EXPECT_DOUBLE_EQ(stddev(std::vector<double>{3}), 0);
  EXPECT_DOUBLE_EQ(stddev({}), 0);
  expect_error(Code::shape, "mean", [&] { mean({}); });
}

TEST(TimeInterleaved, AlternatesAndReturnsOneMedianEach) {
  std::string order;
  const auto note = [&order](char c) {
    return [&order, c] {
      if (order.empty() || order.back() != c) {
        order += c;
      }
    };
  };
  const std::vector<double> medians = time_interleaved({note('a'), note('b')}, 3, 1e-5);
  ASSERT_EQ(medians.size(), 2U);
  EXPECT_GT(medians[0], 0);
  EXPECT_EQ(order, "abababab");  // the warm-up, then three rounds
  EXPECT_TRUE(time_interleaved({}, 3).empty());
  expect_error(Code::usage, "rounds", [&] { time_interleaved({note('a')}, 0); });
}

TEST(TimeInterleaved, RanksWorkBySize) {
  volatile double sink = 0;
  const auto work = [&sink](int n) {
    return [&sink, n] {
      for (int i = 0; i < n; ++i) {
        sink = sink + 1;
      }
    };
  };
  const std::vector<double> medians = time_interleaved({work(100), work(100000)}, 3, 1e-4);
  EXPECT_LT(medians[0] * 10, medians[1]);
}

TEST(Probe, SumsEveryWord) {
  const probe::Pages pages(4096);
  const std::span<uint64_t> words(pages.words(), 512);
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = i;
  }
  EXPECT_EQ(probe::sum_words(words), 511U * 512 / 2);
  EXPECT_EQ(probe::sum_words(words.first(32)), 31U * 32 / 2);
  EXPECT_EQ(probe::sum_words(words.first(0)), 0U);
}

TEST(Probe, ChainsConvergeToOneEach) {
  const float sum = probe::multiply_add(100000);
  EXPECT_GE(sum, 1);
  EXPECT_LE(sum, 50);
  EXPECT_EQ(probe::flops_of_multiply_add(10), 10 * probe::flops_of_multiply_add(1));
}

TEST(Measure, RefusesImpossibleThreadCounts) {
  expect_error(Code::usage, "threads", [&] { measure_f32_peak(0); });
  expect_error(Code::usage, "threads", [&] { measure_read_bandwidth(-1); });
}

TEST(Measure, PeakIsPlausible) {
  const double peak = measure_f32_peak(1);
  EXPECT_GT(peak, 1e8);
  EXPECT_LT(peak, 1e13);
}

TEST(Measure, Int8PeakIsThereExactlyWithVnni) {
  expect_error(Code::usage, "threads", [&] { measure_int8_peak(0); });
  const bool vnni = describe_machine().isa.ends_with("vnni");
  const double peak = measure_int8_peak(1);
  if (vnni) {
    EXPECT_GT(peak, 1e8);
  }
  EXPECT_EQ(peak == 0, probe::operations_of_int8_dot(1) == 0);
  EXPECT_EQ(probe::operations_of_int8_dot(10), 10 * probe::operations_of_int8_dot(1));
}

TEST(Machine, LastLevelCacheIsAbsentOrPlausible) {
  const int64_t bytes = last_level_cache_bytes();
  EXPECT_GE(bytes, 0);
  EXPECT_LT(bytes, int64_t{1} << 34);
}

}  // namespace machine_test
}  // namespace sluice
