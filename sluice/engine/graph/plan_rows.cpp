// The planner's part about rows that are counted at run time: which row set a group works on, and
// kernels for fewer rows.
#include <algorithm>
#include <cstring>
#include <set>

#include "sluice/base/error.h"
#include "sluice/bundle/rows.h"
#include "sluice/engine/graph/steps.h"

namespace sluice::engine {
namespace {

using bundle::Rows;

/// Numbers of rows below `most` that kernels are made for: every one up to 8, then four from power
/// of two to power of two, so that at most a fifth of what is computed is not wanted.
std::vector<int64_t> fewer_rows(int64_t most) {
  std::vector<int64_t> counts;
  for (int64_t n = 1; n < most;
       n +=
       n < 8 ? 1 : int64_t{1} << (63 - __builtin_clzll(static_cast<unsigned long long>(n)) - 2))
    counts.push_back(n);
  return counts;
}

/// Runs the kernel made for the next larger number of rows. The rows between are set to zero: what
/// lies there may be anything.
Kernel by_count(std::vector<int64_t> counts, std::vector<Kernel> kernels,
                std::vector<int64_t> row_floats) {
  Kernel kernel;
  const Kernel& largest = kernels.back();
  kernel.name = largest.name;
  kernel.in_place = largest.in_place;
  kernel.must_share = largest.must_share;
  kernel.counts_rows = true;
  for (const Kernel& k : kernels) {
    kernel.scratch_bytes = std::max(kernel.scratch_bytes, k.scratch_bytes);
    kernel.metered = kernel.metered || k.metered;
    if (k.in_place != largest.in_place) kernel.in_place = -1;
  }
  kernel.bind = [counts = std::move(counts), kernels = std::move(kernels),
                 row_floats = std::move(row_floats)](const Binding& b) -> std::function<void()> {
    struct Calls {
      std::vector<int64_t> counts, row_floats;
      std::vector<std::function<void()>> calls;
      std::vector<float*> inputs;
      const LiveRows* rows;
    };
    auto all = std::make_shared<Calls>();
    all->counts = counts;
    all->row_floats = row_floats;
    all->inputs.assign(b.inputs.begin(), b.inputs.end());
    all->rows = b.rows;
    Binding each = b;
    each.rows = nullptr;
    for (const Kernel& k : kernels) all->calls.push_back(k.bind(each));
    return [all] {
      const int64_t count = all->rows ? all->rows->count : all->counts.back();
      if (count == 0) return;
      const auto at = std::lower_bound(all->counts.begin(), all->counts.end(), count);
      for (size_t i = 0; i < all->inputs.size(); ++i) {
        const int64_t each_row = all->row_floats[i];
        std::memset(all->inputs[i] + count * each_row, 0,
                    static_cast<size_t>((*at - count) * each_row) * sizeof(float));
      }
      all->calls[static_cast<size_t>(at - all->counts.begin())]();
    };
  };
  return kernel;
}

/// The rows that are wanted, to the front; out may be in.
void copy_rows(const float* in, const LiveRows& rows, size_t width, float* out) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const float* from = in + static_cast<size_t>(rows.source[r]) * width;
    float* to = out + static_cast<size_t>(r) * width;
    if (from != to) std::memmove(to, from, width * sizeof(float));
  }
}

}  // namespace

int64_t Planner::all_rows(int rows) const {
  return checked_mul(options_.samples, plan_.rows[static_cast<size_t>(rows)].per_sample, "rows");
}

