// Building a plan group by group; plan.cpp has the bookkeeping, steps.cpp the operators.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "sluice/engine/graph/fuse.h"
#include "sluice/engine/graph/plan.h"

namespace sluice::engine {

class Planner {
 public:
  Planner(const bundle::Bundle& bundle, const PlanOptions& options, onednn::PackCache& cache);
  Plan run();

 private:
  // steps.cpp
  void plan_group(size_t index);
  void plan_conv(size_t index, Step step);
  void plan_linear(size_t index, Step step);
  void plan_sparse(size_t index, Step step, int64_t rows);
  void plan_pool(size_t index, Step step);
  void plan_scale(size_t index, Step step);
  void plan_mul(size_t index, Step step);
  void plan_rows(size_t index, Step step);
  void plan_simple(size_t index, Step step);
  Step named_step(const Group& group) const;
  /// How the residual of a conv2d or linear is added; its value goes to step.inputs.
  onednn::Tail tail_of(size_t index, Layout layout, Step& step);
  /// Threads worth waking for this many multiply-accumulates per sample.
  int threads_for(int64_t macs) const;
  void finish(const Group& group, Step step, Layout layout);

  // plan.cpp
  int add_value(Shape shape, Layout layout);
  int add_view(int of, Shape shape);
  /// The value of that name in any order.
  int fetch(const std::string& name) const;
  /// The value in that memory order, reordered (once) if need be.
  int fetch(const std::string& name, Layout layout);
  void define(const std::string& name, int value);
  /// Nothing after group `group` reads the value's memory.
  bool dies_here(const std::string& name, size_t group) const;
  void add_step(Step step);
  void place_values();

  Layout layout_of(int value) const { return plan_.values[static_cast<size_t>(value)].layout; }
  const Shape& shape_of(int value) const { return plan_.values[static_cast<size_t>(value)].shape; }

  const bundle::Bundle& bundle_;
  const PlanOptions options_;
  onednn::PackCache& cache_;
  const std::vector<Group> groups_;
  std::map<std::string, size_t>
      last_use_;  ///< value -> last group that reads it; groups_.size() for outputs
  std::map<std::string, std::map<Layout, int>> names_;
  Plan plan_;
};

}  // namespace sluice::engine
