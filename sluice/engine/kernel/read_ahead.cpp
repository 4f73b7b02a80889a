#include "sluice/engine/kernel/read_ahead.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

namespace sluice::engine {
namespace {

/// Family of a processor by AMD, else 0.
unsigned amd_family() {
#if defined(__x86_64__) && defined(__GNUC__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d) || c != signature_AMD_ecx) return 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  return (a >> 8 & 0xF) + (a >> 20 & 0xFF);
#else
  return 0;
#endif
}

}  // namespace

bool follows_rows() {
  static const bool follows = amd_family() == 0x1A;
  return follows;
}

}  // namespace sluice::engine
