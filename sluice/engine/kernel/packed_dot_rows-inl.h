// How the rows of packed weights go by, whatever multiplies them; internal. Included by
// packed_dot_vnni.h and packed_dot_avx2.h, each in its namespace, which gives kCache,
// most_rows(), reading_of(), places(), Inputs, run_codes() and run_floats().
// For one target at a time, because functions of another are not inlined into it: no include guard.
constexpr int64_t kScaleRows = 4;

SLUICE_DOT_INLINE void prefetch(const std::byte* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T0);
}

// Scales of groups are a second stream, too thin for the hardware to follow.
SLUICE_DOT_INLINE void prefetch_scales(const PackedMatrix& w, const DotRows& rows, int64_t k) {
  const int64_t after = k + kScaleRows;
  if (after < rows.count && w.scale_stride >= 64)
    prefetch(w.scales + rows.at(after) * w.scale_stride, w.scale_stride);
}

/// R rows of weights that go by side by side.
template <int R>
struct Streams {
  const std::byte* codes[R];
  const std::byte* scales[R];
};

/// R rows at a time, which lie that part of all of them apart: a core has more reads under way in
/// several streams than in one. Product: template <int R, int B> static void
/// rows(streams, columns, inputs, float (&y)[R][B]).
template <class Product, int R, int B>
SLUICE_DOT_TARGET void run_rows(const PackedMatrix& w, const DotInput& x, int64_t first_input,
                                const Reading& reading, const DotRows& rows, float* y,
                                int64_t y_stride) {
  static_assert(R <= kMostStreams);
  Inputs<B> in;
  in.p = places(w.format, x.kind, w.columns);
  for (int b = 0; b < B; ++b) in.row[b] = x.data + (first_input + b) * x.stride;
  for (int r = 0; r < R; ++r) in.distance[r] = reading.ahead;
  if constexpr (requires { in.closest; }) in.closest = reading.closest;
  // Rows of a list are asked for line by line: a row at once would keep what is needed now waiting.
  const int64_t after = 1 + reading.ahead / (w.code_stride + 1);
  Streams<R> streams;
  const int64_t part = rows.count / R;
  float result[R][B];
  for (int64_t k = 0; k < part; ++k) {
    for (int r = 0; r < R; ++r) {
      const int64_t o = rows.at(k + r * part);
      prefetch_scales(w, rows, k + r * part);
      streams.codes[r] = w.codes + o * w.code_stride;
      if (rows.list)
        in.distance[r] = (rows.at(least(k + after, part - 1) + r * part) - o) * w.code_stride;
      streams.scales[r] = w.scales + o * w.scale_stride;
    }
    Product::template rows<R, B>(streams, w.columns, in, result);
    for (int r = 0; r < R; ++r) {
      for (int b = 0; b < B; ++b)
        y[b * y_stride + k + r * part] = in.header(b).scale * result[r][b];
    }
  }
  const int64_t done = part * R;
  if (done == rows.count) return;
  // Of the last few rows, the last stands in for those that are missing.
  for (int r = 0; r < R; ++r) {
    const int64_t o = rows.at(least(done + r, rows.count - 1));
    streams.codes[r] = w.codes + o * w.code_stride;
    streams.scales[r] = w.scales + o * w.scale_stride;
    in.distance[r] = 0;
  }
  Product::template rows<R, B>(streams, w.columns, in, result);
  for (int64_t k = done; k < rows.count; ++k) {
    for (int b = 0; b < B; ++b) y[b * y_stride + k] = in.header(b).scale * result[k - done][b];
  }
}

/// Whether int8 codes of x meet the weights, or floats.
inline bool takes_codes(const PackedMatrix& w, const DotInput& x) {
  return x.kind == DotKind::i8 && !is_float(w.format);
}

inline DotRows rows_from(const DotRows& rows, int64_t k, int64_t count) {
  return {rows.list ? rows.list + k : nullptr, rows.first + k, count};
}

template <class Product>
void run_batch(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
               int64_t y_stride) {
  // Batches of powers of two are compiled; others are sums of these. Product::kRows<B> rows of
  // weights meet B of x, if B is not 1.
  const Reading reading = reading_of(w.format, takes_codes(w, x), x.batch, rows.list != nullptr);
  int64_t b = 0;
  const auto all = [&]<int R, int B>() {
    for (; x.batch - b >= B; b += B)
      run_rows<Product, R, B>(w, x, b, reading, rows, y + b * y_stride, y_stride);
  };
  if constexpr (Product::kMost >= 8) all.template operator()<Product::template kRows<8>, 8>();
  if constexpr (Product::kMost >= 4) all.template operator()<Product::template kRows<4>, 4>();
  all.template operator()<Product::template kRows<2>, 2>();
  // One row of x: as many rows of weights as suit the processor, kFewest to kWidest.
  if constexpr (Product::kFewest == 1) {
    if (reading.rows == 1) all.template operator()<1, 1>();
  }
  if constexpr (Product::kFewest <= 2 && Product::kWidest >= 2) {
    if (reading.rows == 2) all.template operator()<2, 1>();
  }
  if constexpr (Product::kWidest == 4) all.template operator()<4, 1>();
}

/// kFloats: f32 and bf16 weights, too; else they are not given.
template <template <Format> class Product, bool kFloats>
void run_format(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                int64_t y_stride) {
  switch (w.format) {
    case Format::f32:
      if constexpr (kFloats) run_batch<Product<Format::f32>>(w, x, rows, y, y_stride);
      return;
    case Format::bf16:
      if constexpr (kFloats) run_batch<Product<Format::bf16>>(w, x, rows, y, y_stride);
      return;
    case Format::i8:
      return run_batch<Product<Format::i8>>(w, x, rows, y, y_stride);
    case Format::i8_group:
      return run_batch<Product<Format::i8_group>>(w, x, rows, y, y_stride);
    case Format::i4_group:
      return run_batch<Product<Format::i4_group>>(w, x, rows, y, y_stride);
    case Format::i4_group_min:
      return run_batch<Product<Format::i4_group_min>>(w, x, rows, y, y_stride);
    case Format::ternary:
      return run_batch<Product<Format::ternary>>(w, x, rows, y, y_stride);
    case Format::binary:
      return run_batch<Product<Format::binary>>(w, x, rows, y, y_stride);
    case Format::binary2:
      return run_batch<Product<Format::binary2>>(w, x, rows, y, y_stride);
    case Format::mixed:
      return run_batch<Product<Format::mixed>>(w, x, rows, y, y_stride);
  }
}

/// Between parts of a batch, weights come from the cache: rows go in strips that fit it.
inline void run_strips(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
                       int64_t y_stride) {
  const bool integers = takes_codes(w, x);
  const bool once = x.batch <= most_rows(w.format, integers) && (x.batch & (x.batch - 1)) == 0;
  const int64_t bytes = w.row_bytes() > 0 ? w.row_bytes() : 1;
  const int64_t strip = once ? rows.count : (kCache + bytes - 1) / bytes;
  for (int64_t k = 0; k < rows.count; k += strip) {
    const DotRows part = rows_from(rows, k, least(strip, rows.count - k));
    (integers ? run_codes : run_floats)(w, x, part, y + k, y_stride);
  }
}

#undef SLUICE_DOT_TARGET
#undef SLUICE_DOT_INLINE
