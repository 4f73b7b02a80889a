#include "sluice/engine/graph/plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/engine/graph/fuse.h"
#include "sluice/engine/graph/memory.h"
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/reduce.h"

namespace sluice::engine {
namespace {

using bundle::Node;

// When one call of the plan is less work than this (about a millisecond of one core), its steps
// stay on one thread: a second thread gains 1.3 to 1.9 times on a quiet machine, but a barrier that
// waits for a thread which the system has put aside costs milliseconds each. The bound is on the
// whole network, so that a sliced one is treated like the dense.
constexpr int64_t kParallelNetworkMacs = 128'000'000;
// In a larger network, the smallest step that two threads finish sooner than one.
constexpr int64_t kParallelStepMacs = 500'000;

std::vector<PlanEntry> collect() {
  std::vector<PlanEntry> entries;
  for (const auto family : {dense_steps, binary_steps, sparse_steps, rows_steps, attention_steps,
                            conditional_steps, text_steps, array_steps, array_layer_steps}) {
    for (const PlanEntry& entry : family()) entries.push_back(entry);
  }
  return entries;
}

}  // namespace

PlanFunction find_plan(std::string_view op) {
  static const std::vector<PlanEntry> entries = collect();
  for (const PlanEntry& entry : entries) {
    if (entry.op == op) return entry.plan;
  }
  return nullptr;
}

std::vector<float> copy_tensor(const bundle::Bundle& bundle, const Node& node,
                               const std::string& role) {
  const auto found = node.tensors.find(role);
  if (found == node.tensors.end()) return {};
  const auto values = bundle.tensor(found->second).f32();
  return {values.begin(), values.end()};
}

Planner::Planner(const bundle::Bundle& bundle, const PlanOptions& options, onednn::PackCache& cache)
    : bundle_(bundle),
      options_(options),
      view_(options),
      cache_(cache),
      groups_(group_nodes(bundle, options.fuse)) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (const std::string& input : groups_[g].inputs) last_use_[input] = g;
  }
  for (const std::string& output : bundle.graph().outputs) last_use_[output] = groups_.size();
}

int Planner::threads_for(int64_t macs) const {
  // A run of fewer tokens is a smaller network; rows that leave it are not.
  const double share =
      options_.sequences ? static_cast<double>(view_.samples) / static_cast<double>(most_) : 1.0;
  const double network = static_cast<double>(bundle_.info().total.macs) *
                         static_cast<double>(options_.samples) * share;
  if (network < static_cast<double>(kParallelNetworkMacs)) return 1;
  return macs * view_.samples >= kParallelStepMacs ? options_.threads : 1;
}

Step Planner::named_step(const Group& group) const {
  const Node& main = bundle_.graph().nodes[group.main];
  Step step;
  step.info.path = main.path;
  step.info.op = main.op;
  step.info.cost = bundle_.info().node_costs[group.main];
  for (size_t i : group.fused) {
    step.info.fused.push_back(bundle_.graph().nodes[i].path);
    step.info.cost += bundle_.info().node_costs[i];
  }
  step.info.cost.macs /= graph_rows_;
  return step;
}

void Planner::finish(size_t index, Step step, Layout layout) {
  const Group& group = groups_[index];
  Shape shape = bundle_.info().shapes.at(group.output);
  if (made_rows_ > 0 && made_rows_ == plan_.last)
    shape[0] = plan_.rows[static_cast<size_t>(plan_.last)].per_sample;
  if (shape.size() != 3) layout = Layout::plain;
  if (capture_) {
    capture_->step = std::move(step);
    capture_->layout = layout;
    return;
  }
  step.info.cost.macs *= share_;
  step.savings = std::exchange(savings_, {});
  step.output = add_value(std::move(shape), layout, made_rows_);
  define(group.output, step.output);
  finished_ = plan_.steps.size();
  add_step(std::move(step));
}

onednn::Tail Planner::tail_of(size_t index, Layout layout, Step& step) {
  const Group& group = groups_[index];
  onednn::Tail tail;
  tail.activation = group.activation;
  tail.factor = group.factor;
  tail.offset = group.offset;
  if (!group.adds) return tail;
  const std::string& name = group.inputs.back();
  const bool dies = dies_here(name, index);
  const int other = fetch(name, layout);
  const auto buffer = [&](int v) { return plan_.values[static_cast<size_t>(v)].buffer; };
  tail.add = dies && buffer(other) != buffer(step.inputs[0]) ? onednn::Tail::Add::accumulate
                                                             : onednn::Tail::Add::operand;
  step.inputs.push_back(other);
  return tail;
}

