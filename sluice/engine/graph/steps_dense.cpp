#include "sluice/engine/graph/steps.h"
#include "sluice/engine/graph/steps_linear.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/conv2d.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/narrow_conv.h"
#include "sluice/engine/kernel/packed_conv.h"
#include "sluice/engine/kernel/plane_pool.h"
#include "sluice/engine/kernel/reduce.h"

namespace sluice::engine {
onednn::ConvShape conv_shape(const bundle::Node& node, const Shape& in, const Shape& out,
                             int64_t samples) {
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

namespace {

using bundle::Node;

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

bool pointwise(const onednn::ConvShape& shape) {
  const auto both = [](const int64_t(&pair)[2], int64_t value) {
    return pair[0] == value && pair[1] == value;
  };
  return both(shape.kernel, 1) && both(shape.stride, 1) && both(shape.padding, 0) &&
         shape.groups == 1;
}

/// What the step reads of a packed weight whose values it multiplies.
void set_plain_bytes(Planner& planner, size_t index, Step& step) {
  const std::string& name = planner.node(index).tensors.at("weight");
  const bundle::TensorSpec& spec = planner.bundle().graph().tensors.at(name);
  Cost cost = step.info.cost;
  cost.weight_bytes +=
      static_cast<int64_t>(sizeof(float)) * numel(spec.shape) - bundle::stored_bytes(spec);
  planner.set_cost(step, cost);
}

/// By oneDNN; `rounds`: on an input that is rounded to int8 first.
void plan_dense_conv(Planner& planner, size_t index, Step step, const onednn::ConvShape& shape,
                     std::span<const float> weight, bool rounds) {
  const Group& group = planner.group(index);
  const int threads = planner.threads_for(step.info.cost.macs);
  const std::string key = planner.cache_key(index);
  // Channels last keeps odd channel counts exact, see docs/decisions/conv-layout.md.
  for (const bool last_try : {false, true}) {
    for (const Layout layout : {Layout::channels_last, Layout::plain}) {
      Step attempt = step;
      // Tried without the reorders first: a layout that is refused must leave no step behind.
      onednn::Tail probe;
      probe.activation = group.activation;
      probe.factor = group.factor;
      probe.offset = group.offset;
      if (group.adds) probe.add = onednn::Tail::Add::operand;
      if (!onednn::make_conv(shape, layout, probe, weight, group.bias, threads, planner.cache(),
                             key, last_try))
        continue;
      attempt.inputs = {planner.fetch(group.inputs[0], layout)};
      const onednn::Tail tail = planner.tail_of(index, layout, attempt);
      auto kernel = onednn::make_conv(shape, layout, tail, weight, group.bias, threads,
                                      planner.cache(), key, true);
      SLUICE_CHECK(kernel.has_value());
      attempt.kernel = std::move(*kernel);
      if (rounds) {
        attempt.kernel =
            make_rounded(std::move(attempt.kernel), shape.samples,
                         shape.in_channels * shape.in_height * shape.in_width, threads);
      }
      return planner.finish(index, std::move(attempt), layout);
    }
  }
  fail(Code::unsupported, "{}: oneDNN {} has no convolution for {} x {} x {} -> {} x {} x {}",
       planner.node(index).path, onednn::version(), shape.in_channels, shape.in_height,
       shape.in_width, shape.out_channels, shape.out_height, shape.out_width);
}

/// Codes times codes; where that is not fast, the values of both in f32.
void plan_packed_conv(Planner& planner, size_t index, Step step, const onednn::ConvShape& shape) {
  const Group& group = planner.group(index);
  const std::string& name = planner.node(index).tensors.at("weight");
  PackedConv conv;
  conv.shape = shape;
  conv.codes = planner.bundle().tensor(name).bytes.data();
  conv.scales = group.scales;
  conv.bias = group.bias;
  conv.tail.activation = group.activation;
  conv.tail.factor = group.factor;
  conv.tail.offset = group.offset;
  if (group.adds) conv.tail.add = onednn::Tail::Add::operand;
  conv.threads = planner.threads_for(step.info.cost.macs);
  if (auto kernel = make_packed_conv(conv, planner.cache(), planner.cache_key(index))) {
    step.inputs = {planner.fetch(group.inputs[0], Layout::channels_last)};
    if (group.adds)
      step.inputs.push_back(planner.fetch(group.inputs.back(), Layout::channels_last));
    step.kernel = std::move(*kernel);
    return planner.finish(index, std::move(step), Layout::channels_last);
  }
  const size_t rows = group.scales.size(),
               columns = static_cast<size_t>(shape.in_channels / shape.groups * shape.kernel[0] *
                                             shape.kernel[1]);
  std::vector<float> values(rows * columns);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = group.scales[i / columns] * static_cast<float>(static_cast<int8_t>(conv.codes[i]));
  set_plain_bytes(planner, index, step);
  plan_dense_conv(planner, index, std::move(step), shape, values, /*rounds=*/true);
}

void plan_conv(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  const Shape in = planner.bundle().info().shapes.at(group.inputs[0]),
              out = planner.bundle().info().shapes.at(group.output);
  onednn::ConvShape shape = conv_shape(node, in, out, planner.options().samples);
  const bundle::TensorSpec& spec = planner.bundle().graph().tensors.at(node.tensors.at("weight"));
  const Shape weight = bundle::conv2d_weight_shape(node, spec);
  shape.groups = bundle::attr_int(node.attrs, "groups", 1);
  shape.kernel[0] = weight[2];
  shape.kernel[1] = weight[3];
  if (group.packed) return plan_packed_conv(planner, index, std::move(step), shape);
  if (spec.format != "f32") set_plain_bytes(planner, index, step);
  const int threads = planner.threads_for(step.info.cost.macs);
  const bool affine = group.factor != 1 || group.offset != 0;
  if (!group.adds && !affine && narrow_conv_pays(shape)) {
    step.inputs = {planner.fetch(group.inputs[0], Layout::channels_last)};
    step.kernel = make_narrow_conv(shape, group.activation, group.weight, group.bias, threads);
    return planner.finish(index, std::move(step), Layout::channels_last);
  }
  // A pruned 1 x 1 convolution is a pruned linear layer over pixels: channels last, these are rows.
  if (!affine && pointwise(shape)) {
    const int64_t rows = shape.samples * in[1] * in[2];
    const SparseChoice choice = pruned_choice(planner, index, rows, in[0]);
    if (choice != SparseChoice::dense) {
      step.inputs = {planner.fetch(group.inputs[0], Layout::channels_last)};
      return plan_pruned(planner, index, std::move(step), rows, in[0], Layout::channels_last,
                         choice);
    }
  }
  plan_dense_conv(planner, index, std::move(step), shape, group.weight, /*rounds=*/false);
}

void plan_pool(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  const Layout layout = planner.layout_of(step.inputs[0]);
  onednn::ConvShape shape =
      conv_shape(node, planner.shape_of(step.inputs[0]),
                 planner.bundle().info().shapes.at(group.output), planner.options().samples);
  const auto kernel = bundle::attr_ints(node.attrs, "kernel", 2, 1);
  std::copy(kernel.begin(), kernel.end(), shape.kernel);
  if (!node.attrs.count("stride")) std::copy(kernel.begin(), kernel.end(), shape.stride);
  const bool maximum = node.op == "max_pool2d";
  const int threads = planner.threads_for(numel(planner.shape_of(step.inputs[0])));
  step.kernel = layout == Layout::plain ? make_plane_pool(shape, maximum, threads)
                                        : onednn::make_pool(shape, maximum, threads);
  planner.finish(index, std::move(step), layout);
}

void plan_scale(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0])};
  const Layout layout = planner.layout_of(step.inputs[0]);
  const Shape& shape = planner.shape_of(step.inputs[0]);
  ScaleShift factors;
  if (node.op == "batch_norm") {
    factors = batch_norm_factors(planner.bundle(), node);
  } else {
    factors.scale = copy_tensor(planner.bundle(), node, "scale");
  }
  const int64_t samples = planner.options().samples;
  if (factors.scale.size() == 1 && factors.shift.empty()) {
    step.kernel = row_kernel(
        "sluice scale", samples,
        [f = factors.scale[0], each = static_cast<size_t>(numel(shape))](
            const float* x, const float*, float* out, size_t rows) {
          scale_all(x, f, out, rows * each);
        },
        0);
  } else {
    const ChannelView view = channel_view(shape, layout, 1);
    step.kernel = row_kernel(
        "sluice scale_channels", samples,
        [view, factors = std::make_shared<const ScaleShift>(std::move(factors))](
            const float* x, const float*, float* out, size_t rows) {
          scale_channels(x, factors->scale.data(),
                         factors->shift.empty() ? nullptr : factors->shift.data(), out,
                         rows * view.outer, view.channels, view.inner);
        },
        0);
  }
  planner.finish(index, std::move(step), layout);
}

