// Thread counts. oneDNN and LibTorch share one OpenMP runtime whose team size belongs to the
// calling thread, so every entry into the engine sets it and puts it back.
#pragma once
#include <omp.h>

namespace sluice::engine {

class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(omp_get_max_threads()) {
    if (before_ != threads) omp_set_num_threads(threads);
  }
  ~ThreadScope() { omp_set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

}  // namespace sluice::engine
