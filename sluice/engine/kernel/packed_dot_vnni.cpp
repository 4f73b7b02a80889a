// The AVX-512 VNNI path of packed_dot.h; its kernels are in packed_dot_vnni_*.cpp.
#include "sluice/engine/kernel/packed_dot_vnni.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace sluice::engine {
namespace vnni {
namespace {

int64_t stride(Format format, DotKind kind, int64_t columns) {
  return places(format, kind, columns).end;
}

// Between parts of a batch, weights come from the cache: rows go in strips that fit it.
void run(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
         int64_t y_stride) {
  constexpr int64_t kCache = 256 << 10;
  const bool integers = x.kind == DotKind::i8 && !is_float(w.format);
  const bool once = x.batch == 1 || x.batch == 2 || x.batch == 4 || (x.batch == 8 && integers);
  const int64_t strip =
      once ? rows.count : (kCache + w.row_bytes() - 1) / (w.row_bytes() > 0 ? w.row_bytes() : 1);
  for (int64_t k = 0; k < rows.count; k += strip) {
    DotRows part = rows;
    part.count = least(strip, rows.count - k);
    if (rows.list)
      part.list = rows.list + k;
    else
      part.first = rows.first + k;
    (integers ? run_codes : run_floats)(w, x, part, y + k, y_stride);
  }
}

}  // namespace
}  // namespace vnni

const DotPath& vnni_dot() {
  static constexpr DotPath path{vnni::stride, vnni::prepare, vnni::run};
  return path;
}

}  // namespace sluice::engine

#else

namespace sluice::engine {
const DotPath& vnni_dot() { return portable_dot(); }
}  // namespace sluice::engine

#endif
