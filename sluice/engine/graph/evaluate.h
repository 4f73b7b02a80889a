// Accuracy of a network over labelled 8-bit pictures, in batches; what `sluice eval` and the
// recipes call.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "sluice/engine/graph/network.h"

namespace sluice::engine {

struct LabelledPixels {
  std::span<const uint8_t> pixels;  ///< count x numel(network input)
  std::span<const int64_t> labels;  ///< count
  double mean = 0, std = 1;         ///< input = (pixel / 255 - mean) / std
};

struct Evaluation {
  double accuracy = 0;  ///< fraction of correct top-1 predictions
  double loss = 0;      ///< mean cross-entropy of softmax(logits)
  int64_t count = 0;
  std::vector<int32_t> predictions;
  double macs_per_sample = 0;  ///< metered
};

/// -ln softmax(logits)[label]; `logits` are overwritten. NaN for logits that are not numbers.
double cross_entropy(std::span<float> logits, int64_t label);

/// Throws Error{shape} when the samples do not fit the network's input or a label is outside its
/// outputs. `size` as in RunOptions.
Evaluation evaluate(const Network& network, const LabelledPixels& samples, int64_t batch = 250,
                    int threads = 0, const Budget* budget = nullptr, int64_t size = -1);

}  // namespace sluice::engine
