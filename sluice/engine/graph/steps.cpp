#include "sluice/engine/graph/steps.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/narrow_conv.h"
#include "sluice/engine/kernel/reduce.h"
#include "sluice/engine/kernel/sparse.h"

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

std::vector<float> copy_tensor(const bundle::Bundle& bundle, const Node& node,
                               const std::string& role) {
  const auto found = node.tensors.find(role);
  if (found == node.tensors.end()) return {};
  const auto values = bundle.tensor(found->second).f32();
  return {values.begin(), values.end()};
}

/// A kernel that needs nothing but its pointers.
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

struct ChannelView {
  size_t outer, channels, inner;
};

ChannelView channel_view(const Shape& shape, Layout layout, int64_t samples) {
  const size_t channels = static_cast<size_t>(shape[0]);
  const size_t rest = static_cast<size_t>(numel(shape)) / std::max<size_t>(channels, 1);
  const size_t n = static_cast<size_t>(samples);
  if (layout == Layout::channels_last) return {n * rest, channels, 1};
  return {n, channels, rest};
}

onednn::ConvShape window(const Node& node, const Shape& in, const Shape& out, int64_t samples) {
  onednn::ConvShape s;
  s.samples = samples;
  s.in_channels = in[0];
  s.in_height = in[1];
  s.in_width = in[2];
  s.out_channels = out[0];
  s.out_height = out[1];
  s.out_width = out[2];
  const auto set = [&](int64_t(&to)[2], const std::string& name, int64_t fallback) {
    const auto values = bundle::attr_ints(node.attrs, name, 2, fallback);
    std::copy(values.begin(), values.end(), to);
  };
  set(s.padding, "padding", 0);
  set(s.dilation, "dilation", 1);
  set(s.stride, "stride", 1);
  return s;
}

}  // namespace

int Planner::threads_for(int64_t macs) const {
  if (bundle_.info().total.macs * options_.samples < kParallelNetworkMacs) return 1;
  return macs * options_.samples >= kParallelStepMacs ? options_.threads : 1;
}

Step Planner::named_step(const Group& group) const {
  const Node& node = bundle_.graph().nodes[group.main];
  Step step;
  step.info.path = node.path;
  step.info.op = node.op;
  step.info.cost = bundle_.info().node_costs[group.main];
  for (size_t i : group.fused) {
    step.info.fused.push_back(bundle_.graph().nodes[i].path);
    step.info.cost += bundle_.info().node_costs[i];
  }
  return step;
}

void Planner::finish(const Group& group, Step step, Layout layout) {
  const Shape& shape = bundle_.info().shapes.at(group.output);
  step.output = add_value(shape, shape.size() == 3 ? layout : Layout::plain);
  define(group.output, step.output);
  add_step(std::move(step));
}

