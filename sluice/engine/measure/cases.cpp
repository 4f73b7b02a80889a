#include <cmath>
#include <random>

#include "sluice/base/machine.h"
#include "sluice/engine/measure/case_families.h"

namespace sluice::engine::measure {

int64_t cold_bytes(const CaseOptions& options) {
  if (options.quick) {
    return 0;
  }
  const int64_t cache = last_level_cache_bytes();
  return 4 * (cache > 0 ? cache : int64_t{32} << 20);
}

std::vector<float> random_values(int64_t count, uint64_t seed, float deviation) {
  // Sums of uniform values: the same everywhere, which std::normal_distribution does not promise.
  std::mt19937_64 random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    const uint64_t bits = random();
    int64_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      sum += static_cast<int64_t>(bits >> (16 * i) & 0xffff);
    }
    value = (static_cast<float>(sum) / 65536.0f - 2.0f) * 1.7320508f * deviation;
  }
  return values;
}

std::vector<KernelCase> all_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  for (const auto family : {gemv_cases, gemm_cases, conv_cases, conditional_cases, linear_cases,
                            sequence_cases, sparse_weight_cases}) {
    for (KernelCase& kernel_case : family(options)) {
      cases.push_back(std::move(kernel_case));
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