void Planner::add_sizes(size_t index, const std::vector<int64_t>& macs, int64_t counted) {
  if (macs.size() < 2) return;
  const size_t known = plan_.size_savings.size();
  if (known == 0) plan_.size_savings.assign(macs.size(), 0);
  if (known != 0 && known != macs.size()) {
    fail(Code::shape, "{}: {} sizes; other nodes have {}. One choice serves all of them",
         node(index).path, macs.size(), known);
  }
  if (capture_) return;
  savings_.clear();
  for (const int64_t each : macs) savings_.push_back((counted - each) * share_);
}

void Planner::find_needed_steps() {
  const bool sizes = !plan_.size_savings.empty();
  const auto buffer = [&](int v) {  // a view is the value it looks at
    return static_cast<size_t>(plan_.values[static_cast<size_t>(v)].buffer);
  };
  std::vector<bool> always(plan_.steps.size(), true);
  for (size_t size = 0; size < std::max<size_t>(1, plan_.size_savings.size()); ++size) {
    std::vector<bool> wanted(plan_.values.size(), false);
    for (const int output : plan_.outputs) wanted[buffer(output)] = true;
    std::vector<size_t> needed;
    for (size_t i = plan_.steps.size(); i-- > 0;) {
      const Step& step = plan_.steps[i];
      if (sizes && !wanted[buffer(step.output)]) {
        always[i] = false;
        plan_.size_savings[size] += step.info.cost.macs;
        continue;
      }
      needed.push_back(i);
      if (sizes && !step.savings.empty()) plan_.size_savings[size] += step.savings[size];
      if (step.choices.empty()) {
        for (const int value : step.inputs) wanted[buffer(value)] = true;
      } else {
        const size_t chosen = std::min(size, step.choices.size() - 1);
        wanted[buffer(step.inputs[static_cast<size_t>(step.choices[chosen])])] = true;
      }
    }
    std::reverse(needed.begin(), needed.end());
    plan_.needed.push_back(std::move(needed));
  }
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const Step& step = plan_.steps[i];
    if (always[i]) continue;
    if (step.kernel.state_bytes > 0) plan_.optional_states.push_back(i);
    if (step.info.op != "compact_rows") continue;
    fail(Code::unsupported,
         "{} ({}): some sizes of the network leave it out, and it counts the rows that later steps "
         "have; a size_switch may not skip it",
         step.info.path, step.info.op);
  }
}

void Planner::set_cost(Step& step, const Cost& cost) {
  if (!capture_) {
    plan_.cost.macs += (cost.macs - step.info.cost.macs) * share_;
    plan_.cost.weight_bytes += cost.weight_bytes - step.info.cost.weight_bytes;
  }
  step.info.cost = cost;
}

std::string Planner::cache_key(size_t index) const {
  return node(index).path + (options_.fuse ? "|fused" : "");
}

int Planner::add_value(Shape shape, Layout layout, int rows) {
  PlanValue value;
  value.rows = rows;
  value.row_shape = shape;
  if (plan_.rows[static_cast<size_t>(rows)].per_sample > 1) value.row_shape[0] = 1;
  value.bytes = static_cast<int64_t>(sizeof(float)) *
                checked_mul(options_.samples, numel(shape), "activation");
  value.shape = std::move(shape);
  value.layout = layout;
  value.buffer = static_cast<int>(plan_.values.size());
  plan_.values.push_back(std::move(value));
  return static_cast<int>(plan_.values.size()) - 1;
}

int Planner::add_view(int of, Shape shape) {
  const int view = add_value(std::move(shape), Layout::plain, made_rows_);
  plan_.values[static_cast<size_t>(view)].buffer = plan_.values[static_cast<size_t>(of)].buffer;
  return view;
}

int Planner::fetch(const std::string& name) const { return names_.at(name).begin()->second; }

int Planner::fetch(const std::string& name, Layout layout) {
  std::map<Layout, int>& versions = names_.at(name);
  if (const auto found = versions.find(layout); found != versions.end()) return found->second;
  const int from = versions.begin()->second;
  const PlanValue source = plan_.values[static_cast<size_t>(from)];
  if (same_bytes(source.shape, source.layout, layout)) return from;
  if (capture_) {
    capture_->usable = false;
    return from;
  }
  const size_t channels = static_cast<size_t>(source.shape[0]),
               pixels = static_cast<size_t>(source.shape[1] * source.shape[2]);
  const bool to_last = layout == Layout::channels_last;
  Step step;
  step.info.path = name + ".reorder";
  step.info.op = "reorder";
  step.kernel = row_kernel(
      to_last ? "sluice to_channels_last" : "sluice to_plain", all_rows(source.rows),
      [=](const float* in, const float*, float* out, size_t samples) {
        transpose(in, out, samples, to_last ? channels : pixels, to_last ? pixels : channels);
      });
  step.inputs = {from};
  step.rows = step.metered_rows = source.rows;
  step.output = add_value(source.shape, layout, source.rows);
  versions[layout] = step.output;
  const int output = step.output;
  add_step(std::move(step));
  return output;
}

