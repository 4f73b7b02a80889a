// The plan of a session: steps over numbered values, each value at an offset of one arena.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

struct PlanOptions {
  int64_t samples = 1;  ///< per call of the plan
  int threads = 1;      ///< inside a step
  bool fuse = true;
  bool sparse = true;  ///< compressed weights where they pay
};

struct PlanValue {
  Shape shape;  ///< per sample
  Layout layout = Layout::plain;
  int64_t bytes = 0;  ///< all samples
  int buffer = 0;     ///< values of one buffer share memory
};

struct Step {
  Kernel kernel;
  std::vector<int> inputs;  ///< values
  int output = 0;
  PlanStep info;
  int64_t activation_bytes = 0;  ///< read and written per sample
};

struct Plan {
  std::vector<PlanValue> values;
  std::vector<Step> steps;
  int input = 0, output = 0;
  std::vector<int64_t> offsets;  ///< by buffer
  int64_t arena_bytes = 0, scratch_bytes = 0;
  Cost cost;  ///< per sample; shared tensors once, compressed weights as stored
};

/// Throws Error{unsupported} for a node without a kernel. The bundle must outlive the plan.
Plan make_plan(const bundle::Bundle& bundle, const PlanOptions& options, onednn::PackCache& cache);

}  // namespace sluice::engine
