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

bool is_zen5() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d) || c != signature_AMD_ecx) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  return (a >> 8 & 0xF) + (a >> 20 & 0xFF) == 0x1A;
}

}  // namespace

Reading reading_of(Format format, bool codes, int64_t batch) {
  static const bool zen5 = is_zen5();
  const bool thin = has_groups(format) || format == Format::ternary;
  if (batch > 1) return {4, !zen5 ? 512 : is_float(format) ? 1024 : 2048};
  if (!codes && !is_float(format)) return {4, zen5 ? 2048 : 512};  // unpacking is what takes time
  if (zen5) {
    if (thin || format == Format::i8 || is_float(format)) return {2, 64};
    return {4, 2048};
  }
  if (thin && tiles_usable()) return {1, 16384};
  return {has_groups(format) ? 2 : 4, 512};
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
