#include "sluice/base/error.h"
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/rows.h"

namespace sluice::engine {
namespace {

using bundle::Node;

/// Elements that one number of `keep` decides about.
size_t row_width(const Planner& planner, const std::string& x, const std::string& keep) {
  return static_cast<size_t>(numel(planner.full_shape(x)) / planner.full_shape(keep)[0]);
}

void plan_compact(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const int x = planner.fetch(group.inputs[0]);
  const Layout layout = planner.layout_of(x);
  step.inputs = {x, planner.fetch(group.inputs[1], Layout::plain)};
  step.kernel.name = "sluice compact_rows";
  step.kernel.counts_rows = true;
  step.kernel.in_place = 0;
  step.kernel.bind = [width = row_width(planner, group.inputs[0], group.inputs[1])](
                         const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows && b.other);
    const float *in = b.inputs[0], *keep = b.inputs[1];
    return [=, before = b.rows, after = b.other, out = b.output] {
      compact_rows(in, keep, width, *before, *after, out);
    };
  };
  planner.finish(index, std::move(step), layout);
}

void plan_scatter(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const int base = planner.fetch(group.inputs[0]);
  const Layout layout = planner.layout_of(base);
  step.inputs = {base, planner.fetch(group.inputs[1], layout)};
  const bool adds = bundle::attr_string(planner.node(index).attrs, "mode", "replace") == "add";
  step.kernel.name = "sluice scatter_rows";
  step.kernel.counts_rows = true;
  step.kernel.in_place = 0;
  step.kernel.bind = [adds, width = row_width(planner, group.inputs[0], group.inputs[2])](
                         const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows && b.other);
    const float *in = b.inputs[0], *y = b.inputs[1];
    return [=, before = b.rows, after = b.other, out = b.output] {
      scatter_rows(in, y, width, *before, *after, adds, out);
    };
  };
  planner.finish(index, std::move(step), layout);
}

void plan_pool_rows(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Shape& shape = planner.full_shape(group.inputs[0]);
  const std::string name = bundle::attr_string(planner.node(index).attrs, "kind", "mean");
  const Pool kind = name == "mean" ? Pool::mean : name == "first" ? Pool::first : Pool::last;
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  step.kernel.name = "sluice pool_rows";
  step.kernel.counts_rows = true;
  step.kernel.bind = [kind, tokens = shape[0], width = static_cast<size_t>(shape[1])](
                         const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows && b.other);
    const float* in = b.inputs[0];
    return [=, rows = b.rows, outer = b.other, out = b.output] {
      pool_rows(in, width, *rows, tokens / rows->per_sample, *outer, kind, out);
    };
  };
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_positions(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  step.kernel.name = "sluice positions";
  step.kernel.counts_rows = true;
  step.kernel.bind =
      [tokens = planner.full_shape(group.inputs[0])[0]](const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows);
    return [=, rows = b.rows, position = b.position, out = b.output] {
      const int64_t unit = tokens / rows->per_sample;
      for (int64_t s = 0; s < rows->samples; ++s) {
        const int64_t first = rows->start[s] * unit, before = position ? position[s] : 0;
        for (int64_t r = first; r < rows->start[s + 1] * unit; ++r)
          out[r] = static_cast<float>(before + r - first);
      }
    };
  };
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_rms_norm(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const size_t width = static_cast<size_t>(shape.back() / bundle::attr_int(node.attrs, "heads", 1)),
               each = static_cast<size_t>(numel(shape)) / width;
  const float eps = static_cast<float>(bundle::attr_double(node.attrs, "eps", 1e-5));
  const auto weight =
      std::make_shared<const std::vector<float>>(copy_tensor(planner.bundle(), node, "weight"));
  step.kernel = row_kernel(
      "sluice rms_norm", planner.options().samples,
      [=](const float* x, const float*, float* out, size_t rows) {
        rms_norm(x, weight->empty() ? nullptr : weight->data(), eps, out, rows * each, width);
      },
      0);
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_embedding(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const size_t each = static_cast<size_t>(numel(planner.shape_of(step.inputs[0])));
  const std::string& name = node.tensors.at("weight");
  const bundle::TensorView& weight = planner.bundle().tensor(name);
  const bundle::TensorSpec& spec = planner.bundle().graph().tensors.at(name);
  step.info.cost.weight_bytes = 0;  // of the table, rows like those of the output are read
  if (spec.format != "f32") {
    const auto table = bundle::view_packed(*bundle::format_from_name(spec.format), spec.shape[0],
                                           spec.shape[1], weight.bytes, "tensor '" + name + "'",
                                           true);  // Network has checked it
    step.kernel = row_kernel(
        fmt::format("sluice embedding {}", spec.format), planner.options().samples,
        [each, table, path = node.path](const float* ids, const float*, float* out, size_t rows) {
          embed(ids, table, path, out, rows * each);
        });
    planner.finish(index, std::move(step), Layout::plain);
    return;
  }
  step.kernel =
      row_kernel("sluice embedding", planner.options().samples,
                 [each, table = weight.f32().data(), count = static_cast<size_t>(weight.shape[0]),
                  width = static_cast<size_t>(weight.shape[1]),
                  path = node.path](const float* ids, const float*, float* out, size_t rows) {
                   embed(ids, table, count, width, path, out, rows * each);
                 });
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

std::vector<PlanEntry> rows_steps() {
  return {{"compact_rows", plan_compact}, {"scatter_rows", plan_scatter},
          {"pool_rows", plan_pool_rows},  {"positions", plan_positions},
          {"rms_norm", plan_rms_norm},    {"embedding", plan_embedding}};
}

}  // namespace sluice::engine
