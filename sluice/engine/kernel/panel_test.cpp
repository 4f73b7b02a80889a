#include "sluice/engine/kernel/panel.h"

#include <gmock/gmock.h>

#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace panel_test {

using testing::Guarded;
using testing::random_floats;

TEST(Panel, MatchesTheReferenceForAnyNumberOfOutputsPixelsAndRuns) {
  std::mt19937_64 random(1);
  const auto pick = [&](int64_t low, int64_t high) {
    return low + int64_t(random() % uint64_t(high - low + 1));
  };
  testing::for_each_target([&] {
    for (int round = 0; round < 60; ++round) {
      const int64_t outputs = pick(1, 140), pixels = pick(1, 30), runs = pick(0, 3);
      std::vector<PanelRun> list;
      int64_t depth = 0;
      for (int64_t i = 0; i < runs; ++i) {
        list.push_back({pick(0, 40), pick(0, 9)});
        depth += list.back().count;
      }
      const auto weight = random_floats(random, size_t(outputs * depth));
      const auto bias = random_floats(random, size_t(panel_outputs(outputs)));
      const auto x = random_floats(random, 400);
      const Buffer panels = pack_panels(weight, outputs, depth);
      std::vector<const float*> corners;
      for (int64_t p = 0; p < pixels; ++p) corners.push_back(x.data() + pick(0, 350));
      const int64_t stride = outputs + pick(0, 5);
      Guarded y(size_t((pixels - 1) * stride + outputs));
      std::fill(y.span().begin(), y.span().end(), 7.0f);
      PanelCall call;
      call.weight = panels.floats();
      call.panel_stride = depth * kPanel;
      call.outputs = outputs;
      call.bias = round % 3 ? bias.data() : nullptr;
      call.runs = list;
      call.x = corners.data();
      call.pixels = pixels;
      call.out = y.data();
      call.out_stride = stride;
      call.accumulate = round % 5 == 0;
      if (round % 2) call.next = panels.floats();
      panel_products(call);
      ASSERT_TRUE(y.intact());
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t o = 0; o < stride && p * stride + o < int64_t(y.span().size()); ++o) {
          double want = 7;  // between the rows nothing is written
          if (o < outputs) {
            want = call.accumulate ? 7 : call.bias ? bias[size_t(o)] : 0;
            int64_t k = 0;
            for (const PanelRun& run : list) {
              for (int64_t i = 0; i < run.count; ++i, ++k)
                want += double(weight[size_t(o * depth + k)]) * corners[size_t(p)][run.offset + i];
            }
          }
          ASSERT_NEAR(y.data()[p * stride + o], want, 1e-4)
              << outputs << " outputs, pixel " << p << ", output " << o;
        }
      }
    }
  });
}

TEST(Panel, ASumDoesNotDependOnWhatIsComputedBesideIt) {
  std::mt19937_64 random(2);
  const int64_t outputs = 150, depth = 77, pixels = 29;
  const auto weight = random_floats(random, outputs * depth);
  const auto x = random_floats(random, pixels * depth);
  const Buffer panels = pack_panels(weight, outputs, depth);
  const std::vector<PanelRun> run{{0, depth}};
  std::vector<const float*> corners;
  for (int64_t p = 0; p < pixels; ++p) corners.push_back(x.data() + p * depth);
  testing::for_each_target([&] {
    PanelCall call;
    call.weight = panels.floats();
    call.panel_stride = depth * kPanel;
    call.runs = run;
    call.out_stride = outputs;
    const auto compute = [&](int64_t first, int64_t count, int64_t wanted) {
      std::vector<float> y(size_t(count * outputs));
      call.outputs = wanted;
      call.x = corners.data() + first;
      call.pixels = count;
      call.out = y.data();
      panel_products(call);
      return y;
    };
    const auto all = compute(0, pixels, outputs);
    for (const int64_t count : {1, 2, 3, 5, 13}) {
      for (const int64_t wanted : {1, 16, 33, 128, 150}) {
        const auto some = compute(7, count, wanted);
        for (int64_t p = 0; p < count; ++p) {
          for (int64_t o = 0; o < wanted; ++o)
            ASSERT_EQ(some[size_t(p * outputs + o)], all[size_t((p + 7) * outputs + o)]);
        }
      }
    }
  });
}

}  // namespace panel_test
}  // namespace sluice::engine
