// Thread counts. oneDNN and LibTorch share one OpenMP runtime whose team size belongs to the
// calling thread, so every entry into the engine sets it and puts it back.
#pragma once
#include <omp.h>

#include <cstdint>

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

// A parallel region of one thread is a team of another size than the last one, for which libgomp
// gives up the team it kept and takes memory for a new one. Work for one thread therefore runs
// without a region.

/// work(part, parts) for each part from 0 on, each on a thread of its own; there may be fewer parts
/// than `threads`.
template <class Work>
void in_parts(int threads, const Work& work) {
  if (threads <= 1) return work(int64_t{0}, int64_t{1});
#pragma omp parallel num_threads(threads)
  work(static_cast<int64_t>(omp_get_thread_num()), static_cast<int64_t>(omp_get_num_threads()));
}

/// work(i) for i from 0 to count - 1, in equal runs of them on `threads` threads.
template <class Work>
void for_each_of(int64_t count, int threads, const Work& work) {
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) work(i);
}

}  // namespace sluice::engine