// What check_graph knows of compacted rows holds as well for the rows of sequences, which only the
// session knows of.
void Planner::check_rows(size_t index, int rows) const {
  const bundle::Node& main = node(index);
  const auto rows_of = [&](const std::string& name) {
    return plan_.values[static_cast<size_t>(fetch(name))].rows;
  };
  const auto refuse = [&](const char* why) {
    fail(Code::unsupported, "{}: node '{}' ({}) {}; open the session without sequences",
         bundle_.path(), main.path, main.op, why);
  };
  const bool scatters = main.op == "scatter_rows";
  // Its queries are some of the keys' rows, as check_graph has found.
  if (bundle::attends_from_some(main)) return;
  for (size_t i = 1; i < groups_[index].inputs.size(); ++i) {
    if (scatters && i == 1) continue;
    if (rows_of(groups_[index].inputs[i]) != rows)
      refuse("joins rows of the sequence with a value of the whole sample");
  }
  const int64_t per_sample = plan_.rows[static_cast<size_t>(rows)].per_sample;
  if (per_sample == 1 || scatters) return;
  if (main.op == "compact_rows") {
    if (bundle_.info().shapes.at(main.inputs[1])[0] != per_sample)
      refuse("drops whole samples, whose rows are counted");
    return;
  }
  std::vector<size_t> nodes{groups_[index].main};
  nodes.insert(nodes.end(), groups_[index].fused.begin(), groups_[index].fused.end());
  for (size_t n : nodes) {
    const bundle::Node& each = bundle_.graph().nodes[n];
    if (bundle::rows_rule(each, bundle_.info().shapes, bundle_.graph().tensors) == Rows::mixed)
      refuse("needs every row in its place");
  }
}

int Planner::made_rows(size_t index, int rows) {
  const bundle::Node& main = node(index);
  if (main.op == "compact_rows") {
    for (size_t i = 1; i < plan_.rows.size(); ++i)
      if (plan_.rows[i].keep == main.inputs[1]) return static_cast<int>(i);
    const int64_t per_sample = bundle_.info().shapes.at(main.inputs[1])[0];
    plan_.rows.push_back({rows, per_sample, main.inputs[1]});
    return static_cast<int>(plan_.rows.size()) - 1;
  }
  if (bundle::rows_rule(main, bundle_.info().shapes, bundle_.graph().tensors) == Rows::pooled) {
    while (plan_.rows[static_cast<size_t>(rows)].per_sample > 1)
      rows = plan_.rows[static_cast<size_t>(rows)].parent;
  }
  return rows;
}

size_t Planner::last_rows_from() const {
  const size_t none = groups_.size();
  if (!options_.sequences) return none;
  const auto& shapes = bundle_.info().shapes;
  const auto rows_apart = [&](size_t n) {
    return bundle::rows_rule(bundle_.graph().nodes[n], shapes, bundle_.graph().tensors) ==
           Rows::apart;
  };
  const auto apart = [&](const Group& group) {
    return rows_apart(group.main) && std::ranges::all_of(group.fused, rows_apart) &&
           shapes.at(group.output).size() <= 2;
  };
  size_t first = none;
  while (first > 0 && apart(groups_[first - 1])) --first;
  return first;
}

void Planner::drop_unwanted(size_t first) {
  std::vector<std::string> names;
  std::vector<int> values, buffers;
  std::set<std::string> made;
  for (size_t g = first; g < groups_.size(); ++g) {
    for (const std::string& name : groups_[g].inputs) {
      if (made.contains(name) || std::ranges::count(names, name)) continue;
      names.push_back(name);
      values.push_back(fetch(name));
      const PlanValue& value = plan_.values[static_cast<size_t>(values.back())];
      // Whole samples, or rows that are not all there: the graph does something else here.
      if (value.rows != 1 || value.shape.size() > 2 || std::ranges::count(buffers, value.buffer))
        return;
      buffers.push_back(value.buffer);
    }
    made.insert(groups_[g].output);
  }
  if (!made.contains(bundle_.graph().outputs[0])) return;
  const int64_t tokens = plan_.rows[1].per_sample,
                most = options_.last_rows > 0 ? std::min(options_.last_rows, tokens) : tokens;
  plan_.last = static_cast<int>(plan_.rows.size());
  plan_.rows.push_back({1, most, ""});
  for (size_t i = 0; i < names.size(); ++i) {
    Shape shape = plan_.values[static_cast<size_t>(values[i])].shape;
    const size_t width = static_cast<size_t>(numel(shape) / shape[0]);
    shape[0] = most;
    Step step;
    step.info.path = names[i] + ".last_rows";
    step.info.op = "last_rows";
    step.kernel.name = "sluice last_rows";
    step.kernel.counts_rows = true;
    step.kernel.in_place = 0;
    step.kernel.bind = [width](const Binding& b) -> std::function<void()> {
      SLUICE_CHECK(b.other);
      return [=, in = b.inputs[0], all = b.rows, rows = b.other, out = b.output] {
        if (in != out || rows->count < all->count) copy_rows(in, *rows, width, out);
      };
    };
    step.inputs = {values[i]};
    step.rows = 1;
    step.other = step.metered_rows = plan_.last;
    step.output = add_value(std::move(shape), Layout::plain, plan_.last);
    names_[names[i]] = {{Layout::plain, step.output}};
    add_step(std::move(step));
  }
  // What the graph counts for all rows.
  for (size_t g = first; g < groups_.size(); ++g) {
    std::vector<size_t> nodes{groups_[g].main};
    nodes.insert(nodes.end(), groups_[g].fused.begin(), groups_[g].fused.end());
    for (const size_t n : nodes) {
      const int64_t macs = bundle_.info().node_costs[n].macs;
      plan_.cost.macs -= macs - macs / tokens * most;
    }
  }
}

