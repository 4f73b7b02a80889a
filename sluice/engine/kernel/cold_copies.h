// For benchmarks: weights that no cache holds.
#pragma once
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "sluice/bundle/packed.h"

namespace sluice::engine {

/// Copies of one random matrix that do not fit a cache together, in large pages where the system
/// gives them.
struct ColdCopies {
  static constexpr int64_t kColumns = 4096, kRows = 4096, kCold = int64_t{512} << 20,
                           kLargePage = int64_t{2} << 20;
  bundle::Format format;
  std::unique_ptr<std::byte, void (*)(void*)> memory;
  std::vector<bundle::PackedMatrix> matrices;

  explicit ColdCopies(bundle::Format format_)
      : format(format_),
        memory(static_cast<std::byte*>(std::aligned_alloc(kLargePage, kCold)), std::free) {
#ifdef MADV_HUGEPAGE
    ::madvise(memory.get(), kCold, MADV_HUGEPAGE);
#endif
    std::mt19937_64 random(1);
    std::uniform_real_distribution<float> uniform(-2, 2);
    std::vector<float> values(kRows * kColumns);
    for (float& v : values) v = uniform(random);
    const std::vector<std::byte> packed = bundle::pack(format, values, kRows, kColumns);
    // As a Buffer does.
    const int64_t each = (static_cast<int64_t>(packed.size()) + 4095) / 4096 * 4096;
    for (int64_t at = 0; at + each <= kCold; at += each) {
      std::memcpy(memory.get() + at, packed.data(), packed.size());
      matrices.push_back(bundle::view_packed(format, kRows, kColumns,
                                             {memory.get() + at, packed.size()}, "w", true));
    }
  }

  /// The same while one format is asked for: packing takes longer than measuring.
  static const ColdCopies& of(bundle::Format format) {
    static std::optional<ColdCopies> latest;
    if (!latest || latest->format != format) {
      latest.reset();
      latest.emplace(format);
    }
    return *latest;
  }
};

}  // namespace sluice::engine
