// LibTorch's f32 matrix products through oneDNN. Debian's OpenBLAS does not know current CPUs and
// runs at a fraction of their speed; LibTorch looks `sgemm_` up among the executable's symbols
// first, so an executable that defines it decides.
#pragma once
#include <cstdint>

namespace sluice::lab {

/// Makes LibTorch use all cores of the process (it starts with one thread), and its sgemm oneDNN's.
/// Call once, before the first use of LibTorch, from every executable that trains: the call also
/// keeps the linker from dropping `sgemm_`.
void use_fast_blas();

/// True when this build routes sgemm through oneDNN (SLUICE_FAST_BLAS, SLUICE_ENGINE).
bool fast_blas_built();
/// Calls of the routed sgemm so far, by this process.
int64_t fast_blas_calls();

}  // namespace sluice::lab
