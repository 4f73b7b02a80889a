// Finds in a graph the decoder that the formats of others have names for: embedding, layers of
// RMSNorm, rotary causal attention and a gated feed-forward around residuals, RMSNorm, head. It is
// found by what the nodes compute, not by their paths, so a decoder that was trained here is found
// as one that was imported. Every node must have its place: what has none is an error that names
// it, because a file without it would be another model.
#pragma once
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

/// Names of tensors; bias is "" where there is none.
struct LinearTensors {
  std::string path;  ///< of the node
  std::string weight, bias;
};

struct DecoderLayer {
  std::string path;                     ///< of its attention, for messages
  std::string input_norm, middle_norm;  ///< weights, before attention and before the feed-forward
  LinearTensors q, k, v, out;
  std::string q_norm, k_norm;  ///< of every head; "" where there is none
  int64_t window = 0;          ///< 0: none
  LinearTensors gate, up, down;
};

struct DecoderStructure {
  int64_t vocabulary = 0, width = 0, inner = 0;
  int64_t heads = 0, kv_heads = 0, head_width = 0;
  double eps = 0;
  std::string activation;
  double rope_base = 0, rope_scale = 1;
  int64_t rope_dims = 0;
  bool rope_interleaved = false;
  std::string rope_factors;    ///< tensor, "" where there is none
  double attention_scale = 0;  ///< of the products of queries and keys
  std::string words, final_norm;
  LinearTensors head;
  bool tied = false;    ///< the head's weight is `words`
  int64_t context = 0;  ///< what the caches hold; 0: there are none
  std::vector<DecoderLayer> layers;

  bool any_bias() const;
};

/// Throws Error{unsupported} naming the node that has no place in such a decoder, and why.
DecoderStructure find_decoder(const Bundle& bundle);

}  // namespace sluice::bundle
