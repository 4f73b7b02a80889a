// Dense matrix products of many rows: the engine's path against oneDNN called directly.
#include <fmt/core.h>

#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

std::vector<Contender> f32_contenders(int64_t rows, int64_t in, int64_t out, int threads) {
  const std::vector<float> x = random_values(rows * in, 1);
  const std::vector<float> weight = random_values(in * out, 2, 0.05f);
  const LinearProblem problem{rows, in, out, x, weight, threads, 0};
  std::vector<Contender> contenders{dense_linear(problem, Role::ours)};
  add_linear_rivals(problem, contenders);
  return contenders;
}

}  // namespace

std::vector<KernelCase> gemm_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const int64_t in = options.quick ? 64 : 4096, out = options.quick ? 48 : 4096;
  for (const int threads : options.threads) {
    for (const int64_t rows : {64, 512}) {
      KernelCase c;
      c.kernel = "gemm f32";
      c.shape = fmt::format("{}x{} batch {}", out, in, options.quick ? rows / 16 : rows);
      c.threads = threads;
      c.limit = Limit::f32_peak;
      c.prepare = [=, rows = options.quick ? rows / 16 : rows] {
        return f32_contenders(rows, in, out, threads);
      };
      cases.push_back(std::move(c));
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
