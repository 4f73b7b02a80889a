// What the sizes are worth and what they cost: test accuracy, metered MACs, seconds in the engine.
#include "recipes/elastic/sortednet/study.h"
#include "recipes/engine_model.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/path_pattern.h"

#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/evaluate.h"
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::recipes::sortednet {
namespace {

std::vector<Point> measure_in_lab(lab::Model& model, const data::ImageSet& data,
                                  c10::Device device) {
  const lab::Feed test(data.test, data.mean, data.std, device);
  std::vector<Point> points;
  const auto count = static_cast<int64_t>(std::max<size_t>(1, model.sizes.size()));
  for (int64_t size = 0; size < count; ++size) {
    Point point;
    const int64_t chosen = model.sizes.empty() ? -1 : size;
    point.accuracy = 100 * lab::evaluate(model, test, false, 1000, chosen).accuracy;
    point.macs = model.sizes.empty() ? static_cast<double>(model.cost().macs)
                                     : static_cast<double>(model.sizes[size_t(size)].macs);
    if (!model.sizes.empty()) point.name = model.sizes[size_t(size)].name;
    points.push_back(point);
  }
  return points;
}

#if SLUICE_HAS_ENGINE

/// Sizes to time: each width at full depth, and the whole width at each end of the depths.
std::vector<int64_t> timed_sizes(const lab::Model& model) {
  const std::string whole = model.sizes.back().name;
  const std::string depth = whole.substr(std::min(whole.find("-d"), whole.size()));
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    const std::string& name = model.sizes[i].name;
    if (name.ends_with(depth) || name.starts_with("w100-") || i == 0) {
      sizes.push_back(static_cast<int64_t>(i));
    }
  }
  return sizes;
}

#endif

}  // namespace

#if SLUICE_HAS_ENGINE

std::vector<Point> measure(lab::Model& model, const data::ImageSet& data, c10::Device device,
                           const std::string& directory) {
  if (!device.is_cpu()) return measure_in_lab(model, data, device);
  const auto network = in_engine(model, directory + "/measured.safetensors");
  const engine::LabelledPixels pixels{data.test.pixels, data.test.labels, data.mean, data.std};
  std::vector<Point> points;
  const auto count = static_cast<int64_t>(std::max<size_t>(1, model.sizes.size()));
  for (int64_t size = 0; size < count; ++size) {
    const int64_t chosen = model.sizes.empty() ? -1 : size;
    const auto found = engine::evaluate(network, pixels, 250, 0, nullptr, chosen);
    Point point;
    point.accuracy = 100 * found.accuracy;
    point.macs = found.macs_per_sample;
    if (!model.sizes.empty()) {
      const auto& entry = network.bundle().sizes()[size_t(size)];
      point.name = entry.name;
      point.macs = static_cast<double>(entry.macs);
    }
    points.push_back(point);
  }
  return points;
}

void measure_engine(RecipeRun& run, const Study& study, const data::ImageSet& data) {
  const auto& folder = run.options.work_directory;
  const auto network = in_engine(study.nested, folder + "/sortednet.safetensors");
  run.report.add("sortednet", "system", "engine_difference",
                 largest_size_difference(study.nested, network, data, 64));
  std::vector<engine::Network> alone;
  for (size_t i = 0; i < study.alone.size(); ++i) {
    alone.push_back(in_engine(study.alone[i], fmt::format("{}/alone{}.safetensors", folder, i)));
  }
  const std::vector<int64_t> sizes = timed_sizes(study.nested);
  Figure figure;
  figure.title = "Time of each size in the engine";
  figure.x_label = "MACs per image";
  figure.y_label = "microseconds per image, one thread";
  for (const int64_t batch : {1, 64}) {
    engine::Session session(network, {.batch = batch, .threads = 1});
    std::vector<engine::Session> single;
    for (const auto& one : alone) {
      single.emplace_back(one, engine::Session::Options{.batch = batch, .threads = 1});
    }
    std::vector<float> input(size_t(batch * numel(network.input_shape())));
    data::to_floats(data.test, 0, batch, data.mean, data.std, input);
    std::vector<float> output(size_t(batch * numel(network.output_shape())));
    std::vector<std::function<void()>> calls;
    for (const int64_t size : sizes) {
      calls.push_back([&, size] { session.run(input, output, {.size = size}); });
    }
    for (auto& one : single) {
      calls.push_back([&] { one.run(input, output); });
    }
    const auto seconds = time_interleaved(calls, 11);
    Series nested{.name = fmt::format("nested, batch {}", batch)};
    Series separate{.name = fmt::format("separate, batch {}", batch), .points = true};
    for (size_t i = 0; i < calls.size(); ++i) {
      const double us = 1e6 * seconds[i] / double(batch);
      const bool of_nested = i < sizes.size();
      const Point& point = of_nested ? study.arms.at("sortednet")[size_t(sizes[i])]
                                     : study.separate[i - sizes.size()];
      Series& series = of_nested ? nested : separate;
      series.x.push_back(point.macs);
      series.y.push_back(us);
      run.report.add(of_nested ? "sortednet" : "separate", of_nested ? "system" : "baseline",
                     fmt::format("us_batch{}_{}", batch, point.name), us);
    }
    figure.series.push_back(std::move(nested));
    figure.series.push_back(std::move(separate));
  }
  run.report.figures.push_back({"time", std::move(figure)});
  run.report.notes.push_back(
      "us_batch*: microseconds per image in the engine, one thread, first seed, median of 11 "
      "interleaved rounds; all sizes run in one session from one file; separate: files of networks "
      "trained at that width");
}

#else

std::vector<Point> measure(lab::Model& model, const data::ImageSet& data, c10::Device device,
                           const std::string&) {
  return measure_in_lab(model, data, device);
}

void measure_engine(RecipeRun& run, const Study&, const data::ImageSet&) {
  run.report.notes.push_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::sortednet
