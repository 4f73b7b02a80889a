#include "sluice/engine/kernel/packed_dot.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/packed_dot_path.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace {

using bundle::PackedMatrix;

bool cpu_has_vnni() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  return has;
#else
  return false;
#endif
}

enum PathIndex : uint8_t { kPortable, kAvx2, kVnni };
const DotPath& path_of(uint8_t index) {
  return index == kVnni ? vnni_dot() : index == kAvx2 ? avx2_dot() : portable_dot();
}
uint8_t best_path() {
  return dot_vnni_usable() ? kVnni : chosen_target_has_avx2() ? kAvx2 : kPortable;
}

}  // namespace

bool dot_vnni_usable() { return cpu_has_vnni() && chosen_target_is_avx512(); }

DotKind dot_kind_from_name(std::string_view name) {
  if (name == "f32") return DotKind::f32;
  if (name == "bf16") return DotKind::bf16;
  if (name == "i8") return DotKind::i8;
  fail(Code::unsupported, "activations '{}'; expected f32, bf16 or i8", name);
}

int64_t dot_scratch_bytes(bundle::Format format, DotKind kind, int64_t columns, int64_t batch) {
  SLUICE_CHECK(columns >= 1 && batch >= 0);
  // Whichever path is chosen later: tests change the vector target.
  const int64_t each = std::max({portable_dot().stride(format, kind, columns),
                                 avx2_dot().stride(format, kind, columns),
                                 vnni_dot().stride(format, kind, columns)});
  return checked_mul(each, batch, "activations");
}

DotInput prepare_dot(const PackedMatrix& weights, DotKind kind, const float* x, int64_t x_stride,
                     int64_t batch, std::byte* scratch) {
  SLUICE_CHECK(batch >= 0 && batch <= kMaxDotBatch);
  DotInput input;
  input.format = weights.format;
  input.kind = kind;
  input.batch = batch;
  input.columns = weights.columns;
  input.data = scratch;
  input.path = best_path();
  const DotPath& path = path_of(input.path);
  input.stride = path.stride(weights.format, kind, weights.columns);
  for (int64_t b = 0; b < batch; ++b)
    path.prepare(weights, kind, x + b * x_stride, scratch + b * input.stride);
  return input;
}

void packed_dot_range(const PackedMatrix& weights, const DotInput& x, int64_t first, int64_t last,
                      float* y, int64_t y_stride) {
  SLUICE_DCHECK(first >= 0 && last <= weights.rows && x.format == weights.format &&
                x.columns == weights.columns);
  if (first >= last || x.batch == 0) return;
  path_of(x.path).run(weights, x, {nullptr, first, last - first}, y, y_stride);
}

void packed_dot_rows(const PackedMatrix& weights, const DotInput& x, std::span<const int32_t> rows,
                     float* y, int64_t y_stride) {
  SLUICE_DCHECK(x.format == weights.format && x.columns == weights.columns);
  if (rows.empty() || x.batch == 0) return;
  path_of(x.path).run(weights, x, {rows.data(), 0, static_cast<int64_t>(rows.size())}, y, y_stride);
}

void packed_dot(const PackedMatrix& weights, const DotInput& x, float* y, int64_t y_stride,
                int threads) {
  if (threads <= 1 || weights.rows < 2) {
    return packed_dot_range(weights, x, 0, weights.rows, y, y_stride);
  }
  for_each_of(threads, threads, [&](int64_t t) {
    const int64_t first = weights.rows * t / threads, last = weights.rows * (t + 1) / threads;
    packed_dot_range(weights, x, first, last, y + first, y_stride);
  });
}

std::string_view dot_name() {
  switch (best_path()) {
    case kVnni:
      return "sluice gemv avx512-vnni";
    case kAvx2:
      return "sluice gemv avx2";
    default:
      return "sluice gemv";
  }
}

}  // namespace sluice::engine
