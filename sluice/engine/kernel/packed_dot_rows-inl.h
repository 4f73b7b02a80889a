// How the rows of packed weights go by, whatever multiplies them; internal. Included by
// packed_dot_vnni.h and packed_dot_avx2.h, each in its namespace, which gives kAhead, kStreamAhead,
// kCache, kMostCodes, kMostFloats, places(), Inputs, run_codes() and run_floats(). For one target
// at a time, because functions of another are not inlined into it: no include guard.
constexpr int64_t kScaleRows = 4;
constexpr int64_t kListAhead =
    4096;  // bytes of a stream's rows to the one of a list that is asked for

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

/// As many rows of `rows` as R divides, R at a time, which lie that part of all of them apart: a
/// core has more reads under way in several streams than in one. Returns how many that are.
/// Product: template <int R, int B> static void rows(streams, columns, inputs, float (&y)[R][B]).
template <class Product, int R, int B>
SLUICE_DOT_TARGET int64_t run_rows(const PackedMatrix& w, const DotInput& x, int64_t first_input,
                                   const DotRows& rows, float* y, int64_t y_stride) {
  static_assert(R <= kMostStreams);
  Inputs<B> in;
  in.p = places(w.format, x.kind, w.columns);
  for (int b = 0; b < B; ++b) in.row[b] = x.data + (first_input + b) * x.stride;
  for (int r = 0; r < R; ++r) in.distance[r] = R == 1 ? kAhead : kStreamAhead;
  // Rows of a list are asked for line by line: a row at once would keep what is needed now waiting.
  const int64_t after = 1 + kListAhead / (w.code_stride + 1);
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
  return part * R;
}

inline DotRows rows_from(const DotRows& rows, int64_t k, int64_t count) {
  return {rows.list ? rows.list + k : nullptr, rows.first + k, count};
}

template <class Product>
void run_batch(const PackedMatrix& w, const DotInput& x, const DotRows& rows, float* y,
               int64_t y_stride) {
  // Batches of powers of two are compiled; others are sums of these.
  int64_t b = 0;
  if constexpr (Product::kMost >= 8) {
    for (; x.batch - b >= 8; b += 8)
      run_rows<Product, 1, 8>(w, x, b, rows, y + b * y_stride, y_stride);
  }
  if constexpr (Product::kMost >= 4) {
    for (; x.batch - b >= 4; b += 4)
      run_rows<Product, 1, 4>(w, x, b, rows, y + b * y_stride, y_stride);
  }
  for (; x.batch - b >= 2; b += 2)
    run_rows<Product, 1, 2>(w, x, b, rows, y + b * y_stride, y_stride);
  if (x.batch == b) return;
  int64_t done = 0;
  if constexpr (Product::kStreams > 1) {
    bool pay = true;
    if constexpr (requires { Product::streams_pay(); }) pay = Product::streams_pay();
    if (pay)
      done = run_rows<Product, Product::kStreams, 1>(w, x, b, rows, y + b * y_stride, y_stride);
  }
  run_rows<Product, 1, 1>(w, x, b, rows_from(rows, done, rows.count - done),
                          y + b * y_stride + done, y_stride);
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
  const bool integers = x.kind == DotKind::i8 && !is_float(w.format);
  const bool once =
      x.batch <= (integers ? kMostCodes : kMostFloats) && (x.batch & (x.batch - 1)) == 0;
  const int64_t bytes = w.row_bytes() > 0 ? w.row_bytes() : 1;
  const int64_t strip = once ? rows.count : (kCache + bytes - 1) / bytes;
  for (int64_t k = 0; k < rows.count; k += strip) {
    const DotRows part = rows_from(rows, k, least(strip, rows.count - k));
    (integers ? run_codes : run_floats)(w, x, part, y + k, y_stride);
  }
}

#undef SLUICE_DOT_TARGET
#undef SLUICE_DOT_INLINE
