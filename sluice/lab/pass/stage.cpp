#include "sluice/lab/pass/stage.h"

#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/containers.h"

namespace sluice::lab {
namespace {

const Sequential& sequential_of(const Model& model, const std::string& what) {
  const auto* root = dynamic_cast<const Sequential*>(model.root.get());
  if (root == nullptr) {
    fail(Code::unsupported,
         "{}: the root is a {}; expected a sequential, whose parts follow one another", what,
         model.root == nullptr ? "nothing" : model.root->kind());
  }
  if (!model.sizes.empty()) {
    fail(Code::usage, "{}: the network has {} sizes; keep one first (pass pick-size)", what,
         model.sizes.size());
  }
  return *root;
}

std::string stage_name(size_t index) { return fmt::format("stage {}", index); }

}  // namespace

std::vector<Model> split(const Model& model, const std::vector<std::string>& before) {
  const Sequential& root = sequential_of(model, "split");
  std::vector<std::string> names;
  for (const auto& slot : root.slots()) names.push_back(slot->name());
  std::vector<size_t> cuts = {0};
  for (const std::string& name : before) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      const std::string near = nearest_name(name, names);
      fail(Code::usage, "split before '{}': the network has no such slot at the top{}", name,
           near.empty() ? "" : fmt::format("; the nearest is '{}'", near));
    }
    const auto at = static_cast<size_t>(found - names.begin());
    if (at <= cuts.back()) {
      fail(Code::usage,
           "split before '{}': expected a slot behind {}; cuts are in the order of the slots, and "
           "no stage is empty",
           name, cuts.back() == 0 ? "the first one" : "'" + names[cuts.back()] + "'");
    }
    cuts.push_back(at);
  }
  cuts.push_back(names.size());
  std::vector<Model> stages;
  Shape shape = model.input_shape;
  for (size_t k = 0; k + 1 < cuts.size(); ++k) {
    auto part = std::make_shared<Sequential>();
    for (size_t i = cuts[k]; i < cuts[k + 1]; ++i) {
      const Slot& slot = *root.slots()[i];
      part->append(slot.name(), slot.empty() ? nullptr : clone(*slot));
    }
    part->train(model.root->is_training());
    Model stage;
    stage.root = part;
    stage.input_shape = shape;
    if (k == 0) {
      stage.task.mean = model.task.mean;
      stage.task.std = model.task.std;
      stage.task.data = model.task.data;
      stage.tokenizer = model.tokenizer;
    }
    if (k + 2 == cuts.size()) stage.task = model.task;
    stage.provenance = model.provenance;
    stage.add_step({{"step", "split"}, {"stage", k}, {"of", cuts.size() - 1}});
    shape = part->output_shape(shape);
    stages.push_back(std::move(stage));
  }
  return stages;
}

Model assemble(const std::vector<Model>& stages) {
  if (stages.empty()) fail(Code::usage, "assemble: no stages; expected at least one");
  auto root = std::make_shared<Sequential>();
  Shape shape = stages.front().input_shape;
  Json sources = Json::array();
  for (size_t k = 0; k < stages.size(); ++k) {
    const Sequential& part = sequential_of(stages[k], stage_name(k));
    if (stages[k].input_shape != shape) {
      fail(Code::shape, "{} takes {}, {} gives {}; expected the same", stage_name(k),
           to_string(stages[k].input_shape), stage_name(k - 1), to_string(shape));
    }
    for (const auto& slot : part.slots()) {
      std::string name = slot->name();
      for (size_t n = k; root->has_slot(name); ++n) name = fmt::format("{}_{}", slot->name(), n);
      root->append(name, slot->empty() ? nullptr : clone(**slot));
    }
    shape = part.output_shape(shape);
    sources.push_back(stages[k].provenance);
  }
  root->train(stages.front().root->is_training());
  Model model;
  model.root = root;
  model.input_shape = stages.front().input_shape;
  model.task = stages.back().task;
  model.task.mean = stages.front().task.mean;
  model.task.std = stages.front().task.std;
  if (!stages.front().task.data.empty()) model.task.data = stages.front().task.data;
  model.tokenizer = stages.front().tokenizer;
  model.add_step({{"step", "assemble"}, {"stages", std::move(sources)}});
  return model;
}

void substitute(std::vector<Model>& stages, int64_t index, const Model& replacement) {
  if (index < 0 || index >= static_cast<int64_t>(stages.size())) {
    fail(Code::usage, "substitute: stage {}; there are {}, from 0", index, stages.size());
  }
  Model& old = stages[static_cast<size_t>(index)];
  const Shape given = old.root->output_shape(old.input_shape),
              found = replacement.root->output_shape(replacement.input_shape);
  if (old.input_shape != replacement.input_shape || given != found) {
    fail(Code::shape, "substitute: stage {} makes {} of {}; the replacement makes {} of {}", index,
         to_string(given), to_string(old.input_shape), to_string(found),
         to_string(replacement.input_shape));
  }
  Model copy = clone(replacement);
  copy.task = old.task;
  copy.tokenizer = old.tokenizer;
  old = std::move(copy);
}

}  // namespace sluice::lab
