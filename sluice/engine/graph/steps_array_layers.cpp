// Products of arrays, transposed convolutions, recurrent layers.
#include <algorithm>

#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/array.h"
#include "sluice/engine/kernel/conv_transpose.h"
#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/recurrent.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace {

using bundle::Node;

void plan_matmul(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain),
                 planner.fetch(group.inputs[1], Layout::plain)};
  Shape a = planner.shape_of(step.inputs[0]), b = planner.shape_of(step.inputs[1]),
        out = planner.bundle().info().shapes.at(group.output);
  const bool turned = bundle::attr_bool(node.attrs, "transpose_b", false);
  const float scale = static_cast<float>(bundle::attr_double(node.attrs, "scale", 1));
  const int64_t rows = out[out.size() - 2], columns = out.back(), inner = a.back();
  const size_t each_a = static_cast<size_t>(numel(a)), each_b = static_cast<size_t>(numel(b)),
               each_out = static_cast<size_t>(numel(out));
  for (Shape* shape : {&a, &b, &out}) shape->resize(shape->size() - 2);
  const std::vector<std::vector<size_t>> strides{broadcast_strides(a, out),
                                                 broadcast_strides(b, out)};
  std::vector<std::pair<size_t, size_t>> pairs;  // of matrices, in the order of the output's
  const size_t products = static_cast<size_t>(numel(out));
  for (size_t n = 0; n < products; ++n) {
    size_t rest = n, at_a = 0, at_b = 0;
    for (size_t i = out.size(); i-- > 0;) {
      const size_t at = rest % static_cast<size_t>(out[i]);
      rest /= static_cast<size_t>(out[i]);
      at_a += at * strides[0][i];
      at_b += at * strides[1][i];
    }
    pairs.emplace_back(at_a * static_cast<size_t>(rows * inner),
                       at_b * static_cast<size_t>(inner * columns));
  }
  const int threads = planner.threads_for(step.info.cost.macs);
  step.kernel =
      row_kernel("onednn sgemm", planner.options().samples,
                 [=, pairs = std::make_shared<const decltype(pairs)>(std::move(pairs))](
                     const float* x, const float* y, float* z, size_t samples) {
                   const ThreadScope scope(threads);
                   for (size_t s = 0; s < samples; ++s) {
                     float* to = z + s * each_out;
                     for (const auto& [at_a, at_b] : *pairs) {
                       onednn::multiply_matrices(x + s * each_a + at_a, y + s * each_b + at_b, rows,
                                                 inner, columns, turned, scale, to);
                       to += rows * columns;
                     }
                   }
                 });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_conv_transpose(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape in = planner.shape_of(step.inputs[0]),
              out = planner.bundle().info().shapes.at(group.output);
  const onednn::ConvShape window = conv_shape(node, in, out, 1);
  const Shape& weight_shape = planner.bundle().tensor(node.tensors.at("weight")).shape;
  ConvTransposeShape s;
  s.groups = bundle::attr_int(node.attrs, "groups", 1);
  s.in_channels = in[0];
  s.out_channels = out[0];
  s.in_height = in[1];
  s.in_width = in[2];
  s.out_height = out[1];
  s.out_width = out[2];
  for (size_t i = 0; i < 2; ++i) {
    s.kernel[i] = weight_shape[i + 2];
    s.stride[i] = window.stride[i];
    s.padding[i] = window.padding[i];
    s.dilation[i] = window.dilation[i];
  }
  struct Operands {
    std::vector<float> weight, bias;
  };
  auto operands = std::make_shared<Operands>();
  operands->weight = pack_conv_transpose(s, copy_tensor(planner.bundle(), node, "weight"));
  operands->bias = copy_tensor(planner.bundle(), node, "bias");
  const size_t each_in = static_cast<size_t>(numel(in)), each_out = static_cast<size_t>(numel(out));
  const int threads = planner.threads_for(step.info.cost.macs);
  Kernel kernel;
  kernel.name = "sluice conv_transpose";
  kernel.counts_rows = true;
  kernel.scratch_bytes = static_cast<int64_t>(conv_transpose_scratch(s) * sizeof(float));
  kernel.bind = [=,
                 planned = planner.options().samples](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    float* y = b.output;
    float* scratch = reinterpret_cast<float*>(b.scratch);
    const LiveRows* rows = b.rows;
    return [=] {
      const ThreadScope scope(threads);
      const size_t samples = static_cast<size_t>(rows ? rows->count : planned);
      for (size_t n = 0; n < samples; ++n)
        conv_transpose(s, operands->weight.data(),
                       operands->bias.empty() ? nullptr : operands->bias.data(), x + n * each_in,
                       y + n * each_out, scratch);
    };
  };
  step.kernel = std::move(kernel);
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_recurrent(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  for (const std::string& name : group.inputs)
    step.inputs.push_back(planner.fetch(name, Layout::plain));
  const bool is_lstm = node.op == "lstm";
  auto weights = std::make_shared<RecurrentWeights>();
  const Shape& shape = planner.shape_of(step.inputs[0]);
  weights->in = static_cast<size_t>(shape[1]);
  weights->weight = copy_tensor(planner.bundle(), node, "weight");
  weights->recurrent = copy_tensor(planner.bundle(), node, "recurrent");
  weights->bias = copy_tensor(planner.bundle(), node, "bias");
  weights->recurrent_bias = copy_tensor(planner.bundle(), node, "recurrent_bias");
  weights->hidden = static_cast<size_t>(
      planner.bundle().graph().tensors.at(node.tensors.at("recurrent")).shape[1]);
  const bool reverse = bundle::attr_bool(node.attrs, "reverse", false),
             cells = bundle::attr_bool(node.attrs, "cells", false),
             before = bundle::attr_bool(node.attrs, "reset_before", false);
  const size_t rows = static_cast<size_t>(shape[0]), hidden = weights->hidden,
               each_in = rows * weights->in,
               each_out =
                   static_cast<size_t>(numel(planner.bundle().info().shapes.at(group.output)));
  const int threads = planner.threads_for(step.info.cost.macs);
  Kernel kernel;
  kernel.name = "sluice " + node.op;
  kernel.counts_rows = true;
  kernel.scratch_bytes =
      static_cast<int64_t>(recurrent_scratch(*weights, is_lstm ? 4 : 3, rows) * sizeof(float));
  kernel.bind = [=,
                 planned = planner.options().samples](const Binding& b) -> std::function<void()> {
    const float *x = b.inputs[0], *h = b.inputs.size() > 1 ? b.inputs[1] : nullptr,
                *c = b.inputs.size() > 2 ? b.inputs[2] : nullptr;
    float* y = b.output;
    float* scratch = reinterpret_cast<float*>(b.scratch);
    const LiveRows* live = b.rows;
    return [=] {
      const ThreadScope scope(threads);
      const size_t samples = static_cast<size_t>(live ? live->count : planned);
      for (size_t s = 0; s < samples; ++s) {
        const float *h0 = h ? h + s * hidden : nullptr, *c0 = c ? c + s * hidden : nullptr;
        if (is_lstm) {
          lstm(*weights, x + s * each_in, h0, c0, rows, reverse, cells, y + s * each_out, scratch);
        } else {
          gru(*weights, x + s * each_in, h0, rows, reverse, before, y + s * each_out, scratch);
        }
      }
    };
  };
  step.kernel = std::move(kernel);
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

std::vector<PlanEntry> array_layer_steps() {
  return {{"matmul", plan_matmul},
          {"conv_transpose2d", plan_conv_transpose},
          {"lstm", plan_recurrent},
          {"gru", plan_recurrent}};
}

}  // namespace sluice::engine
