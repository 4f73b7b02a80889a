// Groups of parameters with optimizers and schedules of their own.
#include <algorithm>
#include <map>

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/train/optimizer.h"

namespace sluice::lab {
namespace {

class Grouped final : public Optimizer {
 public:
  Grouped(const TrainOptions& options, const NamedParameters& parameters)
      : groups_(options.groups), steps_(options.steps) {
    std::vector<NamedParameters> parts(groups_.size() + 1);  // the last: the rest
    for (const auto& entry : parameters) {
      const auto matches = [&](const ParameterGroup& group) {
        return path_matches(group.pattern, entry.first);
      };
      const auto found = std::find_if(groups_.begin(), groups_.end(), matches);
      const auto index = static_cast<size_t>(found - groups_.begin());
      parts[index].push_back(entry);
      index_[entry.first] = index;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool rest = i == groups_.size();
      if (parts[i].empty()) {
        if (rest) fail(Code::config, "parameter groups: none is left for the optimizer itself");
        fail(Code::config, "parameters '{}': no parameter of the model has such a name{}",
             groups_[i].pattern,
             parameters.empty() ? std::string()
                                : fmt::format("; one is '{}'", parameters.front().first));
      }
      optimizers_.push_back(
          build_optimizer(rest ? options.optimizer : groups_[i].optimizer, parts[i]));
    }
  }
  void set_rate(double rate) override { optimizers_.back()->set_rate(rate); }
  void begin_step(int64_t step) override {
    step_ = step;
    for (size_t i = 0; i < groups_.size(); ++i) {
      optimizers_[i]->set_rate(groups_[i].optimizer.rate *
                               schedule_factor(groups_[i].schedule, step, steps_));
    }
  }
  void step() override {
    for (size_t i = 0; i < optimizers_.size(); ++i) {
      const bool over = i < groups_.size() && static_cast<double>(step_) >=
                                                  groups_[i].until * static_cast<double>(steps_);
      if (!over) optimizers_[i]->step();
    }
  }
  std::map<std::string, at::Tensor> state() const override {
    std::map<std::string, at::Tensor> all;
    for (const auto& optimizer : optimizers_) all.merge(optimizer->state());
    return all;
  }
  void load_state(const std::map<std::string, at::Tensor>& state,
                  const std::string& what) override {
    std::vector<std::map<std::string, at::Tensor>> parts(optimizers_.size());
    for (const auto& [name, tensor] : state) {
      const auto owner = index_.find(name.substr(0, name.find_last_of('.')));
      if (owner == index_.end())
        fail(Code::format, "{}: optimizer tensor '{}' belongs to no parameter of the model", what,
             name);
      parts[owner->second][name] = tensor;
    }
    for (size_t i = 0; i < parts.size(); ++i) optimizers_[i]->load_state(parts[i], what);
  }

 private:
  std::vector<ParameterGroup> groups_;
  int64_t steps_, step_ = 0;
  std::map<std::string, size_t> index_;  ///< of the optimizer, by parameter
  std::vector<std::unique_ptr<Optimizer>> optimizers_;
};

}  // namespace

std::unique_ptr<Optimizer> build_grouped_optimizer(const TrainOptions& options,
                                                   const NamedParameters& parameters) {
  return std::make_unique<Grouped>(options, parameters);
}

}  // namespace sluice::lab
