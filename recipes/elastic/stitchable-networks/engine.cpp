// What the paths are worth and what they cost: test accuracy, metered MACs, seconds in the engine.
#include "recipes/elastic/stitchable-networks/study.h"
#include "recipes/engine_model.h"
#include "sluice/base/machine.h"

#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/evaluate.h"
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::recipes::stitchable_networks {
namespace {

Points measure_in_lab(lab::Model& model, const data::ImageSet& data, c10::Device device) {
  const lab::Feed test(data.test, data.mean, data.std, device);
  Points points;
  if (model.sizes.empty()) {
    points.push_back({"", static_cast<double>(model.cost().macs),
                      100 * lab::evaluate(model, test, false, 1000).accuracy});
  }
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    const auto found = lab::evaluate(model, test, false, 1000, static_cast<int64_t>(i));
    points.push_back(
        {model.sizes[i].name, static_cast<double>(model.sizes[i].macs), 100 * found.accuracy});
  }
  return points;
}

#if SLUICE_HAS_ENGINE

/// The anchors, and between two of them the first, middle and last in the order of cost.
std::vector<size_t> timed_paths(const lab::Model& model) {
  std::vector<size_t> result, between;
  const auto take = [&] {
    if (between.empty()) return;
    result.push_back(between.front());
    if (between.size() > 2) result.push_back(between[between.size() / 2]);
    if (between.size() > 1) result.push_back(between.back());
    between.clear();
  };
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    if (is_stitched(model.sizes[i].name)) {
      between.push_back(i);
    } else {
      take();
      result.push_back(i);
    }
  }
  return result;
}

#endif

}  // namespace

#if SLUICE_HAS_ENGINE

Points measure(lab::Model& model, const data::ImageSet& data, c10::Device device,
               const std::string& directory) {
  if (!device.is_cpu()) return measure_in_lab(model, data, device);
  const auto network = in_engine(model, directory + "/measured.safetensors");
  const engine::LabelledPixels pixels{data.test.pixels, data.test.labels, data.mean, data.std};
  Points points;
  for (size_t i = 0; i < std::max<size_t>(1, model.sizes.size()); ++i) {
    const bool whole = model.sizes.empty();
    const auto found =
        engine::evaluate(network, pixels, 250, 0, nullptr, whole ? -1 : static_cast<int64_t>(i));
    if (whole) {
      points.push_back({"", found.macs_per_sample, 100 * found.accuracy});
    } else {
      const auto& entry = network.bundle().sizes()[i];
      points.push_back({entry.name, static_cast<double>(entry.macs), 100 * found.accuracy});
    }
  }
  return points;
}

void measure_engine(RecipeRun& run, const lab::Model& stitched, const data::ImageSet& data,
                    const std::string& arm) {
  const auto network =
      in_engine(stitched, fmt::format("{}/{}.safetensors", run.options.work_directory, arm));
  run.report.add(arm, "system", "engine_difference",
                 largest_size_difference(stitched, network, data, 32));
  const std::vector<size_t> paths = timed_paths(stitched);
  Figure figure;
  figure.title = "Time of each path in the engine";
  figure.x_label = "MACs per image";
  figure.y_label = "microseconds per image, one thread";
  for (const int64_t batch : {1, 64}) {
    engine::Session session(network, {.batch = batch, .threads = 1});
    std::vector<float> input(size_t(batch * numel(network.input_shape())));
    data::to_floats(data.test, 0, batch, data.mean, data.std, input);
    std::vector<float> output(size_t(batch * numel(network.output_shape())));
    std::vector<std::function<void()>> calls;
    for (const size_t path : paths) {
      calls.push_back(
          [&, path] { session.run(input, output, {.size = static_cast<int64_t>(path)}); });
    }
    const auto seconds = time_interleaved(calls, 15);
    Series series{.name = fmt::format("batch {}", batch)};
    for (size_t i = 0; i < paths.size(); ++i) {
      const double us = 1e6 * seconds[i] / double(batch);
      series.x.push_back(double(stitched.sizes[paths[i]].macs));
      series.y.push_back(us);
      run.report.add(arm, "system",
                     fmt::format("us_batch{}_{}", batch, stitched.sizes[paths[i]].name), us);
    }
    figure.series.push_back(std::move(series));
  }
  run.report.figures.push_back({arm + "-time", std::move(figure)});
}

#else

Points measure(lab::Model& model, const data::ImageSet& data, c10::Device device,
               const std::string&) {
  return measure_in_lab(model, data, device);
}

void measure_engine(RecipeRun& run, const lab::Model&, const data::ImageSet&, const std::string&) {
  run.report.notes.emplace_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::stitchable_networks
