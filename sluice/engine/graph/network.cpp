#include "sluice/engine/graph/network.h"

#include <cmath>

#include "sluice/base/error.h"
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

void check_tensors(const bundle::Bundle& bundle) {
  for (const auto& [name, spec] : bundle.graph().tensors) {
    if (spec.format != "f32" || spec.dtype != bundle::DType::f32) {
      fail(Code::unsupported, "{}: tensor '{}' has format '{}'; this engine runs 'f32'",
           bundle.path(), name, spec.format);
    }
    const auto values = bundle.tensor(spec.name.empty() ? name : spec.name).f32();
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) {
        fail(Code::numeric,
             "{}: tensor '{}' holds {} at element {}; weights must be finite. Train or export it "
             "again",
             bundle.path(), name, values[i], i);
      }
    }
  }
}

}  // namespace

Network Network::open(const std::string& path, const Options& options) {
  bundle::Bundle::Options read;
  read.verify_checksums = options.verify_checksums;
  return Network(bundle::Bundle::open(path, read));
}

Network::Network(bundle::Bundle bundle) {
  const bundle::Graph& graph = bundle.graph();
  if (graph.inputs.size() != 1 || graph.outputs.size() != 1) {
    fail(Code::unsupported, "{}: {} inputs and {} outputs; the engine runs graphs with one of each",
         bundle.path(), graph.inputs.size(), graph.outputs.size());
  }
  check_operators(bundle);
  check_tensors(bundle);
  state_ = std::make_shared<const State>(std::move(bundle));
}

const bundle::Bundle& Network::bundle() const { return state_->bundle; }
const Shape& Network::input_shape() const { return state_->bundle.graph().inputs[0].shape; }
const Shape& Network::output_shape() const {
  return state_->bundle.info().shapes.at(state_->bundle.graph().outputs[0]);
}
const Cost& Network::cost() const { return state_->bundle.info().total; }

}  // namespace sluice::engine
