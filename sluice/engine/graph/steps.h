// Building a plan group by group: plan.cpp has the bookkeeping, steps_<family>.cpp the operators.
#pragma once
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/engine/graph/fuse.h"
#include "sluice/engine/graph/plan.h"

namespace sluice::engine {

class Planner;
/// Plans group `index`; `step` comes with its name and cost.
using PlanFunction = void (*)(Planner& planner, size_t index, Step step);

class Planner {
 public:
  Planner(const bundle::Bundle& bundle, const PlanOptions& options, onednn::PackCache& cache);
  Plan run();

  // What the operators' plan functions use.
  const bundle::Bundle& bundle() const { return bundle_; }
  /// `samples` are the rows of the current row set: in one of whole samples, those; in one of rows
  /// of [T, ..], those rows, and shapes are [1, ..]. Operators that take rows apart see no
  /// difference.
  const PlanOptions& options() const { return view_; }
  int64_t all_samples() const { return options_.samples; }
  onednn::PackCache& cache() { return cache_; }
  const Group& group(size_t index) const { return groups_[index]; }
  const bundle::Node& node(size_t index) const {
    return bundle_.graph().nodes[groups_[index].main];
  }
  /// Per sample.
  const Shape& full_shape(const std::string& value) const {
    return bundle_.info().shapes.at(value);
  }
  /// Cost of the plan and of the step, where it is not the graph's (weights stored otherwise).
  void set_cost(Step& step, const Cost& cost);
  std::string cache_key(size_t index) const;
  /// How the residual of a conv2d or linear is added; its value goes to step.inputs.
  onednn::Tail tail_of(size_t index, Layout layout, Step& step);
  /// Threads worth waking for this many multiply-accumulates per sample.
  int threads_for(int64_t macs) const;
  /// Names the step's result, in that memory order, and adds the step to the plan.
  void finish(size_t index, Step step, Layout layout);

  int add_value(Shape shape, Layout layout, int rows);
  int add_view(int of, Shape shape);
  /// The value of that name in any order.
  int fetch(const std::string& name) const;
  /// The value in that memory order, reordered (once) if need be.
  int fetch(const std::string& name, Layout layout);
  void define(const std::string& name, int value);
  Layout layout_of(int value) const { return plan_.values[static_cast<size_t>(value)].layout; }
  /// Per sample of options().
  const Shape& shape_of(int value) const {
    return plan_.values[static_cast<size_t>(value)].row_shape;
  }
  const Shape& shape_of(const std::string& name) const { return shape_of(fetch(name)); }
  /// The node has sizes to choose from at run time (Binding::size): their MACs per sample, of which
  /// the plan's cost counts the most. Throws Error{shape} when other nodes have another number.
  void add_sizes(size_t index, const std::vector<int64_t>& macs, int64_t counted);
  /// A sequence cannot be longer than this.
  void limit_capacity(int64_t rows) { plan_.capacity = std::min(plan_.capacity, rows); }
  /// A sequence cannot go back by more than this.
  void limit_rewind(int64_t rows) { plan_.rewind = std::min(plan_.rewind, rows); }
  /// The value has all rows of the network's input.
  bool has_all_rows(const std::string& name) const {
    return plan_.values[static_cast<size_t>(fetch(name))].rows == (options_.sequences ? 1 : 0);
  }

 private:
  Step named_step(const Group& group) const;
  void plan_group(size_t index);
  /// Kernels for fixed numbers of rows, where the one for all cannot count them.
  void plan_fewer_rows(size_t index, PlanFunction plan);
  void check_rows(size_t index, int rows) const;
  int made_rows(size_t index, int rows);
  int64_t all_rows(int rows) const;
  /// The first group from which on all take rows apart, so that rows nobody wants need not be
  /// computed; groups_.size(): there is none.
  size_t last_rows_from() const;
  /// The values that groups from `first` on read lose those rows.
  void drop_unwanted(size_t first);
  /// Nothing after group `group` reads the value's memory.
  bool dies_here(const std::string& name, size_t group) const;
  void add_step(Step step);
  void place_values();
  void find_needed_steps();

  const bundle::Bundle& bundle_;
  const PlanOptions options_;
  PlanOptions view_;
  int rows_ = 0, made_rows_ = 0;  ///< of the current group's inputs and output
  int64_t share_ = 1;             ///< rows of a sample, with which the current step's cost grows
  int64_t graph_rows_ = 1;        ///< rows of a sample in the graph's cost of it
  int64_t most_ = 1;              ///< view_.samples without Capture
  size_t finished_ = 0;           ///< the current group's step
  std::vector<int64_t> savings_;  ///< of its sizes
  /// A kernel for fewer rows, in the making: nothing is added to the plan.
  struct Capture {
    bool usable = true;
    std::optional<Step> step;
    Layout layout = Layout::plain;
  };
  Capture* capture_ = nullptr;
  onednn::PackCache& cache_;
  const std::vector<Group> groups_;
  std::map<std::string, size_t>
      last_use_;  ///< value -> last group that reads it; groups_.size() for outputs
  std::map<std::string, std::map<Layout, int>> names_;
  Plan plan_;
};

struct PlanEntry {
  std::string_view op;
  PlanFunction plan;
};
/// nullptr for an operator without a kernel.
PlanFunction find_plan(std::string_view op);

// The table's parts, one source file each.
std::vector<PlanEntry> dense_steps();
std::vector<PlanEntry> binary_steps();
std::vector<PlanEntry> sparse_steps();
std::vector<PlanEntry> conditional_steps();
std::vector<PlanEntry> rows_steps();
std::vector<PlanEntry> attention_steps();
std::vector<PlanEntry> text_steps();
std::vector<PlanEntry> array_steps();
std::vector<PlanEntry> array_layer_steps();

/// Shapes and window attributes of a convolution or pool; its kernel is the caller's to set.
onednn::ConvShape conv_shape(const bundle::Node& node, const Shape& in, const Shape& out,
                             int64_t samples);

/// Values of a node's f32 tensor; empty when it has none of that role.
std::vector<float> copy_tensor(const bundle::Bundle& bundle, const bundle::Node& node,
                               const std::string& role);

/// A kernel over rows that lie one after another: run(input 0, input 1 or null, output, rows), for
/// the rows that are there. `planned` is how many there can be.
template <class F>
Kernel row_kernel(std::string name, int64_t planned, F run, int in_place = -1) {
  Kernel kernel;
  kernel.name = std::move(name);
  kernel.in_place = in_place;
  kernel.counts_rows = true;
  kernel.bind = [run, planned](const Binding& b) -> std::function<void()> {
    const float* first = b.inputs[0];
    const float* second = b.inputs.size() > 1 ? b.inputs[1] : nullptr;
    float* out = b.output;
    const LiveRows* rows = b.rows;
    return [=] { run(first, second, out, static_cast<size_t>(rows ? rows->count : planned)); };
  };
  return kernel;
}

/// A kernel that needs nothing but its pointers: run(input 0, input 1 or null, output).
template <class F>
Kernel plain_kernel(std::string name, F run, int in_place = -1) {
  Kernel kernel;
  kernel.name = std::move(name);
  kernel.in_place = in_place;
  kernel.bind = [run](const Binding& b) -> std::function<void()> {
    const float* first = b.inputs[0];
    const float* second = b.inputs.size() > 1 ? b.inputs[1] : nullptr;
    float* out = b.output;
    return [=] { run(first, second, out); };
  };
  return kernel;
}

}  // namespace sluice::engine
