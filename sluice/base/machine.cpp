#include "sluice/base/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>
#include <thread>

#include "sluice/base/error.h"
#include "sluice/base/probe_kernels.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The value of the first "name : value" line of /proc/cpuinfo, or "".
std::string cpuinfo(std::string_view name) {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || line.compare(0, name.size(), name) != 0 ||
        line.find_first_not_of(" \t", name.size()) != colon) {
      continue;
    }
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

std::atomic<bool> limited_to_avx2{false};

std::string widest_isa() {
#if defined(__x86_64__)
  if (!limited_to_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    // The kernel lists amx_tile only when it lets processes use it.
    if ((" " + cpuinfo("flags") + " ").find(" amx_tile ") != std::string::npos) {
      return "avx512-amx";
    }
    return __builtin_cpu_supports("avx512vnni") ? "avx512-vnni" : "avx512";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return "avx2";
  }
#endif
  return "generic";
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
    return CPU_COUNT(&set);
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

/// Seconds until `work(thread)` has returned in all threads, started together as far as the system
/// allows.
template <class Work>
double run_threads(int threads, const Work& work) {
  const Clock::time_point start = Clock::now();
  std::vector<std::jthread> others;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back(work, t);
  }
  work(0);
  others.clear();
  return seconds_since(start);
}

void require_threads(int threads) {
  if (threads < 1 || threads > 4096) {
    fail(Code::usage, "threads: expected 1 to 4096, found {}", threads);
  }
}

/// Other work on the machine only ever slows a measurement: the best of a few medians is closest to
/// the limit.
template <class Sample>
double best_median(const Sample& sample) {
  double best = 0;
  for (int trial = 0; trial < 3; ++trial) {
    std::vector<double> rates;
    for (int i = 0; i < 3; ++i) {
      rates.push_back(sample());
    }
    best = std::max(best, median(std::move(rates)));
  }
  return best;
}

/// Operations per second of `work(rounds)`, which does `operations(rounds)` of them, in each
/// thread.
template <class Work, class Operations>
double measure_peak(int threads, const Work& work, const Operations& operations) {
  require_threads(threads);
  int64_t rounds = 1 << 16;
  const auto run = [&] { return run_threads(threads, [&](int) { work(rounds); }); };
  while (run() <
         0.01) {  // long enough that starting threads does not count; also wakes the clock up
    rounds *= 2;
  }
  rounds *= 4;
  return best_median([&] { return static_cast<double>(operations(rounds)) * threads / run(); });
}

}  // namespace

Machine describe_machine() {
  Machine machine;
  machine.cpu = cpuinfo("model name");
  if (machine.cpu.empty()) {
    machine.cpu = "unknown CPU";
  }
  machine.isa = widest_isa();
  machine.cores = usable_cores();
  machine.memory_bytes = static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) *
                         static_cast<int64_t>(::sysconf(_SC_PAGESIZE));
  return machine;
}

void limit_machine_to_avx2() { limited_to_avx2 = true; }
bool machine_limited_to_avx2() { return limited_to_avx2; }

double median(std::vector<double> values) {
  if (values.empty()) {
    fail(Code::shape, "median: expected at least one value, found none");
  }
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) {
    return *middle;
  }
  return (*std::max_element(values.begin(), middle) + *middle) / 2;
}

double mean(std::span<const double> values) {
  if (values.empty()) {
    fail(Code::shape, "mean: expected at least one value, found none");
  }
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double stddev(std::span<const double> values) {
  if (values.size() < 2) {
    return 0;
  }
  const double center = mean(values);
  double sum = 0;
  for (const double v : values) {
    sum += (v - center) * (v - center);
  }
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

std::vector<double> time_interleaved(const std::vector<std::function<void()>>& functions,
                                     int rounds, double min_seconds) {
  if (rounds < 1) {
    fail(Code::usage, "rounds: expected at least 1, found {}", rounds);
  }
  // Reading the clock between calls would cost short functions more than themselves: calls come in
  // batches whose size the warm-up finds.
  std::vector<int64_t> batch(functions.size(), 1);
  for (size_t f = 0; f < functions.size(); ++f) {
    functions[f]();
    for (;;) {
      const Clock::time_point start = Clock::now();
      for (int64_t i = 0; i < batch[f]; ++i) {
        functions[f]();
      }
      const double seconds = seconds_since(start);
      if (seconds * 4 >= min_seconds || batch[f] > (int64_t{1} << 40)) {
        break;
      }
      batch[f] *= seconds * 16 < min_seconds ? 4 : 2;
    }
  }
  std::vector<std::vector<double>> samples(functions.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t f = 0; f < functions.size(); ++f) {
      int64_t calls = 0;
      double seconds = 0;
      const Clock::time_point start = Clock::now();
      do {
        for (int64_t i = 0; i < batch[f]; ++i) {
          functions[f]();
        }
        calls += batch[f];
        seconds = seconds_since(start);
      } while (seconds < min_seconds);
      samples[f].push_back(seconds / static_cast<double>(calls));
    }
  }
  std::vector<double> medians;
  for (std::vector<double>& s : samples) {
    medians.push_back(median(std::move(s)));
  }
  return medians;
}

double measure_read_bandwidth(int threads) {
  require_threads(threads);
  // Far beyond any private cache, and beyond the share of a last-level cache that one process gets.
  constexpr size_t kBytes = size_t{512} << 20;
  const probe::Pages buffer(kBytes);
  const size_t lines = kBytes / 64;
  const auto share = [&](int t) {
    const size_t first = lines * static_cast<size_t>(t) / static_cast<size_t>(threads);
    const size_t last = lines * (static_cast<size_t>(t) + 1) / static_cast<size_t>(threads);
    return std::span(buffer.words() + first * 8, (last - first) * 8);
  };
  run_threads(threads,
              [&](int t) {  // the first touch places the pages near the thread that reads them
                const std::span<uint64_t> mine = share(t);
                std::fill(mine.begin(), mine.end(), uint64_t{1});
              });
  return best_median([&] {
    const double seconds =
        run_threads(threads, [&](int t) { probe::keep(probe::sum_words(share(t))); });
    return static_cast<double>(kBytes) / seconds;
  });
}

double measure_f32_peak(int threads) {
  return measure_peak(
      threads, [](int64_t rounds) { probe::keep(probe::multiply_add(rounds)); },
      probe::flops_of_multiply_add);
}

double measure_int8_peak(int threads) {
  require_threads(threads);
  if (probe::operations_of_int8_dot(1) == 0) {
    return 0;
  }
  return measure_peak(
      threads, [](int64_t rounds) { probe::keep(probe::int8_dot(rounds)); },
      probe::operations_of_int8_dot);
}

int64_t last_level_cache_bytes() {
  // sysconf() gives the sum of all last-level caches of a socket on some CPUs; this is the one that
  // a core can fill.
  int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) +
                       "/size");
    int64_t size = 0;
    char unit = 0;
    if (file >> size) {
      file >> unit;
      size *= unit == 'K' ? 1 << 10 : unit == 'M' ? 1 << 20 : unit == 'G' ? 1 << 30 : 1;
      largest = std::max(largest, size);
    }
  }
  return largest;
}

}  // namespace sluice