void Planner::plan_group(size_t index) {
  const bundle::Node& main = node(index);
  const PlanFunction plan = find_plan(main.op);
  if (!plan) {
    fail(Code::unsupported, "{}: operator '{}' has no kernel in this build of the engine",
         main.path, main.op);
  }
  rows_ = plan_.values[static_cast<size_t>(fetch(main.inputs[0]))].rows;
  check_rows(index, rows_);
  made_rows_ = made_rows(index, rows_);
  const bool moves = main.op == "compact_rows" || main.op == "scatter_rows";
  const Rows rule = bundle::rows_rule(main, bundle_.info().shapes, bundle_.graph().tensors);
  // These look at samples, not at single rows.
  const bool whole =
      moves || rule == Rows::grouped || rule == Rows::pooled || rule == Rows::ordered;
  const bool counted = rows_ > 0 && !whole;
  share_ = counted ? plan_.rows[static_cast<size_t>(rows_)].per_sample : 1;
  graph_rows_ = counted && rows_ == plan_.last ? plan_.rows[1].per_sample : share_;
  view_ = options_;
  if (counted) view_.samples = all_rows(rows_);
  most_ = view_.samples;
  finished_ = plan_.steps.size();
  const size_t before = plan_.steps.size();
  plan(*this, index, named_step(groups_[index]));
  if (plan_.steps.size() > before) {
    Step& step = plan_.steps[finished_];
    step.rows = rows_;
    step.metered_rows = rows_;
    if (main.op == "scatter_rows" || main.op == "attention") {
      step.other = plan_.values[static_cast<size_t>(fetch(main.inputs[1]))].rows;
    } else {
      step.other = made_rows_;
    }
    if (moves) step.metered_rows = step.other;
    if (counted && !step.kernel.counts_rows) plan_fewer_rows(index, plan);
  }
  view_ = options_;
  share_ = graph_rows_ = 1;
}

void Planner::plan_fewer_rows(size_t index, PlanFunction plan) {
  const size_t at = finished_;
  const int64_t most = view_.samples;
  const Layout layout = plan_.values[static_cast<size_t>(plan_.steps[at].output)].layout;
  std::vector<int64_t> counts, row_floats;
  std::vector<Kernel> kernels;
  for (const int64_t count : fewer_rows(most)) {
    Capture capture;
    capture_ = &capture;
    view_.samples = count;
    try {
      plan(*this, index, named_step(groups_[index]));
    } catch (...) {
      capture_ = nullptr;
      throw;
    }
    capture_ = nullptr;
    // Another memory order or other operands: more rows than needed are computed instead.
    if (!capture.usable || !capture.step || capture.layout != layout ||
        capture.step->inputs != plan_.steps[at].inputs ||
        capture.step->kernel.must_share != plan_.steps[at].kernel.must_share)
      continue;
    counts.push_back(count);
    kernels.push_back(std::move(capture.step->kernel));
  }
  Step& step = plan_.steps[at];
  counts.push_back(most);
  kernels.push_back(std::move(step.kernel));
  for (int input : step.inputs)
    row_floats.push_back(plan_.values[static_cast<size_t>(input)].bytes / most /
                         static_cast<int64_t>(sizeof(float)));
  step.kernel = by_count(std::move(counts), std::move(kernels), std::move(row_floats));
  plan_.scratch_bytes = std::max(plan_.scratch_bytes, step.kernel.scratch_bytes);
}

}  // namespace sluice::engine
