// Linear attention: a state per head in place of a cache, so that a token costs the same however
// long the sequence is.
//
//   S_t = diag(decay_t) S_{t-1} + k_t v_t^T,   out_t = scale q_t S_t
//
// S [key_width][value_width]. Rows are taken in order and the sums in one order, so that a sequence
// in pieces gives the same bits as in one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

enum class Decay : uint8_t { none, head, channel };

struct LinearAttentionSpec {
  int64_t heads = 1, key_width = 1, value_width = 1;  ///< widths of a head
  Decay decay = Decay::none;
  float scale = 1;
};

/// One sample's rows in this call.
struct LinearAttentionRows {
  const float* q = nullptr;      ///< [rows][heads * key_width]
  const float* k = nullptr;      ///< likewise
  const float* v = nullptr;      ///< [rows][heads * value_width]
  const float* decay = nullptr;  ///< [rows][heads], or [rows][heads * key_width] per channel
  float* out = nullptr;          ///< [rows][heads * value_width]
  int64_t rows = 0;
  float* state = nullptr;  ///< linear_attention_state_bytes(), kept by the caller
  bool fresh = true;       ///< the state starts at zero, whatever is in its memory
};

/// Of one sample; throws Error{limit} on overflow.
int64_t linear_attention_state_bytes(const LinearAttentionSpec& spec);
int64_t linear_attention_scratch_bytes(const LinearAttentionSpec& spec, int threads);

/// Heads are split over threads; the result does not depend on how many. Returns what was done.
Work linear_attention(const LinearAttentionSpec& spec, std::span<const LinearAttentionRows> samples,
                      int threads, std::byte* scratch);

}  // namespace sluice::engine
