#include "sluice/lab/train/layerwise.h"

#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/base/progress.h"
#include "sluice/lab/train/optimizer.h"

namespace sluice::lab {
namespace {

/// What the slots of some paths take and give.
class Taps final : public SlotWatcher {
 public:
  explicit Taps(const std::vector<SlotRef>& slots) {
    for (const SlotRef& ref : slots) seen_[ref.path];
  }
  void after(const std::string& path, const Brick&, const at::Tensor& x, at::Tensor& y) override {
    const auto found = seen_.find(path);
    if (found != seen_.end()) found->second = {x, y};
  }
  const std::pair<at::Tensor, at::Tensor>& at_path(const std::string& path) const {
    return seen_.at(path);
  }

 private:
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> seen_;
};

struct TrainedLayer {
  std::string path;
  Brick* brick;
  NamedParameters parameters;
};

}  // namespace

LayerwiseResult train_layers(const Model& base, Model& student, const std::string& pattern,
                             BatchSource& feed, const LayerLoss& loss,
                             const LayerwiseOptions& options) {
  if (options.steps < 1) fail(Code::config, "steps: at least 1, found {}", options.steps);
  feed.check_batch(options.batch);
  const auto begin = std::chrono::steady_clock::now();
  Model teacher = clone(base);
  teacher.root->eval();
  std::vector<TrainedLayer> layers;
  NamedParameters all;
  const auto slots = walk(*student.root, pattern);
  for (const SlotRef& ref : slots) {
    if (ref.slot->empty()) continue;
    TrainedLayer layer{ref.path, &**ref.slot, {}};
    for (const auto& item : layer.brick->named_parameters()) {
      const bool learns =
          std::any_of(options.parameters.begin(), options.parameters.end(),
                      [&](const std::string& each) { return path_matches(each, item.key()); });
      if (learns) layer.parameters.emplace_back(join_path(ref.path, item.key()), item.value());
    }
    if (layer.parameters.empty()) {
      fail(Code::usage, "{}: no parameter of this {} is to be trained", ref.path,
           layer.brick->kind());
    }
    all.insert(all.end(), layer.parameters.begin(), layer.parameters.end());
    layers.push_back(std::move(layer));
  }
  const auto optimizer = build_optimizer(options.optimizer, all);
  Taps taps(walk(*teacher.root, pattern));
  Progress progress(options.title, options.title.empty() ? 0 : options.steps);
  const int64_t window = std::max<int64_t>(1, options.steps / 10);
  LayerwiseResult result;
  student.root->train();
  for (int64_t step = 0; step < options.steps; ++step) {
    optimizer->set_rate(options.optimizer.rate *
                        schedule_factor(options.schedule, step, options.steps));
    {
      const torch::NoGradGuard no_grad;
      Context context;
      context.watcher = &taps;
      teacher.forward(feed.at_step(step, options.batch, options.seed).inputs, context);
    }
    student.root->zero_grad();
    at::Tensor total;
    std::vector<at::Tensor> each;
    for (const TrainedLayer& layer : layers) {
      const auto& [x, y] = taps.at_path(layer.path);
      if (!x.defined()) {
        fail(Code::usage, "{}: the base has no brick there that runs", layer.path);
      }
      each.push_back(loss(*layer.brick, x, y));
      total = total.defined() ? total + each.back() : each.back();
    }
    total.backward();
    for (const TrainedLayer& layer : layers) {
      if (options.clip > 0) clip_gradients(layer.parameters, options.clip);
    }
    optimizer->step();
    const bool early = step < window, late = step >= options.steps - window;
    if (early || late || step % 50 == 0) {
      for (size_t i = 0; i < layers.size(); ++i) {
        const double value = each[i].item<double>();
        if (!std::isfinite(value)) {
          fail(Code::numeric, "{}: the loss of step {} is {}; try a lower rate than {}",
               layers[i].path, step, value, options.optimizer.rate);
        }
        if (early) result.first[layers[i].path] += value / static_cast<double>(window);
        if (late) result.last[layers[i].path] += value / static_cast<double>(window);
      }
    }
    if (!options.title.empty()) progress.update(step + 1);
  }
  student.root->eval();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace sluice::lab
