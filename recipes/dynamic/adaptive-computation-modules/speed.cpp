#include "recipes/dynamic/adaptive-computation-modules/speed.h"

#include <torch/types.h>

#include <cmath>
#include <deque>

#include "recipes/engine_model.h"
#include "recipes/engine_race.h"
#include "sluice/base/machine.h"
#include "sluice/lab/inspect/recorder.h"

namespace sluice::recipes::acm {

#if SLUICE_HAS_ENGINE
namespace {

constexpr int64_t kBatch = 64;

std::span<const float> floats(const at::Tensor& x) {
  return {x.data_ptr<float>(), size_t(x.numel())};
}

/// A network and its session for a batch.
struct Runner {
  engine::Network network;
  engine::Session session;
  at::Tensor x;
  std::vector<float> y;

  Runner(const lab::Model& model, const std::string& path, const at::Tensor& input)
      : network(in_engine(model, path)),
        session(network, {.batch = input.size(0), .threads = 1}),
        x(input.contiguous()),
        y(size_t(input.size(0) * numel(network.output_shape()))) {}
  void run() { session.run(floats(x), y); }
};

/// The brick of one slot as a network of its own.
lab::Model alone(const lab::SlotRef& ref, const at::Tensor& x) {
  lab::Model result;
  result.root = ref.slot->get();
  result.input_shape = Shape(x.sizes().begin() + 1, x.sizes().end());
  return result;
}

}  // namespace

void measure_engine(RecipeRun& run, const lab::Model& dense, const lab::Model& modules,
                    const data::ImageSet& data) {
  const torch::NoGradGuard no_grad;
  const std::string& folder = run.options.work_directory;
  lab::Model dense_copy = lab::clone(dense), module_copy = lab::clone(modules);
  const lab::Feed test(data.test, data.mean, data.std, c10::kCPU);
  const at::Tensor pixels = test.range(0, std::min(kBatch, test.count())).inputs;
  std::deque<Runner> layers[2], whole;
  double worst = 0;
  Meter mine, theirs;
  for (lab::Model* model : {&dense_copy, &module_copy}) {
    const size_t side = model == &module_copy ? 1 : 0;
    model->root->to(c10::kCPU);
    model->root->eval();
    lab::Recorder inputs({kLayers}, lab::Recorder::What::inputs);
    lab::Context context;
    context.watcher = &inputs;
    const at::Tensor expected = model->forward(pixels, context);
    for (const lab::SlotRef& ref : lab::walk(*model->root, kLayers)) {
      const at::Tensor x = inputs.records().at(ref.path);
      layers[side].emplace_back(
          alone(ref, x),
          fmt::format("{}/layer{}-{}.safetensors", folder, side, layers[side].size()), x);
      if (side == 0) continue;
      lab::Context metered;
      metered.meter = &mine;
      (**ref.slot).forward(x, metered);
      Runner& layer = layers[side].back();
      layer.session.run(floats(layer.x), layer.y, {.meter = &theirs});
    }
    whole.emplace_back(*model, fmt::format("{}/whole{}.safetensors", folder, side), pixels);
    whole.back().run();
    const at::Tensor found = torch::tensor(whole.back().y).view(expected.sizes());
    worst = std::max(worst, ((found - expected).norm() / expected.norm()).item<double>());
  }
  const auto all = [](std::deque<Runner>& runners) {
    return [&runners] {
      for (Runner& runner : runners) runner.run();
    };
  };
  const auto seconds = time_interleaved({all(layers[0]), all(layers[1])}, 15);
  const auto images = double(pixels.size(0));
  const auto add = [&](const char* arm, const char* role, const char* metric, double value) {
    run.report.add(arm, role, metric, value);
  };
  add("dense", "baseline", "us_mlp", 1e6 * seconds[0] / images);
  add("dense", "baseline", "mlp_time_of_dense", 1);
  add("acm", "system", "us_mlp", 1e6 * seconds[1] / images);
  add("acm", "system", "mlp_time_of_dense", seconds[1] / seconds[0]);
  add("acm", "system", "meter_difference",
      std::abs(double(theirs.macs()) / double(mine.macs()) - 1));
  add("acm", "system", "engine_difference", worst);
  run.report.notes.push_back(
      "us_mlp: microseconds per image of all feed-forward layers alone, on what 64 test images "
      "bring to them in one batch; one thread, first seed, median of 15 interleaved rounds");
  race_pictures(run,
                {{.arm = "dense", .role = "baseline", .network = &whole[0].network},
                 {.arm = "acm", .role = "system", .network = &whole[1].network}},
                data);
}

#else

void measure_engine(RecipeRun& run, const lab::Model&, const lab::Model&, const data::ImageSet&) {
  run.report.notes.push_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::acm