void plan_mul(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const int a = planner.fetch(group.inputs[0]);
  const Layout layout = planner.layout_of(a);
  const Shape& shape = planner.shape_of(a);
  const Shape b_shape = planner.shape_of(group.inputs[1]);
  const int64_t samples = planner.options().samples;
  const size_t each = static_cast<size_t>(numel(shape));
  if (b_shape == shape) {
    step.inputs = {a, planner.fetch(group.inputs[1], layout)};
    step.kernel = row_kernel(
        "sluice multiply", samples,
        [=](const float* x, const float* y, float* out, size_t rows) {
          multiply(x, y, out, rows * each);
        },
        0);
    return planner.finish(index, std::move(step), layout);
  }
  step.inputs = {a, planner.fetch(group.inputs[1], Layout::plain)};
  if (numel(b_shape) == 1) {
    step.kernel = row_kernel(
        "sluice multiply_scalar", samples,
        [=](const float* x, const float* y, float* out, size_t rows) {
          for (size_t s = 0; s < rows; ++s) scale_all(x + s * each, y[s], out + s * each, each);
        },
        0);
    return planner.finish(index, std::move(step), layout);
  }
  const ChannelView view = channel_view(shape, layout, 1);
  step.kernel = row_kernel(
      "sluice multiply_channels", samples,
      [=](const float* x, const float* y, float* out, size_t rows) {
        for (size_t s = 0; s < rows; ++s) {
          scale_channels(x + s * each, y + s * view.channels, nullptr, out + s * each, view.outer,
                         view.channels, view.inner);
        }
      },
      0);
  planner.finish(index, std::move(step), layout);
}

