// The AVX-512 VNNI path of packed_dot.h; its kernels are in packed_dot_vnni_*.cpp.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine {
namespace vnni {
namespace {

int64_t stride(Format format, DotKind kind, int64_t columns) {
  return places(format, kind, columns).end;
}

}  // namespace
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