bool Planner::dies_here(const std::string& name, size_t group) const {
  const auto found = last_use_.find(name);
  if (found == last_use_.end() || found->second != group) return false;
  // A view keeps its source's memory alive for as long as the view is used.
  const int buffer = plan_.values[static_cast<size_t>(fetch(name))].buffer;
  for (const auto& [other, versions] : names_) {
    if (other == name) continue;
    for (const auto& [layout, value] : versions) {
      if (plan_.values[static_cast<size_t>(value)].buffer != buffer) continue;
      const auto use = last_use_.find(other);
      if (use != last_use_.end() && use->second >= group) return false;
    }
  }
  return true;
}

void Planner::add_step(Step step) {
  const auto bytes_of = [&](int v) {
    return plan_.values[static_cast<size_t>(v)].bytes / options_.samples;
  };
  for (int input : step.inputs) step.activation_bytes += bytes_of(input);
  step.activation_bytes += bytes_of(step.output);
  step.info.kernel = step.kernel.name;
  if (step.kernel.state_bytes > 0) {
    step.state_offset = plan_.state_bytes;
    plan_.state_bytes =
        checked_add(plan_.state_bytes, align_up(step.kernel.state_bytes), "state of the sequences");
  }
  plan_.scratch_bytes = std::max(plan_.scratch_bytes, step.kernel.scratch_bytes);
  plan_.steps.push_back(std::move(step));
}

void Planner::define(const std::string& name, int value) {
  names_[name][plan_.values[static_cast<size_t>(value)].layout] = value;
}

Plan Planner::run() {
  plan_.rows.push_back({});
  if (options_.sequences) plan_.rows.push_back({0, bundle_.graph().inputs[0].shape[0], ""});
  for (const bundle::Value& input : bundle_.graph().inputs) {
    plan_.inputs.push_back(add_value(input.shape, Layout::plain, options_.sequences ? 1 : 0));
    define(input.name, plan_.inputs.back());
  }
  plan_.cost = bundle_.info().total;
  const size_t last = last_rows_from();
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (g == last) drop_unwanted(g);
    plan_group(g);
  }
  rows_ = made_rows_ = 0;
  for (const std::string& output : bundle_.graph().outputs)
    plan_.outputs.push_back(fetch(output, Layout::plain));
  find_needed_steps();
  place_values();
  return std::move(plan_);
}

void Planner::place_values() {
  std::vector<PlanValue>& values = plan_.values;
  const int count = static_cast<int>(plan_.steps.size());
  const auto buffer_of = [&](int v) -> int& { return values[static_cast<size_t>(v)].buffer; };
  std::vector<Lifetime> lives(values.size());
  std::vector<bool> defined(values.size(), false);
  const auto touch = [&](int v, int step) {
    Lifetime& life = lives[static_cast<size_t>(buffer_of(v))];
    life.bytes = std::max(life.bytes, values[static_cast<size_t>(v)].bytes);
    if (!defined[static_cast<size_t>(buffer_of(v))]) life.first = step;
    defined[static_cast<size_t>(buffer_of(v))] = true;
    life.last = std::max(life.last, step);
  };
  const auto measure = [&] {
    std::fill(lives.begin(), lives.end(), Lifetime{});
    std::fill(defined.begin(), defined.end(), false);
    for (int input : plan_.inputs) touch(input, -1);
    for (int i = 0; i < count; ++i) {
      for (int v : plan_.steps[static_cast<size_t>(i)].inputs) touch(v, i);
      touch(plan_.steps[static_cast<size_t>(i)].output, i);
    }
    for (int output : plan_.outputs) touch(output, count);
  };
  measure();
  for (int i = 0; i < count; ++i) {
    const Step& step = plan_.steps[static_cast<size_t>(i)];
    if (step.kernel.in_place < 0) continue;
    const int shared = step.inputs[static_cast<size_t>(step.kernel.in_place)];
    const int from = buffer_of(step.output), to = buffer_of(shared);
    // Another input in the same memory would be overwritten while it is read.
    bool possible = lives[static_cast<size_t>(to)].last == i && from != to;
    for (size_t k = 0; k < step.inputs.size(); ++k) {
      if (static_cast<int>(k) != step.kernel.in_place && buffer_of(step.inputs[k]) == to)
        possible = false;
    }
    SLUICE_CHECK(possible || !step.kernel.must_share);
    if (!possible) continue;
    for (PlanValue& value : values) {
      if (value.buffer == from) value.buffer = to;
    }
    measure();
  }
  const Arena arena = place(lives);
  plan_.offsets = arena.offsets;
  plan_.arena_bytes = arena.bytes;
}

Plan make_plan(const bundle::Bundle& bundle, const PlanOptions& options, onednn::PackCache& cache) {
  return Planner(bundle, options, cache).run();
}

}  // namespace sluice::engine
