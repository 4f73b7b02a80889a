#include "sluice/engine/kernel/plane_pool.h"

#include <omp.h>

#include <algorithm>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/buffer.h"

namespace sluice::engine {
namespace {

constexpr int64_t kFloat = sizeof(float);

/// The part of a window that lies inside: [begin, end) of `size` rows or columns.
struct Inside {
  int64_t begin, end;
};
Inside inside(const onednn::ConvShape& s, int axis, int64_t at, int64_t size) {
  const int64_t first = at * s.stride[axis] - s.padding[axis];
  return {std::clamp<int64_t>(first, 0, size),
          std::clamp<int64_t>(first + s.kernel[axis], 0, size)};
}

template <bool kMaximum>
float join(float a, float b) {
  return kMaximum ? std::max(a, b) : a + b;
}

/// Outputs [first, last) of a row, whose windows lie inside. With kWidth and kStride above 0 these
/// are known to the compiler, which then computes several at once.
template <bool kMaximum, int kWidth, int kStride>
void join_columns(const onednn::ConvShape& s, const float* row, int64_t first, int64_t last,
                  float* y) {
  const int64_t width = kWidth > 0 ? kWidth : s.kernel[1],
                stride = kStride > 0 ? kStride : s.stride[1];
  const float* from = row + first * stride - s.padding[1];
  for (int64_t j = first; j < last; ++j, from += stride) {
    float all = from[0];
    for (int64_t c = 1; c < width; ++c) all = join<kMaximum>(all, from[c]);
    y[j] = all;
  }
}

/// One channel. `row` has room for in_width numbers.
template <bool kMaximum>
void pool_plane(const onednn::ConvShape& s, const float* x, float* row, float* y) {
  constexpr float kNothing = kMaximum ? -std::numeric_limits<float>::infinity() : 0.0f;
  const int64_t width = s.in_width;
  // Outputs whose windows reach over no edge at the sides.
  const int64_t first = std::min(s.out_width, (s.padding[1] + s.stride[1] - 1) / s.stride[1]);
  const int64_t room = width + s.padding[1] - s.kernel[1];
  const int64_t last =
      std::max(first, room < 0 ? 0 : std::min(s.out_width, room / s.stride[1] + 1));
  const bool halves = s.kernel[1] == 2 && s.stride[1] == 2;
  for (int64_t i = 0; i < s.out_height; ++i, y += s.out_width) {
    const Inside rows = inside(s, 0, i, s.in_height);
    if (rows.begin < rows.end) {
      std::copy_n(x + rows.begin * width, width, row);
    } else {
      std::fill_n(row, width, kNothing);
    }
    for (int64_t r = rows.begin + 1; r < rows.end; ++r) {
      const float* from = x + r * width;
      for (int64_t j = 0; j < width; ++j) row[j] = join<kMaximum>(row[j], from[j]);
    }
    (halves ? join_columns<kMaximum, 2, 2> : join_columns<kMaximum, 0, 0>)(s, row, first, last, y);
    for (int64_t j = 0; j < s.out_width; ++j) {
      if (j == first) j = last;  // done
      if (j == s.out_width) break;
      const Inside columns = inside(s, 1, j, width);
      float all = kNothing;
      for (int64_t c = columns.begin; c < columns.end; ++c) all = join<kMaximum>(all, row[c]);
      y[j] = all;
    }
    if (kMaximum) continue;
    for (int64_t j = 0; j < s.out_width; ++j) {
      const Inside columns = inside(s, 1, j, width);
      y[j] /= static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin));
    }
  }
}

}  // namespace

Kernel make_plane_pool(const onednn::ConvShape& shape, bool maximum, int threads) {
  SLUICE_CHECK(shape.in_channels == shape.out_channels);
  const int64_t row_bytes = align_up(shape.in_width * kFloat);
  Kernel kernel;
  kernel.name = maximum ? "sluice max_pool" : "sluice avg_pool";
  kernel.scratch_bytes = row_bytes * threads;
  kernel.bind = [=](const Binding& b) -> std::function<void()> {
    return [=, x = b.inputs[0], y = b.output, scratch = b.scratch] {
      const int64_t planes = shape.samples * shape.in_channels;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
      for (int64_t p = 0; p < planes; ++p) {
        auto* row = reinterpret_cast<float*>(scratch + omp_get_thread_num() * row_bytes);
        (maximum ? pool_plane<true>
                 : pool_plane<false>)(shape, x + p * shape.in_height * shape.in_width, row,
                                      y + p * shape.out_height * shape.out_width);
      }
    };
  };
  return kernel;
}

}  // namespace sluice::engine
