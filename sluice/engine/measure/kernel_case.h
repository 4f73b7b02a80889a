// What `sluice bench kernels` measures: cases, each one kernel at one shape, with the contenders
// that are timed against each other in one interleaved run. A family of kernels adds its cases in
// cases_<family>.cpp and one word in cases.cpp.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sluice/engine/kernel/buffer.h"

namespace sluice::engine::measure {

/// What bounds a kernel at best. It is measured between the contenders of the case, so that a
/// machine that is slow for a moment is slow for both.
enum class Limit : uint8_t { none, read_bandwidth, f32_peak, int8_peak };

enum class Role : uint8_t {
  ours,   ///< the kernel of the case: the first contender, exactly one
  dense,  ///< our own kernel that skips nothing or packs nothing
  rival,  ///< a library
};

struct Contender {
  std::string name;  ///< "sluice", "sluice dense f32", "oneDNN f32"
  Role role = Role::ours;
  std::function<void()> run;  ///< one call; a call takes the next copy of the weights
  double bytes = 0;           ///< that a call has to read from memory: weights, once each
  double operations = 0;      ///< of a call that skips nothing useful: 2 per multiply-accumulate
  /// Result of the latest call, compared with the first contender's; absent: not compared.
  std::function<std::span<const float>()> output = {};
  /// Largest |difference| allowed, over the largest |output of the first contender|.
  double tolerance = 1e-3;
  std::string note = {};  ///< what a reader must know: "activations quantized beforehand"
};

struct KernelCase {
  std::string kernel;  ///< "gemv i4-32", "sparse-gemv f32": what bars and --only name
  std::string shape;   ///< "4096x4096 batch 1"
  int threads = 1;
  double kept = 1;           ///< fraction of the work that the input leaves
  bool conditional = false;  ///< belongs into the picture of time over kept fraction
  Limit limit = Limit::none;
  /// Allocates, packs, binds: called just before the case is timed, and its result is destroyed
  /// before the next one. An optional rival that is not there is left out.
  std::function<std::vector<Contender>()> prepare;
};

struct CaseOptions {
  std::vector<int> threads{1};
  bool quick = false;  ///< tiny shapes, one copy: for tests, the times mean nothing
};

/// Bytes that copies of one operand must have together so that no cache holds them: four times the
/// last-level cache. 0 with `quick`.
int64_t cold_bytes(const CaseOptions& options);

/// Copies of an operand, used in turn. At least one; enough that together they exceed `cold`.
template <class T>
class Rotation {
 public:
  /// `make(i)` builds copy i; the size of one is `bytes`.
  template <class Make>
  Rotation(int64_t cold, int64_t bytes, const Make& make) {
    const int64_t count = bytes > 0 ? std::max<int64_t>(1, (cold + bytes - 1) / bytes) : 1;
    for (int64_t i = 0; i < count; ++i) {
      copies_.push_back(make(i));
    }
  }
  T& next() {
    T& copy = copies_[at_];
    at_ = at_ + 1 == copies_.size() ? 0 : at_ + 1;
    return copy;
  }
  size_t size() const { return copies_.size(); }

 private:
  std::vector<T> copies_;
  size_t at_ = 0;
};

/// Normally distributed, the same on every machine and in every run.
std::vector<float> random_values(int64_t count, uint64_t seed, float deviation = 1.0f);

/// All cases of all families, in the order of the report.
std::vector<KernelCase> all_cases(const CaseOptions& options);

}  // namespace sluice::engine::measure
