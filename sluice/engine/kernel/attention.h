// Softmax attention over a sequence: causal or full, with fewer key heads than query heads, a
// sliding window, and keys and values kept from run to run. Scores are never stored as a whole:
// keys come in blocks, with a running maximum and sum per row.
//
//   out[t][h] = sum_j softmax_j(scale q[t][h] . k[j][h / group]) v[j][h / group]
//
// over j <= t (causal), t - window < j <= t (with a window), or all j (full). Rows that a query may
// not see are not read: their NaN and infinities stay out. A query that sees a NaN or an infinite
// score gives NaN.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

enum class CacheType : uint8_t { f32, bf16, f16 };
inline int64_t cache_type_bytes(CacheType type) { return type == CacheType::f32 ? 4 : 2; }

struct AttentionSpec {
  int64_t heads = 1, kv_heads = 1;         ///< kv_heads divides heads
  int64_t key_width = 1, value_width = 1;  ///< of a head
  bool causal = true;
  int64_t window = 0;  ///< keys a query sees, its own included; 0: all
  float scale = 1;
  int64_t cache = 0;  ///< positions kept per sample, 0: none. Position p lies in slot p % cache.
  CacheType cache_type = CacheType::f32;
};

/// One sample's rows in this call.
struct AttentionRows {
  const float* q = nullptr;    ///< [rows][heads * key_width]
  const float* k = nullptr;    ///< [keys][kv_heads * key_width]
  const float* v = nullptr;    ///< [keys][kv_heads * value_width]
  float* out = nullptr;        ///< [rows][heads * value_width]
  int64_t rows = 0, keys = 0;  ///< with a cache the keys are appended
  int64_t seen = 0;            ///< with a cache: positions before these
  std::byte* cache = nullptr;  ///< attention_cache_bytes(), any alignment that its type allows
  /// [rows] ascending: which of the keys each query belongs to, where they are fewer (rows that
  /// left the network keep keys and values for those that go on); null: query r to key r. Looked at
  /// where the mask is causal.
  const int64_t* at = nullptr;
  /// [rows][kv_heads] or null: only where it is above 0 do a row's queries of that key head look at
  /// anything; the others give zeros, and keys that nobody looks at are not read.
  const float* open = nullptr;
};

/// Of one sample; throws Error{limit} on overflow.
int64_t attention_cache_bytes(const AttentionSpec& spec);
/// For that many threads.
int64_t attention_scratch_bytes(const AttentionSpec& spec, int threads);

/// Appends to the caches, then attends. With a window the cache may wrap, when it holds window +
/// keys - 1 positions; without one seen + keys <= cache. The result does not depend on `threads`.
/// Returns what was done.
Work attention(const AttentionSpec& spec, std::span<const AttentionRows> samples, int threads,
               std::byte* scratch);

}  // namespace sluice::engine
