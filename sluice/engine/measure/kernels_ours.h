// Kernels of the engine as contenders.
#pragma once
#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/measure/kernel_case.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {

/// A planned kernel with memory of its own around it.
class BoundKernel {
 public:
  /// `inputs` are copied.
  BoundKernel(const Kernel& kernel, const std::vector<std::span<const float>>& inputs,
              int64_t outputs);
  void run() { call_(); }
  std::span<const float> output() const;

 private:
  std::vector<Buffer> inputs_;
  std::vector<float*> pointers_;
  Buffer output_, scratch_;
  Work work_;
  std::function<void()> call_;
};

/// The f32 path that plans use for a dense linear layer.
Contender dense_linear(const LinearProblem& problem, Role role);

}  // namespace sluice::engine::measure