void plan_rows(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const size_t width = static_cast<size_t>(shape.back());
  const size_t each = static_cast<size_t>(numel(shape)) / std::max<size_t>(width, 1);
  const int64_t samples = planner.options().samples;
  if (node.op == "softmax") {
    step.kernel = row_kernel(
        "sluice softmax", samples,
        [=](const float* x, const float*, float* out, size_t rows) {
          softmax(x, out, rows * each, width);
        },
        0);
  } else {
    const float eps = static_cast<float>(bundle::attr_double(node.attrs, "eps", 1e-5));
    const auto weight =
        std::make_shared<const std::vector<float>>(copy_tensor(planner.bundle(), node, "weight"));
    const auto bias =
        std::make_shared<const std::vector<float>>(copy_tensor(planner.bundle(), node, "bias"));
    step.kernel = row_kernel(
        "sluice layer_norm", samples,
        [=](const float* x, const float*, float* out, size_t rows) {
          layer_norm(x, weight->empty() ? nullptr : weight->data(),
                     bias->empty() ? nullptr : bias->data(), eps, out, rows * each, width);
        },
        0);
  }
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_prediction_score(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const auto width = static_cast<size_t>(shape.back());
  const size_t each = static_cast<size_t>(numel(shape)) / width;
  const std::string name =
      bundle::attr_string(planner.node(index).attrs, "statistic", "confidence");
  const Sureness kind = name == "confidence" ? Sureness::confidence
                        : name == "entropy"  ? Sureness::entropy
                                             : Sureness::margin;
  step.kernel = row_kernel("sluice prediction_score", planner.options().samples,
                           [=](const float* x, const float*, float* out, size_t rows) {
                             prediction_score(x, kind, out, rows * each, width);
                           });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_simple(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  if (node.op == "flatten") {
    const int view = planner.add_view(planner.fetch(group.inputs[0], Layout::plain),
                                      planner.bundle().info().shapes.at(group.output));
    return planner.define(group.output, view);
  }
  step.inputs = {planner.fetch(group.inputs[0])};
  const Layout layout = planner.layout_of(step.inputs[0]);
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const int64_t samples = planner.options().samples;
  const size_t each = static_cast<size_t>(numel(shape));
  if (node.op == "activation") {
    const Activation kind = activation_from_name(bundle::attr_string(node.attrs, "kind", "relu"));
    step.kernel = row_kernel(
        "sluice activation", samples,
        [=](const float* x, const float*, float* out, size_t rows) {
          activate(kind, x, out, rows * each);
        },
        0);
  } else if (node.op == "threshold") {
    const std::vector<double> values = bundle::threshold_values(node.attrs);
    planner.add_sizes(index, std::vector<int64_t>(values.size(), 0), 0);
    step.kernel.name = "sluice threshold";
    step.kernel.in_place = 0;
    step.kernel.counts_rows = true;
    step.kernel.bind = [=](const Binding& b) -> std::function<void()> {
      return [=, x = b.inputs[0], out = b.output, live = b.rows, size = b.size] {
        const size_t last = values.size() - 1;
        const size_t chosen =
            size && *size >= 0 ? std::min(static_cast<size_t>(*size), last) : last;
        const auto rows = static_cast<size_t>(live ? live->count : samples);
        threshold(x, static_cast<float>(values[chosen]), out, rows * each);
      };
    };
  } else if (node.op == "add") {
    step.inputs.push_back(planner.fetch(group.inputs[1], layout));
    step.kernel = row_kernel(
        "sluice add", samples,
        [=, kind = group.activation](const float* a, const float* b, float* out, size_t rows) {
          add(a, b, kind, out, rows * each);
        },
        0);
  } else if (node.op == "global_avg_pool") {
    const size_t channels = static_cast<size_t>(shape[0]),
                 pixels = static_cast<size_t>(shape[1] * shape[2]);
    step.kernel = row_kernel("sluice global_avg_pool", samples,
                             [=](const float* x, const float*, float* out, size_t rows) {
                               (layout == Layout::plain ? average_plain : average_channels_last)(
                                   x, out, rows, channels, pixels);
                             });
  }
  planner.finish(index, std::move(step), layout);
}

}  // namespace

std::vector<PlanEntry> dense_steps() {
  return {{"conv2d", plan_conv},
          {"linear", plan_linear},
          {"max_pool2d", plan_pool},
          {"avg_pool2d", plan_pool},
          {"batch_norm", plan_scale},
          {"scale", plan_scale},
          {"mul", plan_mul},
          {"softmax", plan_rows},
          {"prediction_score", plan_prediction_score},
          {"layer_norm", plan_rows},
          {"flatten", plan_simple},
          {"activation", plan_simple},
          {"threshold", plan_simple},
          {"add", plan_simple},
          {"global_avg_pool", plan_simple}};
}

}  // namespace sluice::engine
