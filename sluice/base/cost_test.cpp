#include "sluice/base/cost.h"

#include "sluice/base/test_error.h"

namespace sluice {
namespace cost_test {

TEST(Meter, SumsCallsByPath) {
  Meter meter;
  meter.add("conv", 10, 100);
  meter.add("fc", 5, 50);
  meter.add("conv", 10, 100);
  meter.add_samples(2);
  ASSERT_EQ(meter.entries().size(), 2U);
  EXPECT_EQ(meter.entries()[0].path, "conv");
  EXPECT_EQ(meter.entries()[0].calls, 2);
  EXPECT_EQ(meter.entries()[0].macs, 20);
  EXPECT_EQ(meter.macs(), 25);
  EXPECT_EQ(meter.bytes(), 250);
  EXPECT_DOUBLE_EQ(meter.macs_per_sample(), 12.5);
}

TEST(Meter, ResetKeepsEntriesAndTheirIndices) {
  Meter meter;
  const size_t fc = meter.entry("fc");
  meter.add(fc, 5, 50);
  meter.add_samples(1);
  meter.reset();
  EXPECT_EQ(meter.macs(), 0);
  EXPECT_EQ(meter.samples(), 0);
  EXPECT_DOUBLE_EQ(meter.macs_per_sample(), 0);
  EXPECT_EQ(meter.entry("fc"), fc);
  EXPECT_EQ(meter.entries().size(), 1U);
}

TEST(Budget, UnsetFieldsAllowEverything) {
  EXPECT_NO_THROW(Budget{}.require({1LL << 60, 1, 1LL << 60}, "net"));
}

TEST(Budget, AllowsExactlyItsValueAndRefusesOneMore) {
  Budget budget;
  budget.macs_per_sample = 100;
  budget.weight_bytes = 10;
  EXPECT_NO_THROW(budget.require({100, 5, 10}, "net"));
  expect_error(Code::limit, "net: needs 101 MACs", [&] { budget.require({101, 5, 10}, "net"); });
  expect_error(Code::limit, "net: needs 11 bytes", [&] { budget.require({100, 5, 11}, "net"); });
}

TEST(Cost, AddsFieldByField) {
  const Cost sum = Cost{1, 2, 3} + Cost{10, 20, 30};
  EXPECT_EQ(sum.macs, 11);
  EXPECT_EQ(sum.params, 22);
  EXPECT_EQ(sum.weight_bytes, 33);
}

}  // namespace cost_test
}  // namespace sluice
