// The plan of a session: steps over numbered values, each value at an offset of one arena.
#pragma once
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

inline constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

struct PlanOptions {
  int64_t samples = 1;  ///< per call of the plan
  int threads = 1;      ///< inside a step
  bool fuse = true;
  bool sparse = true;      ///< compressed weights where they pay
  bool sequences = false;  ///< the input's rows are counted at run time
  int64_t last_rows = 0;   ///< with sequences: of each sample, the most that are wanted; 0: all
  /// Weights are read where they lie: no second copy in a layout that large products like better.
  bool mapped = false;
};

/// Rows that are there together (LiveRows); each lane counts its own.
struct PlanRows {
  int parent = 0;
  int64_t per_sample = 1;  ///< at most
  std::string keep;        ///< the value that chose them
};

struct PlanValue {
  Shape shape;      ///< per sample
  int rows = 0;     ///< of Plan::rows
  Shape row_shape;  ///< of one of them: shape, or [1, ..]
  Layout layout = Layout::plain;
  int64_t bytes = 0;  ///< all samples
  int buffer = 0;     ///< values of one buffer share memory
};

struct Step {
  Kernel kernel;
  std::vector<int> inputs;  ///< values
  int output = 0;
  int rows = 0;          ///< what the inputs have
  int other = 0;         ///< Binding::other
  int metered_rows = 0;  ///< those that its cost grows with
  int64_t state_offset = 0;
  PlanStep info;
  int64_t activation_bytes = 0;  ///< read and written per sample
  /// What each size saves of info.cost.macs where the step runs; empty: nothing.
  std::vector<int64_t> savings;
  std::vector<int64_t> choices;  ///< size_switch: the input that each size takes
};

struct Plan {
  std::vector<PlanValue> values;
  std::vector<Step> steps;
  std::vector<PlanRows> rows;  ///< [0]: the samples; with sequences, [1]: their rows
  int last = 0;  ///< of `rows`: those of [1] that the output is wanted of; 0: always all
  std::vector<int> inputs, outputs;  ///< values, in the graph's order
  std::vector<int64_t> offsets;      ///< by buffer
  int64_t arena_bytes = 0, scratch_bytes = 0, state_bytes = 0;
  int64_t capacity = kUnlimited;  ///< rows of a sequence that every state can hold
  int64_t rewind = kUnlimited;    ///< rows that every state can go back
  /// Sizes that a run may choose from, and what each saves of the cost's MACs; empty: none.
  std::vector<int64_t> size_savings;
  /// By size (one entry where there are none): the steps that it needs, in order. The others lead
  /// to inputs of size_switch nodes that it does not take.
  std::vector<std::vector<size_t>> needed;
  std::vector<size_t> optional_states;  ///< steps with a state that some sizes leave out
  Cost cost;  ///< per sample; shared tensors once, compressed weights as stored
};

/// Throws Error{unsupported} for a node without a kernel. The bundle must outlive the plan.
Plan make_plan(const bundle::Bundle& bundle, const PlanOptions& options, onednn::PackCache& cache);

}  // namespace sluice::engine
