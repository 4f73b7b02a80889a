// The AVX-512 VNNI path of packed_dot.h; its kernels are in packed_dot_vnni_*.cpp.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#include "sluice/engine/kernel/packed_tiles.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>

namespace sluice::engine {
namespace vnni {
namespace {

int64_t stride(Format format, DotKind kind, int64_t columns) {
  return places(format, kind, columns).end;
}

/// Family 1Ah of AMD, whose prefetching by hardware follows a few rows of weights by itself.
bool is_zen5() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d) || c != signature_AMD_ecx) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  return (a >> 8 & 0xF) + (a >> 20 & 0xFF) == 0x1A;
}

}  // namespace

Reading reading_of(Format format, bool codes, int64_t batch, bool listed) {
  static const bool zen5 = is_zen5();
  const bool groups = has_groups(format), thin = groups || format == Format::ternary;
  const bool unpacks = !codes && !is_float(format);  // which is what takes the time
  Reading reading{4, 512};
  if (zen5) {
    const bool two = thin || format == Format::i8 || is_float(format);
    reading = unpacks ? Reading{4, 2048} : two ? Reading{2, 64} : Reading{4, 2048};
    if (batch > 1) reading.ahead = is_float(format) ? 1024 : 2048;
    if (listed) reading.rows = 4;
    reading.closest = listed;
  } else if (!unpacks) {
    if (thin && tiles_usable())
      reading = {1, 16384};
    else if (groups)
      reading.rows = 2;
  }
  if (listed) reading.ahead = 4096;
  return reading;
}

}  // namespace vnni

const DotPath& vnni_dot() {
  static constexpr DotPath path{vnni::stride, vnni::prepare, vnni::run_strips};
  return path;
}

}  // namespace sluice::engine

#else

namespace sluice::engine {
const DotPath& vnni_dot() { return portable_dot(); }
}  // namespace sluice::engine

#endif
