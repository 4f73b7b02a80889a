#include "recipes/dynamic/jei-dnn/speed.h"

#include <torch/types.h>

#include <cmath>

#include "recipes/engine_model.h"
#include "sluice/base/machine.h"

#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/evaluate.h"
#endif

namespace sluice::recipes::jei_dnn {
namespace {

constexpr int64_t kTimedBatch = 64;
constexpr int64_t kTimedBatches = 8;
constexpr int kRounds = 11;

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
  std::vector<engine::Network> networks;
  std::vector<engine::Session> sessions;
  sessions.emplace_back(dense, engine::Session::Options{.batch = kTimedBatch, .threads = 1});
#endif
  for (const Deployed& each : deployed) {
    const double macs = metered_in_lab(each.model, data, run.options.device);
    double metered = macs;
#if SLUICE_HAS_ENGINE
    networks.push_back(in_engine(each.model, folder + "/" + each.arm + ".safetensors"));
    sessions.emplace_back(networks.back(),
                          engine::Session::Options{.batch = kTimedBatch, .threads = 1});
    const auto found = engine::evaluate(
        networks.back(), {data.test.pixels, data.test.labels, data.mean, data.std}, kTimedBatch, 1);
    metered = found.macs_per_sample;
    report.add(each.arm, each.role, "engine_accuracy", 100 * found.accuracy);
    report.add(each.arm, each.role, "engine_and_lab_macs", metered / macs);
#endif
    report.add(each.arm, each.role, "metered_cost", metered / whole);
    report.add(each.arm, each.role, "cost_error",
               std::abs(metered / whole / each.expected_cost - 1));
  }
#if SLUICE_HAS_ENGINE
  const int64_t batches =
      std::max<int64_t>(1, std::min(kTimedBatches, data.test.count() / kTimedBatch));
  const auto each = static_cast<size_t>(kTimedBatch * numel(backbone.input_shape));
  std::vector<std::vector<float>> inputs;
  for (int64_t b = 0; b < batches; ++b) {
    inputs.emplace_back(each);
    data::to_floats(data.test, b * kTimedBatch, kTimedBatch, data.mean, data.std, inputs.back());
  }
  std::vector<float> output(size_t(kTimedBatch * numel(dense.output_shape())));
  std::vector<std::function<void()>> calls;
  for (engine::Session& session : sessions) {
    calls.push_back([&] {
      for (const auto& input : inputs) session.run(input, output);
    });
  }
  const auto seconds = time_interleaved(calls, kRounds);
  const double images = double(batches * kTimedBatch);
  report.add("full", "baseline", "us_per_image", 1e6 * seconds[0] / images);
  for (size_t i = 0; i < deployed.size(); ++i) {
    report.add(deployed[i].arm, deployed[i].role, "us_per_image", 1e6 * seconds[i + 1] / images);
    report.add(deployed[i].arm, deployed[i].role, "time_ratio", seconds[i + 1] / seconds[0]);
  }
#endif
}

}  // namespace sluice::recipes::jei_dnn
