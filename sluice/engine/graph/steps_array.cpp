// Operators on arrays of any rank. A picture keeps its memory order through them where that is
// possible: loops then run over [H,W,C] instead of [C,H,W].
#include <algorithm>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/array.h"
#include "sluice/engine/kernel/rows.h"

namespace sluice::engine {
namespace {

using bundle::Node;

/// The dimensions in the order of memory.
Shape in_memory(const Shape& shape, Layout layout) {
  if (layout == Layout::plain || shape.size() != 3) return shape;
  return {shape[1], shape[2], shape[0]};
}

size_t axis_in_memory(int64_t axis, size_t rank, Layout layout) {
  const size_t a = static_cast<size_t>(axis);
  return layout == Layout::plain || rank != 3 ? a : (a + 2) % 3;
}

struct AxisView {
  size_t outer = 1, size = 1, inner = 1;
};

AxisView axis_view(const Shape& shape, int64_t axis, Layout layout) {
  const Shape memory = in_memory(shape, layout);
  const size_t at = axis_in_memory(axis, shape.size(), layout);
  AxisView view;
  for (size_t i = 0; i < memory.size(); ++i)
    (i < at ? view.outer : i == at ? view.size : view.inner) *= static_cast<size_t>(memory[i]);
  return view;
}

int64_t axis_of(const Node& node, const Shape& shape) {
  return bundle::attr_int(node.attrs, "axis", std::ssize(shape) - 1);
}

std::vector<int64_t> ints(const Node& node, const char* name) {
  const bundle::Attribute& value = node.attrs.at(name);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) return *list;
  return {std::get<int64_t>(value)};
}

/// A kernel over samples that lie one after another: run(inputs, output) for each; each[i] is how
/// far input i moves.
template <class F>
Kernel sample_kernel(std::string name, int64_t planned, std::vector<size_t> each, size_t out_each,
                     F run) {
  Kernel kernel;
  kernel.name = std::move(name);
  kernel.counts_rows = true;
  kernel.bind = [=](const Binding& b) -> std::function<void()> {
    const std::vector<const float*> first(b.inputs.begin(), b.inputs.end());
    auto at = std::make_shared<std::vector<const float*>>(first);
    float* out = b.output;
    const LiveRows* rows = b.rows;
    return [=] {
      const size_t count = static_cast<size_t>(rows ? rows->count : planned);
      for (size_t s = 0; s < count; ++s) {
        for (size_t i = 0; i < first.size(); ++i) (*at)[i] = first[i] + s * each[i];
        run(std::span<const float* const>(*at), out + s * out_each);
      }
    };
  };
  return kernel;
}

size_t elements(const Shape& shape) { return static_cast<size_t>(numel(shape)); }

void plan_reshape(Planner& planner, size_t index, Step) {
  const Group& group = planner.group(index);
  const int view = planner.add_view(planner.fetch(group.inputs[0], Layout::plain),
                                    planner.bundle().info().shapes.at(group.output));
  planner.define(group.output, view);
}

void plan_transpose(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape in = planner.shape_of(step.inputs[0]),
              out = planner.bundle().info().shapes.at(group.output);
  const auto strides = broadcast_strides(in, in);
  std::vector<std::vector<size_t>> turned(1);
  for (const int64_t axis : ints(planner.node(index), "perm"))
    turned[0].push_back(strides[static_cast<size_t>(axis)]);
  const size_t each = elements(in);
  step.kernel =
      sample_kernel("sluice transpose", planner.options().samples, {each}, each,
                    [loops = merge_loops(out, turned)](std::span<const float* const> x, float* y) {
                      copy_array(loops, x[0], y);
                    });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_concat(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Shape out = planner.bundle().info().shapes.at(group.output);
  const Layout layout = planner.layout_of(planner.fetch(group.inputs[0]));
  std::vector<size_t> each, run;
  size_t outer = 1;
  for (const std::string& name : group.inputs) {
    step.inputs.push_back(planner.fetch(name, layout));
    const Shape& shape = planner.shape_of(step.inputs.back());
    const AxisView view = axis_view(shape, axis_of(planner.node(index), out), layout);
    outer = view.outer;
    run.push_back(view.size * view.inner);
    each.push_back(elements(shape));
  }
  step.kernel = sample_kernel("sluice concat", planner.options().samples, each, elements(out),
                              [outer, run](std::span<const float* const> x, float* y) {
                                for (size_t o = 0; o < outer; ++o) {
                                  for (size_t i = 0; i < x.size(); ++i) {
                                    std::memcpy(y, x[i] + o * run[i], run[i] * sizeof(float));
                                    y += run[i];
                                  }
                                }
                              });
  planner.finish(index, std::move(step), layout);
}

void plan_slice(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  const Layout layout = planner.layout_of(step.inputs[0]);
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const int64_t axis = axis_of(node, shape);
  const AxisView view = axis_view(shape, axis, layout);
  const size_t start = static_cast<size_t>(bundle::attr_int(node.attrs, "start", 0)) * view.inner,
               size = static_cast<size_t>(
                          bundle::attr_int(node.attrs, "size",
                                           static_cast<int64_t>(view.size) -
                                               bundle::attr_int(node.attrs, "start", 0))) *
                      view.inner,
               width = view.size * view.inner;
  step.kernel =
      row_kernel("sluice slice", planner.options().samples,
                 [=, outer = view.outer](const float* x, const float*, float* out, size_t rows) {
                   slice_rows(x, width, start, size, out, rows * outer);
                 });
  planner.finish(index, std::move(step), layout);
}

void plan_gather(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  const Layout layout = planner.layout_of(step.inputs[0]);
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const AxisView view = axis_view(shape, axis_of(node, shape), layout);
  step.kernel = sample_kernel(
      "sluice gather", planner.options().samples, {elements(shape)},
      elements(planner.bundle().info().shapes.at(group.output)),
      [view, indices = ints(node, "indices")](std::span<const float* const> x, float* y) {
        for (size_t o = 0; o < view.outer; ++o) {
          const float* from = x[0] + o * view.size * view.inner;
          if (view.inner == 1) {
            for (const int64_t i : indices) *y++ = from[i];
            continue;
          }
          for (const int64_t i : indices) {
            std::memcpy(y, from + static_cast<size_t>(i) * view.inner, view.inner * sizeof(float));
            y += view.inner;
          }
        }
      });
  planner.finish(index, std::move(step), layout);
}

void plan_pad(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  const Layout layout = planner.layout_of(step.inputs[0]);
  const Shape in = in_memory(planner.shape_of(step.inputs[0]), layout),
              out = in_memory(planner.bundle().info().shapes.at(group.output), layout);
  const Shape before = in_memory(ints(node, "before"), layout);
  const auto strides = broadcast_strides(out, out);
  size_t offset = 0;
  for (size_t i = 0; i < out.size(); ++i) offset += static_cast<size_t>(before[i]) * strides[i];
  // Rows of the input go to rows of the output: the copy's "output" is the input's order.
  const size_t width = static_cast<size_t>(in.back()), count = elements(in) / width;
  std::vector<size_t> rows;
  for (size_t r = 0; r < count; ++r) {
    size_t rest = r, at = offset;
    for (size_t i = in.size() - 1; i-- > 0;) {
      at += rest % static_cast<size_t>(in[i]) * strides[i];
      rest /= static_cast<size_t>(in[i]);
    }
    rows.push_back(at);
  }
  const float value = static_cast<float>(bundle::attr_double(node.attrs, "value", 0));
  const size_t total = elements(out);
  step.kernel =
      sample_kernel("sluice pad", planner.options().samples, {elements(in)}, total,
                    [rows = std::make_shared<const std::vector<size_t>>(std::move(rows)), width,
                     value, total](std::span<const float* const> x, float* y) {
                      std::fill(y, y + total, value);
                      for (size_t r = 0; r < rows->size(); ++r)
                        std::memcpy(y + (*rows)[r], x[0] + r * width, width * sizeof(float));
                    });
  planner.finish(index, std::move(step), layout);
}

void plan_constant(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  auto values = std::make_shared<const std::vector<float>>(
      copy_tensor(planner.bundle(), planner.node(index), "value"));
  const size_t each = values->size();
  step.kernel = row_kernel("sluice constant", planner.options().samples,
                           [values, each](const float*, const float*, float* out, size_t rows) {
                             for (size_t r = 0; r < rows; ++r)
                               std::memcpy(out + r * each, values->data(), each * sizeof(float));
                           });
  planner.finish(index, std::move(step), Layout::plain);
}

/// [H,W,C] of a constant [C,H,W].
std::vector<float> to_channels_last(const std::vector<float>& values, const Shape& shape) {
  std::vector<float> turned(values.size());
  const size_t channels = static_cast<size_t>(shape[0]), pixels = values.size() / channels;
  for (size_t c = 0; c < channels; ++c)
    for (size_t p = 0; p < pixels; ++p) turned[p * channels + c] = values[c * pixels + p];
  return turned;
}

/// Shapes of fewer dimensions than a picture's lie in memory as [1,..] whatever the order.
std::vector<size_t> operand_strides(Shape shape, const Shape& out, Layout layout) {
  while (shape.size() < out.size()) shape.insert(shape.begin(), 1);
  return broadcast_strides(in_memory(shape, layout), in_memory(out, layout));
}

void plan_binary(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  const Shape out = planner.bundle().info().shapes.at(group.output);
  const auto kind = *bundle::binary_from_name(bundle::attr_string(node.attrs, "kind", ""));
  const bool reversed = bundle::attr_bool(node.attrs, "reversed", false);
  const Layout layout =
      out.size() == 3 ? planner.layout_of(planner.fetch(group.inputs[0])) : Layout::plain;
  std::vector<size_t> each;
  std::vector<std::vector<size_t>> strides;
  for (const std::string& name : group.inputs) {
    step.inputs.push_back(planner.fetch(name, layout));
    const Shape& shape = planner.shape_of(step.inputs.back());
    each.push_back(elements(shape));
    strides.push_back(operand_strides(shape, out, layout));
  }
  auto other = std::make_shared<std::vector<float>>(copy_tensor(planner.bundle(), node, "other"));
  if (group.inputs.size() == 1) {
    const Shape shape = planner.bundle().graph().tensors.at(node.tensors.at("other")).shape;
    if (layout == Layout::channels_last && shape.size() == 3)
      *other = to_channels_last(*other, shape);
    strides.push_back(operand_strides(shape, out, layout));
  }
  if (reversed) std::swap(strides[0], strides[1]);
  const Loops loops = merge_loops(in_memory(out, layout), strides);
  step.kernel =
      sample_kernel(fmt::format("sluice {}", bundle::binary_name(kind)), planner.options().samples,
                    each, elements(out), [=](std::span<const float* const> x, float* y) {
                      const float *a = x[0], *b = x.size() > 1 ? x[1] : other->data();
                      if (reversed) std::swap(a, b);
                      binary_array(kind, loops, a, b, y);
                    });
  planner.finish(index, std::move(step), layout);
}

void plan_unary(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  const Layout layout = planner.layout_of(step.inputs[0]);
  const auto kind = *bundle::unary_from_name(bundle::attr_string(node.attrs, "kind", ""));
  const float alpha = static_cast<float>(bundle::attr_double(node.attrs, "alpha", 0)),
              beta = static_cast<float>(bundle::attr_double(node.attrs, "beta", 0));
  const size_t each = elements(planner.shape_of(step.inputs[0]));
  step.kernel = row_kernel(
      fmt::format("sluice {}", bundle::unary_name(kind)), planner.options().samples,
      [=](const float* x, const float*, float* out, size_t rows) {
        unary_array(kind, alpha, beta, x, out, rows * each);
      },
      0);
  planner.finish(index, std::move(step), layout);
}

void plan_where(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Shape out = planner.bundle().info().shapes.at(group.output);
  std::vector<size_t> each;
  std::vector<std::vector<size_t>> strides;
  for (const std::string& name : group.inputs) {
    step.inputs.push_back(planner.fetch(name, Layout::plain));
    each.push_back(elements(planner.shape_of(step.inputs.back())));
    strides.push_back(operand_strides(planner.shape_of(step.inputs.back()), out, Layout::plain));
  }
  step.kernel =
      sample_kernel("sluice where", planner.options().samples, each, elements(out),
                    [loops = merge_loops(out, strides)](std::span<const float* const> x, float* y) {
                      where_array(loops, x[0], x[1], x[2], y);
                    });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_reduce(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape in = planner.shape_of(step.inputs[0]);
  const auto kind = *bundle::reduce_from_name(bundle::attr_string(node.attrs, "kind", ""));
  // Reduced dimensions that do not lie one after another are brought behind the others first.
  std::vector<size_t> kept, reduced;
  const std::vector<int64_t> axes = ints(node, "axes");
  for (size_t i = 0; i < in.size(); ++i) {
    if (in[i] == 1) continue;
    const bool gone = std::find(axes.begin(), axes.end(), static_cast<int64_t>(i)) != axes.end();
    (gone ? reduced : kept).push_back(i);
  }
  const auto product = [&](const std::vector<size_t>& of, size_t from, size_t to) {
    size_t n = 1;
    for (size_t i : of)
      if (i >= from && i < to) n *= static_cast<size_t>(in[i]);
    return n;
  };
  const size_t first = reduced.empty() ? in.size() : reduced.front(),
               last = reduced.empty() ? in.size() : reduced.back() + 1;
  const size_t count = product(reduced, 0, in.size()), total = elements(in),
               results = product(kept, 0, in.size());
  const bool joined = product(kept, first, last) == 1;
  if (joined) {
    const size_t outer = product(kept, 0, first), inner = product(kept, last, in.size());
    step.kernel = sample_kernel("sluice reduce", planner.options().samples, {total}, results,
                                [=](std::span<const float* const> x, float* y) {
                                  reduce_middle(kind, x[0], y, outer, count, inner);
                                });
    return planner.finish(index, std::move(step), Layout::plain);
  }
  const auto strides = broadcast_strides(in, in);
  Shape order;
  std::vector<std::vector<size_t>> turned(1);
  for (const auto* list : {&kept, &reduced}) {
    for (size_t i : *list) {
      order.push_back(in[i]);
      turned[0].push_back(strides[i]);
    }
  }
  const Loops loops = merge_loops(order, turned);
  Kernel kernel;
  kernel.name = "sluice reduce";
  kernel.counts_rows = true;
  kernel.scratch_bytes = static_cast<int64_t>(total * sizeof(float));
  kernel.bind = [=,
                 planned = planner.options().samples](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    float* y = b.output;
    float* scratch = reinterpret_cast<float*>(b.scratch);
    const LiveRows* rows = b.rows;
    return [=] {
      const size_t samples = static_cast<size_t>(rows ? rows->count : planned);
      for (size_t s = 0; s < samples; ++s) {
        copy_array(loops, x + s * total, scratch);
        reduce_middle(kind, scratch, y + s * results, results, count, 1);
      }
    };
  };
  step.kernel = std::move(kernel);
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

std::vector<PlanEntry> array_steps() {
  return {{"reshape", plan_reshape},   {"transpose", plan_transpose}, {"concat", plan_concat},
          {"slice", plan_slice},       {"gather", plan_gather},       {"pad", plan_pad},
          {"constant", plan_constant}, {"binary", plan_binary},       {"unary", plan_unary},
          {"where", plan_where},       {"reduce", plan_reduce}};
}

}  // namespace sluice::engine
