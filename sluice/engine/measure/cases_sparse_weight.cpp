// Linear layers whose weights are mostly zero: compressed rows and blocks of 16 outputs against the
// dense layer, over the density of the weights.
#include <fmt/core.h>

#include <algorithm>

#include "sluice/engine/kernel/block_sparse.h"
#include "sluice/engine/kernel/sparse.h"
#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

/// Every weight, or every block of `height` rows of a column, is kept with probability `density`.
std::vector<float> thinned(std::vector<float> weight, int64_t in, int64_t height, double density) {
  uint64_t state = 7;
  const int64_t out = std::ssize(weight) / in;
  for (int64_t block = 0; block < out; block += height) {
    for (int64_t i = 0; i < in; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      if (static_cast<double>(state >> 11) * 0x1p-53 < density) {
        continue;
      }
      for (int64_t o = block; o < std::min(block + height, out); ++o) {
        weight[static_cast<size_t>(o * in + i)] = 0;
      }
    }
  }
  return weight;
}

Contender blocks(const LinearProblem& p) {
  struct State {
    LinearProblem problem;
    std::vector<float> x, y;
    std::optional<Rotation<BlockWeights>> copies;
  };
  auto state = std::make_shared<State>();
  state->problem = p;
  state->x.assign(p.x.begin(), p.x.end());
  state->y.resize(static_cast<size_t>(p.rows * p.out));
  BlockWeights weights = compress_blocks(p.weight, p.out, p.in, BlockShape::tall);
  Contender contender;
  contender.name = "sluice";
  contender.bytes = static_cast<double>(weights.bytes());
  contender.operations = 2.0 * static_cast<double>(p.rows * weights.blocks() * kBlock);
  state->copies.emplace(p.cold, weights.bytes(), [&](int64_t i) {
    return i == 0 ? std::move(weights) : compress_blocks(p.weight, p.out, p.in, BlockShape::tall);
  });
  contender.run = [state] {
    const LinearProblem& q = state->problem;
    linear_blocks(state->x.data(), state->copies->next(), nullptr, Activation::none,
                  state->y.data(), static_cast<size_t>(q.rows), q.threads);
  };
  contender.output = [state] { return std::span<const float>(state->y); };
  return contender;
}

Contender csr(const LinearProblem& p) {
  struct State {
    LinearProblem problem;
    std::vector<float> x, y, scratch;
    std::optional<Rotation<SparseWeights>> copies;
  };
  auto state = std::make_shared<State>();
  state->problem = p;
  state->x.assign(p.x.begin(), p.x.end());
  state->y.resize(static_cast<size_t>(p.rows * p.out));
  const SparseWeights weights = compress(p.weight, p.out, p.in);
  state->scratch.resize(sparse_scratch(weights, static_cast<size_t>(p.rows)));
  state->copies.emplace(p.cold, weights.bytes(), [&](int64_t) { return weights; });
  Contender contender;
  contender.name = "sluice";
  contender.bytes = static_cast<double>(weights.bytes());
  contender.operations = 2.0 * static_cast<double>(p.rows * weights.nonzero());
  contender.run = [state] {
    linear_sparse(state->x.data(), state->copies->next(), nullptr, Activation::none,
                  state->y.data(), static_cast<size_t>(state->problem.rows), state->scratch.data());
  };
  contender.output = [state] { return std::span<const float>(state->y); };
  return contender;
}

}  // namespace

std::vector<KernelCase> sparse_weight_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const int64_t in = options.quick ? 96 : 2048, out = options.quick ? 40 : 2048;
  std::vector<double> densities{0.5, 0.3, 0.2, 0.1, 0.05};
  if (options.quick) {
    densities = {0.1};
  }
  for (const bool in_blocks : {false, true}) {
    for (const int threads : options.threads) {
      if (!in_blocks && threads != options.threads.front()) {
        continue;  // compressed rows take one thread
      }
      for (const int64_t rows : {1, 64}) {
        for (const double density : densities) {
          KernelCase c;
          c.kernel = in_blocks ? "blocks-16x1 f32" : "csr f32";
          c.shape = fmt::format("{}x{} batch {}", out, in, rows);
          c.threads = threads;
          c.kept = density;
          c.conditional = true;
          c.limit = rows == 1 ? Limit::read_bandwidth : Limit::f32_peak;
          c.prepare = [=, cold = cold_bytes(options)] {
            const std::vector<float> x = random_values(rows * in, 1);
            const std::vector<float> weight =
                thinned(random_values(in * out, 2, 0.05f), in, in_blocks ? kBlock : 1, density);
            const LinearProblem problem{rows, in, out, x, weight, threads, cold};
            std::vector<Contender> contenders{in_blocks ? blocks(problem) : csr(problem),
                                              dense_linear(problem, Role::dense)};
            if (density == 0.1) {  // to them all densities are the same
              add_linear_rivals(problem, contenders);
            }
            return contenders;
          };
          cases.push_back(std::move(c));
        }
      }
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
