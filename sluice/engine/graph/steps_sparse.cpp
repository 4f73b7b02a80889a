#include <cstring>

#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/packed.h"
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/gathered_conv.h"
#include "sluice/engine/kernel/prefix_conv.h"
#include "sluice/engine/kernel/prefix_linear.h"

namespace sluice::engine {
namespace {

using bundle::Node;

void plan_gathered_conv(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  for (size_t i = 1; i < group.inputs.size(); ++i)
    step.inputs.push_back(planner.fetch(group.inputs[i], Layout::plain));
  const Shape &in = planner.bundle().info().shapes.at(group.inputs[0]),
              &out = planner.bundle().info().shapes.at(group.output);
  onednn::ConvShape shape = conv_shape(node, in, out, planner.options().samples);
  const Shape& weight = planner.bundle().tensor(node.tensors.at("weight")).shape;
  std::copy(weight.begin() + 2, weight.end(), shape.kernel);
  step.kernel = make_gathered_conv(
      shape, group.activation, planner.bundle().tensor(node.tensors.at("weight")).f32(),
      copy_tensor(planner.bundle(), node, "bias"), group.inputs.size() > 2,
      planner.threads_for(step.info.cost.macs), node.path);
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_prefix_linear(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const std::string& name = node.tensors.at("weight");
  const bundle::TensorSpec& spec = planner.bundle().graph().tensors.at(name);
  const int64_t out = spec.shape[0], in = spec.shape[1], each = numel(shape) / in,
                rows = planner.options().samples * each;
  const auto sizes = bundle::prefix_sizes(node.attrs, out, in);
  std::vector<int64_t> macs;
  for (const PrefixSize& size : sizes) macs.push_back(each * size.rows * size.columns);
  planner.add_sizes(index, macs, step.info.cost.macs);
  const auto bias = copy_tensor(planner.bundle(), node, "bias");
  const int threads = planner.threads_for(step.info.cost.macs);
  const auto format = *bundle::format_from_name(spec.format);
  const auto bytes = planner.bundle().tensor(name).bytes;
  if (format == bundle::Format::f32) {
    step.kernel = make_prefix_linear(rows, in, out, planner.bundle().tensor(name).f32(), bias,
                                     sizes, threads, each);
  } else {
    step.kernel = make_prefix_linear(rows, bundle::view_packed(format, out, in, bytes, name), bias,
                                     sizes, threads, each);
  }
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_prefix_conv(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::channels_last)};
  onednn::Tail tail;
  tail.activation = group.activation;
  if (group.adds) {
    tail.add = onednn::Tail::Add::operand;
    step.inputs.push_back(planner.fetch(group.inputs.back(), Layout::channels_last));
  }
  const Shape &in = planner.bundle().info().shapes.at(group.inputs[0]),
              &out = planner.bundle().info().shapes.at(group.output);
  onednn::ConvShape shape = conv_shape(node, in, out, planner.options().samples);
  const Shape& weight = planner.bundle().tensor(node.tensors.at("weight")).shape;
  std::copy(weight.begin() + 2, weight.end(), shape.kernel);
  const auto sizes = bundle::prefix_sizes(node.attrs, weight[0], weight[1]);
  std::vector<int64_t> macs;
  for (const PrefixSize& size : sizes)
    macs.push_back(size.rows * size.columns * weight[2] * weight[3] * out[1] * out[2]);
  planner.add_sizes(index, macs, step.info.cost.macs);
  step.kernel = make_prefix_conv(
      shape, tail, planner.bundle().tensor(node.tensors.at("weight")).f32(),
      copy_tensor(planner.bundle(), node, "scale"), copy_tensor(planner.bundle(), node, "bias"),
      sizes, planner.threads_for(step.info.cost.macs), node.path);
  planner.finish(index, std::move(step), Layout::channels_last);
}

void plan_size_switch(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const auto count = static_cast<int64_t>(group.inputs.size());
  const Layout layout = planner.layout_of(planner.fetch(group.inputs[0]));
  for (const std::string& name : group.inputs) step.inputs.push_back(planner.fetch(name, layout));
  step.choices = bundle::switch_choices(planner.node(index).attrs, count);
  planner.add_sizes(index, std::vector<int64_t>(step.choices.size(), 0), 0);
  const int64_t each = numel(planner.shape_of(step.inputs[0])), planned = planner.options().samples;
  step.kernel.name = "sluice size_switch";
  step.kernel.in_place = 0;  // nothing to do where a size takes the first
  step.kernel.counts_rows = true;
  step.kernel.bind = [each, planned,
                      choices = step.choices](const Binding& b) -> std::function<void()> {
    const std::vector<const float*> inputs(b.inputs.begin(), b.inputs.end());
    return [=, out = b.output, rows = b.rows, size = b.size] {
      const int64_t last = std::ssize(choices) - 1;
      const int64_t chosen = size && *size >= 0 ? std::min(*size, last) : last;
      const float* from = inputs[static_cast<size_t>(choices[static_cast<size_t>(chosen)])];
      if (from == out) return;
      const int64_t elements = each * (rows ? rows->count : planned);
      std::memcpy(out, from, static_cast<size_t>(elements) * sizeof(float));
    };
  };
  planner.finish(index, std::move(step), layout);
}

}  // namespace

std::vector<PlanEntry> sparse_steps() {
  return {{"gathered_conv2d", plan_gathered_conv},
          {"prefix_linear", plan_prefix_linear},
          {"prefix_conv2d", plan_prefix_conv},
          {"size_switch", plan_size_switch}};
}

}  // namespace sluice::engine