onednn::Tail Planner::tail_of(size_t index, Layout layout, Step& step) {
  const Group& group = groups_[index];
  onednn::Tail tail;
  tail.activation = group.activation;
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

void Planner::plan_group(size_t index) {
  const Group& group = groups_[index];
  const Node& node = bundle_.graph().nodes[group.main];
  Step step = named_step(group);
  if (node.op == "conv2d") return plan_conv(index, std::move(step));
  if (node.op == "linear") return plan_linear(index, std::move(step));
  if (node.op == "max_pool2d" || node.op == "avg_pool2d") return plan_pool(index, std::move(step));
  if (node.op == "batch_norm" || node.op == "scale") return plan_scale(index, std::move(step));
  if (node.op == "mul") return plan_mul(index, std::move(step));
  if (node.op == "softmax" || node.op == "layer_norm") return plan_rows(index, std::move(step));
  return plan_simple(index, std::move(step));
}

void Planner::plan_conv(size_t index, Step step) {
  const Group& group = groups_[index];
  const Node& node = bundle_.graph().nodes[group.main];
  const Shape in = bundle_.info().shapes.at(group.inputs[0]),
              out = bundle_.info().shapes.at(group.output);
  onednn::ConvShape shape = window(node, in, out, options_.samples);
  shape.groups = bundle::attr_int(node.attrs, "groups", 1);
  shape.kernel[0] = bundle_.tensor(node.tensors.at("weight")).shape[2];
  shape.kernel[1] = bundle_.tensor(node.tensors.at("weight")).shape[3];
  const int threads = threads_for(step.info.cost.macs);
  const std::string key = node.path + (options_.fuse ? "|fused" : "");
  if (!group.adds && narrow_conv_pays(shape)) {
    step.inputs = {fetch(group.inputs[0], Layout::channels_last)};
    step.kernel = make_narrow_conv(shape, group.activation, group.weight, group.bias, threads);
    return finish(group, std::move(step), Layout::channels_last);
  }
  // Channels last keeps odd channel counts exact, see docs/decisions/conv-layout.md.
  for (const bool last_try : {false, true}) {
    for (const Layout layout : {Layout::channels_last, Layout::plain}) {
      Step attempt = step;
      // Tried without the reorders first: a layout that is refused must leave no step behind.
      onednn::Tail probe;
      probe.activation = group.activation;
      if (group.adds) probe.add = onednn::Tail::Add::operand;
      if (!onednn::make_conv(shape, layout, probe, group.weight, group.bias, threads, cache_, key,
                             last_try))
        continue;
      attempt.inputs = {fetch(group.inputs[0], layout)};
      const onednn::Tail tail = tail_of(index, layout, attempt);
      auto kernel = onednn::make_conv(shape, layout, tail, group.weight, group.bias, threads,
                                      cache_, key, true);
      SLUICE_CHECK(kernel.has_value());
      attempt.kernel = std::move(*kernel);
      return finish(group, std::move(attempt), layout);
    }
  }
  fail(Code::unsupported, "{}: oneDNN {} has no convolution for {} -> {}", node.path,
       onednn::version(), to_string(in), to_string(out));
}

void Planner::plan_linear(size_t index, Step step) {
  const Group& group = groups_[index];
  const Node& node = bundle_.graph().nodes[group.main];
  step.inputs = {fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = shape_of(step.inputs[0]);
  const int64_t in = shape.back(),
                rows = options_.samples * (numel(shape) / std::max<int64_t>(in, 1));
  const int64_t out = static_cast<int64_t>(group.weight.size()) / in;
  if (options_.sparse && sparse_pays(density_of(group.weight), rows))
    return plan_sparse(index, std::move(step), rows);
  const onednn::Tail tail = tail_of(index, Layout::plain, step);
  step.kernel = onednn::make_linear(rows, in, out, tail, group.weight, group.bias,
                                    threads_for(step.info.cost.macs), cache_,
                                    node.path + (options_.fuse ? "|fused" : ""));
  finish(group, std::move(step), Layout::plain);
}

void Planner::plan_sparse(size_t index, Step step, int64_t rows) {
  struct Operands {
    SparseWeights weight;
    std::vector<float> bias;
  };
  const Group& group = groups_[index];
  const int64_t in = shape_of(step.inputs[0]).back(),
                out = static_cast<int64_t>(group.weight.size()) / in;
  auto operands = std::make_shared<Operands>();
  operands->weight = compress(group.weight, out, in);
  operands->bias = group.bias;
  const SparseWeights& weight = operands->weight;
  Cost cost = step.info.cost;
  cost.macs = weight.nonzero() * (rows / options_.samples);
  cost.weight_bytes += weight.bytes() - out * in * static_cast<int64_t>(sizeof(float));
  plan_.cost.macs += cost.macs - step.info.cost.macs;
  plan_.cost.weight_bytes += cost.weight_bytes - step.info.cost.weight_bytes;
  step.info.cost = cost;
  if (group.adds) step.inputs.push_back(fetch(group.inputs.back(), Layout::plain));
  step.kernel.name = fmt::format("sluice csr (density {:.2g})", weight.density());
  step.kernel.scratch_bytes =
      static_cast<int64_t>(sparse_scratch(weight, static_cast<size_t>(rows)) * sizeof(float));
  step.kernel.bind = [operands, rows = static_cast<size_t>(rows), adds = group.adds,
                      activation = group.activation](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* other = adds ? b.inputs[1] : nullptr;
    float* y = b.output;
    float* scratch = reinterpret_cast<float*>(b.scratch);
    return [=] {
      const float* bias = operands->bias.empty() ? nullptr : operands->bias.data();
      linear_sparse(x, operands->weight, bias, other ? Activation::none : activation, y, rows,
                    scratch);
      if (other) add(y, other, activation, y, rows * static_cast<size_t>(operands->weight.out));
    };
  };
  finish(group, std::move(step), Layout::plain);
}

void Planner::plan_pool(size_t index, Step step) {
  const Group& group = groups_[index];
  const Node& node = bundle_.graph().nodes[group.main];
  step.inputs = {fetch(group.inputs[0])};
  const Layout layout = layout_of(step.inputs[0]);
  onednn::ConvShape shape = window(node, shape_of(step.inputs[0]),
                                   bundle_.info().shapes.at(group.output), options_.samples);
  const auto kernel = bundle::attr_ints(node.attrs, "kernel", 2, 1);
  std::copy(kernel.begin(), kernel.end(), shape.kernel);
  if (!node.attrs.count("stride")) std::copy(kernel.begin(), kernel.end(), shape.stride);
  step.kernel = onednn::make_pool(shape, layout, node.op == "max_pool2d",
                                  threads_for(numel(shape_of(step.inputs[0]))));
  finish(group, std::move(step), layout);
}

void Planner::plan_scale(size_t index, Step step) {
  const Group& group = groups_[index];
  const Node& node = bundle_.graph().nodes[group.main];
  step.inputs = {fetch(group.inputs[0])};
  const Layout layout = layout_of(step.inputs[0]);
  const Shape& shape = shape_of(step.inputs[0]);
  ScaleShift factors;
  if (node.op == "batch_norm") {
    factors = batch_norm_factors(bundle_, node);
  } else {
    factors.scale = copy_tensor(bundle_, node, "scale");
  }
  const size_t count = static_cast<size_t>(numel(shape) * options_.samples);
  if (factors.scale.size() == 1 && factors.shift.empty()) {
    step.kernel = plain_kernel(
        "sluice scale",
        [=, f = factors.scale[0]](const float* x, const float*, float* out) {
          scale_all(x, f, out, count);
        },
        0);
  } else {
    const ChannelView view = channel_view(shape, layout, options_.samples);
    step.kernel = plain_kernel(
        "sluice scale_channels",
        [view, factors = std::make_shared<const ScaleShift>(std::move(factors))](
            const float* x, const float*, float* out) {
          scale_channels(x, factors->scale.data(),
                         factors->shift.empty() ? nullptr : factors->shift.data(), out, view.outer,
                         view.channels, view.inner);
        },
        0);
  }
  finish(group, std::move(step), layout);
}

void Planner::plan_mul(size_t index, Step step) {
  const Group& group = groups_[index];
  const int a = fetch(group.inputs[0]);
  const Layout layout = layout_of(a);
  const Shape& shape = shape_of(a);
  const Shape b_shape = bundle_.info().shapes.at(group.inputs[1]);
  const size_t samples = static_cast<size_t>(options_.samples),
               each = static_cast<size_t>(numel(shape));
  if (b_shape == shape) {
    step.inputs = {a, fetch(group.inputs[1], layout)};
    step.kernel = plain_kernel(
        "sluice multiply",
        [=](const float* x, const float* y, float* out) { multiply(x, y, out, samples * each); },
        0);
    return finish(group, std::move(step), layout);
  }
  step.inputs = {a, fetch(group.inputs[1], Layout::plain)};
  if (numel(b_shape) == 1) {
    step.kernel = plain_kernel(
        "sluice multiply_scalar",
        [=](const float* x, const float* y, float* out) {
          for (size_t s = 0; s < samples; ++s) scale_all(x + s * each, y[s], out + s * each, each);
        },
        0);
    return finish(group, std::move(step), layout);
  }
  const ChannelView view = channel_view(shape, layout, 1);
  step.kernel = plain_kernel(
      "sluice multiply_channels",
      [=](const float* x, const float* y, float* out) {
        for (size_t s = 0; s < samples; ++s) {
          scale_channels(x + s * each, y + s * view.channels, nullptr, out + s * each, view.outer,
                         view.channels, view.inner);
        }
      },
      0);
  finish(group, std::move(step), layout);
}

void Planner::plan_rows(size_t index, Step step) {
  const Group& group = groups_[index];
  const Node& node = bundle_.graph().nodes[group.main];
  step.inputs = {fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = shape_of(step.inputs[0]);
  const size_t width = static_cast<size_t>(shape.back());
  const size_t rows =
      static_cast<size_t>(options_.samples * numel(shape)) / std::max<size_t>(width, 1);
  if (node.op == "softmax") {
    step.kernel = plain_kernel(
        "sluice softmax",
        [=](const float* x, const float*, float* out) { softmax(x, out, rows, width); }, 0);
  } else {
    const float eps = static_cast<float>(bundle::attr_double(node.attrs, "eps", 1e-5));
    const auto weight =
        std::make_shared<const std::vector<float>>(copy_tensor(bundle_, node, "weight"));
    const auto bias =
        std::make_shared<const std::vector<float>>(copy_tensor(bundle_, node, "bias"));
    step.kernel = plain_kernel(
        "sluice layer_norm",
        [=](const float* x, const float*, float* out) {
          layer_norm(x, weight->empty() ? nullptr : weight->data(),
                     bias->empty() ? nullptr : bias->data(), eps, out, rows, width);
        },
        0);
  }
  finish(group, std::move(step), Layout::plain);
}

void Planner::plan_simple(size_t index, Step step) {
  const Group& group = groups_[index];
  const Node& node = bundle_.graph().nodes[group.main];
  if (node.op == "flatten") {
    const int view =
        add_view(fetch(group.inputs[0], Layout::plain), bundle_.info().shapes.at(group.output));
    return define(group.output, view);
  }
  step.inputs = {fetch(group.inputs[0])};
  const Layout layout = layout_of(step.inputs[0]);
  const Shape& shape = shape_of(step.inputs[0]);
  const size_t samples = static_cast<size_t>(options_.samples),
               count = samples * static_cast<size_t>(numel(shape));
  if (node.op == "activation") {
    const Activation kind = activation_from_name(bundle::attr_string(node.attrs, "kind", "relu"));
    step.kernel = plain_kernel(
        "sluice activation",
        [=](const float* x, const float*, float* out) { activate(kind, x, out, count); }, 0);
  } else if (node.op == "threshold") {
    const float value = static_cast<float>(bundle::attr_double(node.attrs, "value", 0));
    step.kernel = plain_kernel(
        "sluice threshold",
        [=](const float* x, const float*, float* out) { threshold(x, value, out, count); }, 0);
  } else if (node.op == "add") {
    step.inputs.push_back(fetch(group.inputs[1], layout));
    step.kernel = plain_kernel(
        "sluice add",
        [=, kind = group.activation](const float* a, const float* b, float* out) {
          add(a, b, kind, out, count);
        },
        0);
  } else if (node.op == "global_avg_pool") {
    const size_t channels = static_cast<size_t>(shape[0]),
                 pixels = static_cast<size_t>(shape[1] * shape[2]);
    step.kernel =
        plain_kernel("sluice global_avg_pool", [=](const float* x, const float*, float* out) {
          (layout == Layout::plain ? average_plain : average_channels_last)(x, out, samples,
                                                                            channels, pixels);
        });
  } else {
    fail(Code::unsupported, "{}: operator '{}' has no kernel in this build of the engine",
         node.path, node.op);
  }
  finish(group, std::move(step), layout);
}

}  // namespace sluice::engine
