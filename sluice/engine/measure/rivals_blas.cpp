// OpenBLAS, if the machine has it: loaded when it is wanted, so that nothing depends on it.
#include <dlfcn.h>

#include <cstdlib>

#include "sluice/base/machine.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

// The C interface of the BLAS with 32-bit integers; the enumeration values are part of it.
constexpr int kRowMajor = 101, kNoTranspose = 111, kTranspose = 112;
using Gemv = void (*)(int order, int transpose, int m, int n, float alpha, const float* a, int lda,
                      const float* x, int incx, float beta, float* y, int incy);
using Gemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                      const float* a, int lda, const float* b, int ldb, float beta, float* c,
                      int ldc);

struct OpenBlas {
  Gemv gemv = nullptr;
  Gemm gemm = nullptr;
  void (*set_threads)(int) = nullptr;
  std::string core;
};

OpenBlas load() {
  // Releases older than a CPU take it for a generic one of a tenth of the speed; name the nearest
  // they know, unless the user did. Their threads spin after a call, which would slow the next
  // contender.
  if (describe_machine().isa.starts_with("avx512")) {
    ::setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 0);
  } else if (machine_limited_to_avx2()) {
    ::setenv("OPENBLAS_CORETYPE", "HASWELL", 1);
  }
  ::setenv("OPENBLAS_THREAD_TIMEOUT", "4", 0);
  OpenBlas blas;
  void* library = ::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return blas;
  }
  blas.gemv = reinterpret_cast<Gemv>(::dlsym(library, "cblas_sgemv"));
  blas.gemm = reinterpret_cast<Gemm>(::dlsym(library, "cblas_sgemm"));
  blas.set_threads = reinterpret_cast<void (*)(int)>(::dlsym(library, "openblas_set_num_threads"));
  const auto core = reinterpret_cast<const char* (*)()>(::dlsym(library, "openblas_get_corename"));
  blas.core = core != nullptr ? core() : "";
  return blas;
}

}  // namespace

std::optional<Contender> openblas_linear(const LinearProblem& problem) {
  static const OpenBlas blas = load();
  if (blas.gemv == nullptr || blas.gemm == nullptr || blas.set_threads == nullptr) {
    return std::nullopt;
  }
  struct State {
    LinearProblem problem;
    std::vector<float> x, y;
    Rotation<std::vector<float>> weights;
  };
  const std::vector<float> weight(problem.weight.begin(), problem.weight.end());
  auto state = std::make_shared<State>(
      State{problem,
            {problem.x.begin(), problem.x.end()},
            std::vector<float>(static_cast<size_t>(problem.rows * problem.out)),
            {problem.cold, static_cast<int64_t>(problem.weight.size_bytes()),
             [&](int64_t) { return weight; }}});
  Contender contender;
  contender.name = "OpenBLAS f32";
  contender.role = Role::rival;
  contender.bytes = static_cast<double>(problem.weight.size_bytes());
  contender.operations = problem.operations();
  contender.note = "OpenBLAS with its " + blas.core + " kernels";
  contender.run = [state] {
    const LinearProblem& p = state->problem;
    const float* weights = state->weights.next().data();
    const int rows = static_cast<int>(p.rows), in = static_cast<int>(p.in),
              out = static_cast<int>(p.out);
    blas.set_threads(p.threads);
    if (rows == 1) {
      blas.gemv(kRowMajor, kNoTranspose, out, in, 1, weights, in, state->x.data(), 1, 0,
                state->y.data(), 1);
    } else {
      blas.gemm(kRowMajor, kNoTranspose, kTranspose, rows, out, in, 1, state->x.data(), in, weights,
                in, 0, state->y.data(), out);
    }
  };
  contender.output = [state] { return std::span<const float>(state->y); };
  return contender;
}

}  // namespace sluice::engine::measure
