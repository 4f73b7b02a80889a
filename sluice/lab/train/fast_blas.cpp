// BLAS is column-major, dnnl_sgemm row-major. A column-major matrix is its transpose in row-major,
// so C = op(A) op(B) (m x n, column-major) is C' = op(B)' op(A)' (n x m, row-major): the same
// buffers with the operands and sizes swapped, transposition flags unchanged.
#include "sluice/lab/train/fast_blas.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "sluice/base/machine.h"

#if SLUICE_FAST_BLAS
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#endif

namespace sluice::lab {
namespace {
std::atomic<int64_t> calls{0};
}

void use_fast_blas() {
  const int cores = std::max(1, describe_machine().cores);
  if (at::get_num_threads() != cores) at::set_num_threads(cores);
}

int64_t fast_blas_calls() { return calls.load(std::memory_order_relaxed); }

#if SLUICE_FAST_BLAS

bool fast_blas_built() { return true; }

namespace {

using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*,
                       const float*, const int*, const float*, const int*, const float*, float*,
                       const int*);

/// The BLAS that would have been called; nullptr when there is none behind the executable.
Sgemm packaged_sgemm() {
  static const auto function = reinterpret_cast<Sgemm>(dlsym(RTLD_NEXT, "sgemm_"));
  return function;
}

bool parse_flag(char flag, char& parsed) {
  switch (flag) {
    case 'n':
    case 'N':
      parsed = 'N';
      return true;
    case 't':
    case 'T':
    case 'c':
    case 'C':
      parsed = 'T';
      return true;  // real: 'c' is 't'
    default:
      return false;
  }
}

/// C <- beta C; beta = 0 overwrites whatever C holds, NaN included.
void scale(int m, int n, float beta, float* c, int ldc) {
  if (beta == 1) return;
  for (int j = 0; j < n; ++j) {
    float* column = c + size_t(j) * size_t(ldc);
    if (beta == 0) {
      std::fill_n(column, m, 0.0f);
    } else {
      for (int i = 0; i < m; ++i) column[i] *= beta;
    }
  }
}

}  // namespace

#else

bool fast_blas_built() { return false; }

#endif

}  // namespace sluice::lab

#if SLUICE_FAST_BLAS
extern "C" __attribute__((visibility("default"), used)) void sgemm_(
    const char* transa, const char* transb, const int* m, const int* n, const int* k,
    const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
    const float* beta, float* c, const int* ldc) {
  using namespace sluice::lab;
  calls.fetch_add(1, std::memory_order_relaxed);
  char ta = 0, tb = 0;
  const bool valid = parse_flag(*transa, ta) && parse_flag(*transb, tb) && *m >= 0 && *n >= 0 &&
                     *k >= 0 && *lda >= std::max(1, ta == 'N' ? *m : *k) &&
                     *ldb >= std::max(1, tb == 'N' ? *k : *n) && *ldc >= std::max(1, *m);
  if (valid) {
    if (*m == 0 || *n == 0) return;
    if (*k == 0 || *alpha == 0) return scale(*m, *n, *beta, c, *ldc);
    if (dnnl_sgemm(tb, ta, *n, *m, *k, *alpha, b, *ldb, a, *lda, *beta, c, *ldc) == dnnl_success)
      return;
  }
  // Invalid arguments are reported by the packaged BLAS as it always does; so is what oneDNN
  // refuses. A refusing dnnl_sgemm checks its arguments first and has written nothing.
  if (const auto packaged = packaged_sgemm())
    packaged(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
#endif
