#include "recipes/dynamic/jei-dnn/speed.h"

#include <torch/types.h>

#include <cmath>
#include <deque>

#include "recipes/engine_model.h"
#include "recipes/engine_race.h"

#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/evaluate.h"
#endif

namespace sluice::recipes::jei_dnn {
namespace {

/// Metered by the bricks over the test images, MACs per image.
double metered_in_lab(lab::Model model, const data::ImageSet& data, c10::Device device) {
  const torch::NoGradGuard no_grad;
  const lab::Feed feed(data.test, data.mean, data.std, device);
  Meter meter;
  lab::Context context;
  context.meter = &meter;
  for (int64_t first = 0; first < feed.count(); first += 1000)
    model.forward(feed.range(first, std::min<int64_t>(1000, feed.count() - first)).inputs, context);
  return meter.macs_per_sample();
}

}  // namespace

void measure(RecipeRun& run, const lab::Model& backbone, const std::vector<Deployed>& deployed,
             const data::ImageSet& data) {
  const auto whole = double(backbone.cost().macs);
  Report& report = run.report;
#if SLUICE_HAS_ENGINE
  const std::string& folder = run.options.work_directory;
  const auto dense = in_engine(backbone, folder + "/backbone.safetensors");
  std::deque<engine::Network> networks;
  std::vector<Racer> racers = {{.arm = "full", .role = "baseline", .network = &dense}};
#endif
  for (const Deployed& each : deployed) {
    const double macs = metered_in_lab(each.model, data, run.options.device);
    double metered = macs;
#if SLUICE_HAS_ENGINE
    networks.push_back(in_engine(each.model, folder + "/" + each.arm + ".safetensors"));
    racers.push_back({.arm = each.arm, .role = each.role, .network = &networks.back()});
    const auto found = engine::evaluate(
        networks.back(), {data.test.pixels, data.test.labels, data.mean, data.std}, 64, 1);
    metered = found.macs_per_sample;
    report.add(each.arm, each.role, "engine_accuracy", 100 * found.accuracy);
    report.add(each.arm, each.role, "engine_and_lab_macs", metered / macs);
#endif
    report.add(each.arm, each.role, "metered_cost", metered / whole);
    report.add(each.arm, each.role, "cost_error",
               std::abs(metered / whole / each.expected_cost - 1));
  }
#if SLUICE_HAS_ENGINE
  race_pictures(run, racers, data, {.samples = 512});
#endif
}

}  // namespace sluice::recipes::jei_dnn
