// What a kernel is to the plan: made once per node, bound once per lane (a lane is one thread's
// arena), then called without arguments. Kernels are immutable after planning and shared by all
// lanes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "sluice/base/shape.h"

namespace sluice::engine {

/// Memory order of a value with per-sample shape [C,H,W]; values of other ranks are always plain.
enum class Layout : uint8_t { plain, channels_last };

/// True when both orders put the same bytes in the same place.
inline bool same_bytes(const Shape& shape, Layout a, Layout b) {
  return a == b || shape.size() != 3 || shape[0] == 1 || shape[1] * shape[2] == 1;
}

enum class Activation : uint8_t { none, relu, gelu, silu, sigmoid, tanh, hard_swish, gelu_tanh };
/// Throws Error{unsupported} for an unknown name.
Activation activation_from_name(std::string_view name);

/// What a call really did, where that depends on the data.
struct Work {
  int64_t macs = 0;
  int64_t bytes = 0;  ///< weights and activations touched
};

/// The rows of a lane's values that are there, packed to their front; the count is known only when
/// the kernel runs. A row is a row of a [T, ..] value, or a whole sample where per_sample is 1.
struct LiveRows {
  int64_t count = 0;
  int64_t samples = 0;        ///< of the plan
  int64_t per_sample = 1;     ///< at most
  int64_t* start = nullptr;   ///< [samples + 1] first row of each sample
  int64_t* source = nullptr;  ///< [count] which row of the values before compact_rows each one is
};

/// Where one lane's call finds its operands. `output` may equal inputs[i] where the kernel allows
/// it.
struct Binding {
  std::span<float* const> inputs;
  float* output = nullptr;
  std::byte* scratch = nullptr;
  Work* work = nullptr;            ///< set for `metered` kernels: each call adds what it did
  const LiveRows* rows = nullptr;  ///< of the inputs; nullptr: all that were planned
  LiveRows* other = nullptr;  ///< compact_rows: what it leaves; scatter_rows: what it puts back; of
                              ///< the output where an operator makes one row per sample
  std::byte* state = nullptr;         ///< Kernel::state_bytes, kept from run to run
  const int64_t* position = nullptr;  ///< [samples] rows that earlier runs saw; 0: state is void
  /// Which of a nested network's sizes to compute; nullptr or -1: the last.
  const int64_t* size = nullptr;
};

struct Kernel {
  std::string name;           ///< "onednn brgconv:avx512_core", "sluice add"
  int64_t scratch_bytes = 0;  ///< per lane, 64-byte aligned
  int in_place = -1;          ///< index of an input that may share the output's memory, -1 none
  int64_t state_bytes = 0;    ///< per lane, 64-byte aligned, not initialised
  bool counts_rows = false;   ///< computes the rows in Binding::rows, not all that were planned
  bool metered = false;       ///< work depends on the data: the kernel counts it in Binding::work
  bool must_share = false;    ///< that input has to be the output's memory (accumulating kernels)
  std::function<std::function<void()>(const Binding&)> bind;
};

}  // namespace sluice::engine
