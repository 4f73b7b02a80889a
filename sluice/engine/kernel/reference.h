// Every operator of the table as obvious loops in double precision, plain memory order: what the
// engine is compared with. Slow on purpose.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"

namespace sluice::engine {

/// One operator on one sample. `inputs` are plain and per sample.
std::vector<double> reference_node(const bundle::Bundle& bundle, const bundle::Node& node,
                                   std::span<const std::vector<double>* const> inputs);

/// The whole graph, sample by sample; input and result are count x numel(shape).
std::vector<float> reference_run(const bundle::Bundle& bundle, std::span<const float> input,
                                 int64_t count);

/// The same with several inputs and outputs, all of the graph in its order (also those that a
/// session carries).
std::vector<std::vector<float>> reference_run_all(const bundle::Bundle& bundle,
                                                  std::span<const std::span<const float>> inputs,
                                                  int64_t count);

}  // namespace sluice::engine
