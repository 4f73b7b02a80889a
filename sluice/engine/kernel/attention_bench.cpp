// Attention of one sequence: prompts in GFLOP/s, single tokens in GB/s of cache read. 32 query
// heads of 128 over 8 key heads unless said otherwise.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "sluice/engine/kernel/attention.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/linear_attention.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace {

std::vector<float> numbers(int64_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> values;
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = values(random);
  return x;
}

/// heads, kv_heads, width, rows, seen, cache type, threads
void softmax_attention(benchmark::State& state) {
  AttentionSpec spec;
  spec.heads = state.range(0);
  spec.kv_heads = state.range(1);
  spec.key_width = spec.value_width = state.range(2);
  spec.scale = 1 / std::sqrt(static_cast<float>(spec.key_width));
  const int64_t rows = state.range(3), seen = state.range(4);
  spec.cache = seen + rows;
  spec.cache_type = static_cast<CacheType>(state.range(5));
  const int threads = static_cast<int>(state.range(6));
  const ThreadScope scope(threads);
  const auto q = numbers(rows * spec.heads * spec.key_width),
             k = numbers(rows * spec.kv_heads * spec.key_width);
  std::vector<float> out(q.size());
  const Buffer scratch(attention_scratch_bytes(spec, threads)), cache(attention_cache_bytes(spec));
  // A small number in every format.
  std::fill_n(cache.data(), cache.bytes(), std::byte{0x3C});
  const AttentionRows call{q.data(), k.data(), k.data(), out.data(),
                           rows,     rows,     seen,     cache.data()};
  Work work;
  for (auto _ : state) work = attention(spec, {&call, 1}, threads, scratch.data());
  const auto rate = [](double x) {
    return benchmark::Counter(x, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["GFLOP/s"] = rate(2e-9 * static_cast<double>(work.macs));
  state.counters["GB/s"] = rate(1e-9 * static_cast<double>(work.bytes));
}
BENCHMARK(softmax_attention)
    ->ArgNames({"heads", "kv", "width", "rows", "seen", "type", "threads"})
    ->Args({32, 8, 128, 512, 0, 0, 1})
    ->Args({32, 32, 128, 512, 0, 0, 1})
    ->Args({12, 12, 64, 512, 0, 0, 1})
    ->Args({32, 8, 128, 512, 0, 0, 2})
    ->Args({32, 8, 128, 512, 0, 1, 1})
    ->Args({32, 8, 128, 1, 4095, 0, 1})
    ->Args({32, 32, 128, 1, 4095, 0, 1})
    ->Args({32, 8, 128, 1, 4095, 1, 1})
    ->Args({32, 8, 128, 1, 4095, 2, 1})
    ->Args({32, 8, 128, 1, 4095, 0, 2})
    ->Args({32, 8, 128, 1, 4095, 1, 2})
    ->MinTime(0.15)
    ->UseRealTime();

/// heads, width, rows, threads
void recurrent_attention(benchmark::State& state) {
  LinearAttentionSpec spec;
  spec.heads = state.range(0);
  spec.key_width = spec.value_width = state.range(1);
  spec.decay = Decay::channel;
  const int64_t rows = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  const ThreadScope scope(threads);
  const auto q = numbers(rows * spec.heads * spec.key_width);
  const std::vector<float> decay(q.size(), 0.9f);
  std::vector<float> out(q.size());
  const Buffer scratch(linear_attention_scratch_bytes(spec, threads)),
      memory(linear_attention_state_bytes(spec));
  const LinearAttentionRows call{q.data(),   q.data(), q.data(),        decay.data(),
                                 out.data(), rows,     memory.floats(), false};
  Work work;
  for (auto _ : state) work = linear_attention(spec, {&call, 1}, threads, scratch.data());
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * static_cast<double>(work.macs),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(recurrent_attention)
    ->ArgNames({"heads", "width", "rows", "threads"})
    ->Args({16, 128, 512, 1})
    ->Args({16, 64, 512, 1})
    ->Args({16, 128, 1, 1})
    ->Args({16, 128, 512, 2})
    ->MinTime(0.15)
    ->UseRealTime();

}  // namespace
}  // namespace sluice::engine
