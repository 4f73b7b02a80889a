#include "sluice/bundle/packed.h"
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/xnor.h"

namespace sluice::engine {
namespace {

using bundle::Node;

/// The rows of a weight, which stays in the bundle's memory until the kernel is made.
BinaryRows rows_of(const Planner& planner, const Node& node) {
  const std::string& name = node.tensors.at("weight");
  const bundle::TensorSpec& spec = planner.bundle().graph().tensors.at(name);
  const bundle::PackedMatrix matrix =
      bundle::view_packed(*bundle::format_from_name(spec.format), spec.shape[0], spec.shape[1],
                          planner.bundle().tensor(name).bytes, name);
  return
      [matrix](int64_t row, std::span<float> values) { bundle::unpack_row(matrix, row, values); };
}

XnorOptions options_of(const Planner& planner, const Node& node, const Step& step) {
  XnorOptions options;
  options.scale = static_cast<float>(bundle::attr_double(node.attrs, "scale", 1));
  options.mean_scale = bundle::attr_string(node.attrs, "input_scale", "one") == "mean";
  options.threads = planner.threads_for(step.info.cost.macs);
  return options;
}

void plan_binary_conv(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::channels_last)};
  const Shape &in = planner.bundle().info().shapes.at(group.inputs[0]),
              &out = planner.bundle().info().shapes.at(group.output);
  onednn::ConvShape shape = conv_shape(node, in, out, planner.options().samples);
  const auto kernel = bundle::attr_ints(node.attrs, "kernel", 2, 1);
  std::copy(kernel.begin(), kernel.end(), shape.kernel);
  step.kernel =
      make_xnor_conv(shape, rows_of(planner, node), copy_tensor(planner.bundle(), node, "bias"),
                     options_of(planner, node, step), node.path);
  planner.finish(index, std::move(step), Layout::channels_last);
}

void plan_binary_linear(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const int64_t in = shape.back(), rows = planner.options().samples * (numel(shape) / in),
                out = planner.bundle().info().shapes.at(group.output).back();
  step.kernel = make_xnor_linear(rows, in, out, rows_of(planner, node),
                                 copy_tensor(planner.bundle(), node, "bias"),
                                 options_of(planner, node, step), node.path);
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

std::vector<PlanEntry> binary_steps() {
  return {{"binary_conv2d", plan_binary_conv}, {"binary_linear", plan_binary_linear}};
}

}  // namespace sluice::engine
