#include "sluice/engine/graph/network.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "sluice/base/error.h"
#include "sluice/bundle/packed.h"
#include "sluice/engine/graph/network_state.h"
#include "sluice/engine/graph/steps.h"

namespace sluice::engine {
namespace {

void check_operators(const bundle::Bundle& bundle) {
  for (const bundle::Node& node : bundle.graph().nodes) {
    if (!find_plan(node.op)) {
      fail(Code::unsupported,
           "{}: node '{}': operator '{}' has no kernel in this build of the engine", bundle.path(),
           node.path, node.op);
    }
    if (node.op == "activation")
      activation_from_name(bundle::attr_string(node.attrs, "kind", "relu"));
  }
}

/// x - x is 0 for finite x and NaN otherwise; a sum of such needs no branch.
bool all_finite(std::span<const float> values) {
  constexpr size_t kLanes = 16;
  float sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += values[i + lane] - values[i + lane];
  for (; i < values.size(); ++i) sums[0] += values[i] - values[i];
  return std::ranges::all_of(sums, [](float sum) { return sum == 0; });
}

void check_plain(const bundle::Bundle& bundle, const std::string& name) {
  const auto values = bundle.tensor(name).f32();
  if (all_finite(values)) return;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      fail(Code::numeric,
           "{}: tensor '{}' holds {} at element {}; weights must be finite. Train or export it "
           "again",
           bundle.path(), name, values[i], i);
    }
  }
}

void check_tensors(const bundle::Bundle& bundle) {
  for (const auto& [name, spec] : bundle.graph().tensors) {
    const auto format = bundle::format_from_name(spec.format);
    if (!format) {
      fail(Code::unsupported, "{}: tensor '{}' has format '{}', which this engine does not run",
           bundle.path(), name, spec.format);
    }
    if (*format == bundle::Format::f32) {
      check_plain(bundle, name);
      continue;
    }
    const auto bytes = bundle.tensor(name).bytes;
    const int64_t rows = spec.shape[spec.shape.size() - 2], columns = spec.shape.back();
    const size_t each = static_cast<size_t>(bundle::stored_bytes(*format, {rows, columns}));
    const std::string what = bundle.path() + ": tensor '" + name + "'";
    for (size_t at = 0; at < bytes.size(); at += each)
      bundle::view_packed(*format, rows, columns, bytes.subspan(at, each), what);
  }
}

}  // namespace

Network Network::open(const std::string& path, const Options& options) {
  bundle::Bundle::Options read;
  read.verify_checksums = options.verify_checksums;
  return Network(bundle::Bundle::open(path, read));
}

Network::Network(bundle::Bundle bundle) {
  check_operators(bundle);
  check_tensors(bundle);
  auto state = std::make_shared<State>(std::move(bundle));
  const bundle::Graph& graph = state->bundle.graph();
  const auto carried = [&](const std::string& name) {
    return std::any_of(graph.carries.begin(), graph.carries.end(),
                       [&](const bundle::Carry& c) { return c.input == name || c.output == name; });
  };
  for (const bundle::Value& input : graph.inputs)
    if (!carried(input.name)) state->inputs.push_back(input);
  for (const std::string& output : graph.outputs)
    if (!carried(output))
      state->outputs.push_back({output, state->bundle.info().shapes.at(output)});
  state_ = std::move(state);
}

const bundle::Bundle& Network::bundle() const { return state_->bundle; }
const std::vector<bundle::Value>& Network::inputs() const { return state_->inputs; }
const std::vector<bundle::Value>& Network::outputs() const { return state_->outputs; }
const Shape& Network::input_shape() const { return state_->inputs[0].shape; }
const Shape& Network::output_shape() const { return state_->outputs[0].shape; }
const Cost& Network::cost() const { return state_->bundle.info().total; }

}  // namespace sluice::engine
