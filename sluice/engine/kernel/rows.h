// Kernels on the rows of matrices: rows that leave and come back, and the row-wise operators of
// language models. Highway with run-time dispatch where there is arithmetic. Any alignment; any
// width, also 0 rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine {

/// Rows of x with keep > 0 (NaN is not) to the front of `out`, which may be x. `before` are the
/// rows of x and keep, `after` (start and source allocated) is filled. Where before counts samples
/// and after the rows in them, x has before.count * after.per_sample rows. `width` is a row of
/// `after`.
void compact_rows(const float* x, const float* keep, size_t width, const LiveRows& before,
                  LiveRows& after, float* out);
/// out = base with the rows of y in their places, or added there. `out` may be base, then only
/// those rows are touched.
void scatter_rows(const float* base, const float* y, size_t width, const LiveRows& before,
                  const LiveRows& after, bool add, float* out);

enum class Pool : uint8_t { mean, first, last };
/// One row per sample of `outer` from the rows it has in `rows`, each of which is `unit` rows of x;
/// zeros for a sample without any.
void pool_rows(const float* x, size_t width, const LiveRows& rows, int64_t unit,
               const LiveRows& outer, Pool kind, float* out);

/// x / sqrt(mean of x^2 + eps) * weight; weight may be null, out may be in.
void rms_norm(const float* in, const float* weight, float eps, float* out, size_t rows,
              size_t width);

/// x / max(|x|, eps) with |x| the root of the sum of squares; zeros stay zeros. out may be in.
void l2_normalize(const float* in, float eps, float* out, size_t rows, size_t width);

/// out[r] = table[ids[r]]. Throws Error{numeric} naming `what` for an id that is not an integer
/// from 0 to count - 1.
void embed(const float* ids, const float* table, size_t count, size_t width,
           const std::string& what, float* out, size_t rows);
/// The same from a table in any stored format; only the rows asked for are unpacked.
void embed(const float* ids, const bundle::PackedMatrix& table, const std::string& what, float* out,
           size_t rows);

/// out [rows][size] = in [rows][width] from column `start`.
void slice_rows(const float* in, size_t width, size_t start, size_t size, float* out, size_t rows);

/// Rotary positions: pairs of a head's first `dims` columns are turned by position / scale *
/// base^(-2i / dims) / factors[i]. Pairs are (i, i + dims / 2), or (2i, 2i + 1) when interleaved.
class Rope {
 public:
  /// `factors`: dims / 2 numbers above 0, or none.
  Rope(size_t dims, double base, double scale, bool interleaved,
       std::span<const float> factors = {});
  size_t dims() const { return dims_; }
  /// Floats of scratch that apply() needs.
  size_t scratch() const { return dims_; }
  /// One row of `heads` heads of `width` columns, of which those from `start` on are turned; out
  /// may be in. A position that is not finite gives NaN.
  void apply(const float* in, size_t heads, size_t width, double position, float* scratch,
             float* out, size_t start = 0) const;

 private:
  size_t dims_;
  bool interleaved_;
  std::vector<double> frequency_;
  // cos and sin of the digits of a position in base kBase: angles add by complex products.
  static constexpr size_t kBase = 128, kDigits = 3;
  std::vector<float> digits_;  // [digit][value][cos, sin][dims / 2]
};

/// The same table for all that ask for the same angles while one of them keeps it.
std::shared_ptr<const Rope> shared_rope(size_t dims, double base, double scale, bool interleaved,
                                        std::vector<float> factors = {});

}  // namespace sluice::engine
