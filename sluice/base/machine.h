// What a number was measured on, and timing that is worth printing.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace sluice {

struct Machine {
  std::string cpu;  ///< model name
  std::string isa;  ///< widest of "avx512-amx", "avx512-vnni", "avx512", "avx2", "generic"
  int cores = 1;    ///< usable by this process
  int64_t memory_bytes = 0;
};
Machine describe_machine();

/// From now on this process takes the CPU for one with AVX2 alone, in what describe_machine() says
/// and in what the limits below are measured with. Before any of them are measured. (The engine's
/// own limit, engine/kernel/instruction_set.h, calls this.)
void limit_machine_to_avx2();
bool machine_limited_to_avx2();

double median(std::vector<double> values);  ///< Error{shape} when empty
double mean(std::span<const double> values);
double stddev(std::span<const double> values);  ///< sample standard deviation, 0 for fewer than two

/// Seconds per call of each function, interleaved A/B/A/B over `rounds` rounds after one warm-up
/// each; every sample is the time of enough calls to last `min_seconds`. Returns the medians in
/// order.
std::vector<double> time_interleaved(const std::vector<std::function<void()>>& functions,
                                     int rounds = 7, double min_seconds = 0.02);

/// Measured limits of this machine with `threads` threads.
double measure_read_bandwidth(int threads);  ///< bytes per second from memory, not cache
double measure_f32_peak(
    int threads);  ///< f32 FLOP per second of dependent-free FMA, 2 per multiply-add
/// 8-bit operations per second with AMX or VNNI, 2 per multiply-add; 0 on a CPU without either.
double measure_int8_peak(int threads);

/// Bytes of the last-level cache, 0 where the system does not say.
int64_t last_level_cache_bytes();

}  // namespace sluice
