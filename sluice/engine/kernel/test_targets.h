// Runs a test body once per vector target that was compiled and that this CPU has.
#pragma once
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace sluice::engine::testing {

template <class Body>
void for_each_target(Body body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    SCOPED_TRACE(hwy::TargetName(target));
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

/// Numbers in a guarded, unaligned place: writing outside is found.
class Guarded {
 public:
  explicit Guarded(size_t count, size_t shift = 1)
      : shift_(kGuard + shift), count_(count), all_(count + 2 * kGuard + 8, kMark) {}
  float* data() { return all_.data() + shift_; }
  std::span<float> span() { return {data(), count_}; }
  bool intact() const {
    for (size_t i = 0; i < all_.size(); ++i) {
      if ((i < shift_ || i >= shift_ + count_) && all_[i] != kMark) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr float kMark = 12345.5f;
  size_t shift_, count_;
  std::vector<float> all_;
};

inline std::vector<float> random_floats(std::mt19937_64& random, size_t count, float low = -2,
                                        float high = 2) {
  std::uniform_real_distribution<float> values(low, high);
  std::vector<float> result(count);
  for (float& v : result) v = values(random);
  return result;
}

}  // namespace sluice::engine::testing
