#include "sluice/lab/pass/importance.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/inspect/recorder.h"

namespace sluice::lab {
namespace {

/// [channels]: sums over the consecutive columns of each.
at::Tensor by_unit(const at::Tensor& values, int64_t channels) {
  return values.to(at::kCPU, at::kDouble).reshape({channels, -1}).sum(1);
}

}  // namespace

at::Tensor magnitude_importance(const Brick& owner, const ChannelGroup& group) {
  const auto mean_size = [&](const std::string& name, bool inputs) {
    const Slot& slot = owner.slot(name);
    const at::Tensor weight = slot->named_parameters(/*recurse=*/false)["weight"].detach();
    const at::Tensor sizes = inputs ? weight.abs().sum(0) : slot.as<Sliceable>().output_norms(1);
    return by_unit(sizes, group.channels) * static_cast<double>(group.channels) /
           static_cast<double>(weight.numel());
  };
  at::Tensor score;
  if (group.unit == "channel") {
    score = at::zeros({group.channels}, at::kDouble);
    for (const std::string& name : group.producers) score += mean_size(name, false);
    return score;
  }
  score = at::ones({group.channels}, at::kDouble);
  for (const std::string& name : group.producers) {
    if (group.unit != "head" || name == "v") score *= mean_size(name, false);
  }
  for (const std::string& name : group.consumers) score *= mean_size(name, true);
  return score;
}

std::vector<std::string> reader_paths(const BrickRef& owner, const ChannelGroup& group) {
  std::vector<std::string> paths;
  for (const std::string& name : group.consumers) {
    owner.brick->slot(name).as<Linear>();
    paths.push_back(join_path(owner.path, name));
  }
  return paths;
}

std::map<std::string, at::Tensor> input_squares(Model& model, const PassInput& input,
                                                const std::vector<std::string>& paths,
                                                const std::string& pass) {
  std::map<std::string, at::Tensor> sums;
  int64_t rows = 0;
  const EvaluationMode evaluation(*model.root);
  for_each_calibration_batch(model, input, pass, [&](const at::Tensor& x) {
    Recorder recorder(paths, Recorder::What::inputs);
    Context context;
    context.watcher = &recorder;
    model.root->forward(x, context);
    int64_t here = 0;
    for (const auto& [path, value] : recorder.records()) {
      const at::Tensor flat = value.reshape({-1, value.size(-1)}).to(at::kDouble);
      const at::Tensor sum = flat.square().sum(0).cpu();
      const auto found = sums.find(path);
      sums[path] = found == sums.end() ? sum : found->second + sum;
      here = flat.size(0);
    }
    rows += here;
  });
  for (auto& [path, sum] : sums) sum = sum / static_cast<double>(std::max<int64_t>(1, rows));
  return sums;
}

at::Tensor activation_importance(const BrickRef& owner, const ChannelGroup& group,
                                 const std::map<std::string, at::Tensor>& squares) {
  at::Tensor score = at::zeros({group.channels}, at::kDouble);
  for (const std::string& name : group.consumers) {
    const at::Tensor& mean = squares.at(join_path(owner.path, name));
    const at::Tensor weight = owner.brick->slot(name).as<Linear>().weight.detach();
    const at::Tensor columns = weight.to(at::kCPU, at::kDouble).square().sum(0);
    score += by_unit(mean * columns, group.channels);
  }
  return score.sqrt();
}

}  // namespace sluice::lab
