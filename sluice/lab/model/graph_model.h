// Bundles without a description of bricks as models: imports from ONNX, which passes and tuning
// take as the graphs that they are.
#pragma once
#include "sluice/lab/model/model.h"

namespace sluice::lab {

/// The bundle's graph as a GraphNetwork (brick/graph_network.h) with its weights. Throws
/// Error{unsupported, shape} naming file, node and what no brick computes.
Model graph_model(const bundle::Bundle& bundle);

/// load_model, or graph_model where there is no description.
Model load_any_model(const std::string& path);

}  // namespace sluice::lab
