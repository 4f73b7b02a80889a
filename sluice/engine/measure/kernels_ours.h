// Kernels of the engine as contenders.
#pragma once
#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/measure/kernel_case.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {

/// A planned kernel with memory of its own around it.
class BoundKernel {
 public:
  /// `inputs` are copied; `size` is Binding::size.
  BoundKernel(const Kernel& kernel, const std::vector<std::span<const float>>& inputs,
              int64_t outputs, int64_t size = -1);
  BoundKernel(const BoundKernel&) = delete;
  BoundKernel& operator=(const BoundKernel&) = delete;
  void run() { call_(); }
  std::span<const float> output() const;

 private:
  std::vector<Buffer> inputs_;
  std::vector<float*> pointers_;
  Buffer output_, scratch_;
  Work work_;
  int64_t size_;
  std::function<void()> call_;
};

/// A packed matrix and the values that its codes stand for.
struct PackedSource {
  PackedSource(bundle::Format format, std::span<const float> weight, int64_t rows, int64_t columns);
  bundle::Format format;
  int64_t rows, columns;
  std::vector<std::byte> bytes;
  std::vector<float> values;
};

struct PackedCopy {
  Buffer bytes;
  bundle::PackedMatrix matrix;
};
Rotation<PackedCopy> copies_of(const PackedSource& source, int64_t cold);

/// Matrix times `problem.rows` rows (at most kMaxDotBatch), preparing the activations included.
Contender packed_linear(const PackedSource& source, const LinearProblem& problem, Role role);

/// The f32 path that plans use for a dense linear layer.
Contender dense_linear(const LinearProblem& problem, Role role);

}  // namespace sluice::engine::measure
