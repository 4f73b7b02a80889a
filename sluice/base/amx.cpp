#include "sluice/base/amx.h"

#include "sluice/base/machine.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace sluice {
namespace {

bool ask() {
  constexpr unsigned kNeeded = 1u << 24 | 1u << 25;      // amx-tile, amx-int8
  constexpr unsigned kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kNeeded) == kNeeded &&
         ::syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

bool amx_int8_usable() {
  static const bool usable = ask();
  return usable && !machine_limited_to_avx2();
}

}  // namespace sluice

#else

namespace sluice {
bool amx_int8_usable() { return false; }
}  // namespace sluice

#endif
