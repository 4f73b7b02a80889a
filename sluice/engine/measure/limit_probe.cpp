#include "sluice/engine/measure/limit_probe.h"

#include <algorithm>

#include "sluice/base/probe_kernels.h"

namespace sluice::engine::measure {

std::string_view limit_name(Limit limit) {
  switch (limit) {
    case Limit::read_bandwidth:
      return "memory bandwidth";
    case Limit::f32_peak:
      return "f32 peak";
    case Limit::int8_peak:
      return "int8 peak";
    case Limit::none:
      break;
  }
  return "";
}

ProbeMemory::ProbeMemory(int64_t bytes) {
  const size_t count = static_cast<size_t>(std::max<int64_t>(bytes, int64_t{1} << 20)) / 1024 * 128;
  pages_ = std::make_unique<probe::Pages>(count * sizeof(uint64_t));
  std::fill_n(pages_->words(), count, uint64_t{1});
  words_ = {pages_->words(), count};
}

ProbeMemory::~ProbeMemory() = default;

LimitProbe::LimitProbe(Limit limit, int threads, const ProbeMemory& memory)
    : limit_(limit), threads_(threads) {
  constexpr int64_t kRounds = 1 << 14;  // a millisecond or so: starting threads must not count
  switch (limit) {
    case Limit::read_bandwidth:
      words_ = memory.words();
      amount_ = static_cast<double>(words_.size_bytes()) / 4;
      break;
    case Limit::f32_peak:
      rounds_ = kRounds;
      amount_ = static_cast<double>(probe::flops_of_multiply_add(rounds_)) * threads;
      break;
    case Limit::int8_peak:
      rounds_ = kRounds;
      amount_ = static_cast<double>(probe::operations_of_int8_dot(rounds_)) * threads;
      break;
    case Limit::none:
      break;
  }
}

void LimitProbe::run() {
  const int threads = threads_;
  if (limit_ == Limit::read_bandwidth) {
    const size_t quarter = words_.size() / 4, blocks = quarter / 32;
    const uint64_t* const first = words_.data() + at_;
    at_ = at_ + quarter < words_.size() ? at_ + quarter : 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
      const size_t begin = blocks * static_cast<size_t>(t) / static_cast<size_t>(threads);
      const size_t end = blocks * (static_cast<size_t>(t) + 1) / static_cast<size_t>(threads);
      probe::keep(probe::sum_words({first + begin * 32, (end - begin) * 32}));
    }
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int t = 0; t < threads; ++t) {
    if (limit_ == Limit::f32_peak) {
      probe::keep(probe::multiply_add(rounds_));
    } else if (limit_ == Limit::int8_peak) {
      probe::keep(probe::int8_dot(rounds_));
    }
  }
}

}  // namespace sluice::engine::measure
