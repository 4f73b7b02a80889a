// Products of packed weights and float activations, for any vectors of floats; internal. Included
// by packed_dot_vnni_floats.cpp and packed_dot_avx2_floats.cpp behind the macros SLUICE_DOT_TARGET,
// SLUICE_DOT_INLINE and SLUICE_DOT_MEMBER and what depends on the vectors:
//   Floats, kLanes, kHeld (vectors of x that registers hold beside the sums),
//   zeros(), load_floats(from), broadcast(from), multiply(a, b), multiply_add(a, b, c) = a b + c,
//   total(v), widen(codes) of kLanes bytes, load_scales(from, left, to): 16, zeros behind `left`.
// Behind it come the decoders, Decode<format, R>: codes of R rows of weights. They have kChunk, the
// columns they take at once (of kBytes bytes), and
//   begin(i)                 before each multiple of 512 columns,
//   load(r, from, i, left)   row r's codes at `from`, of columns i to i + kChunk - 1, of which
//                            `left` are there (or kChunk),
//   part(r, p)               the p-th kLanes of these columns as floats (or a mask of them, which
//                            multiply_add takes), in the order in which prepare() lays x.
// Codes become floats exactly, times the scale of their group (11 bits times 8 at most); only the
// minimum of i4-32-min rounds.
//
// R rows of weights go by side by side: they are streams for the memory, sums that do not wait for
// each other, and share what is loaded of the activations, which, of four rows, fill the
// first-level cache twice. For one target at a time: no include guard.

template <Format kFormat, int R>
struct Decode;

/// Scales of 16 groups of 32 columns for each of R rows, from scale `first` on.
template <int R>
struct Factors {
  alignas(64) float of[R][16];
  SLUICE_DOT_MEMBER void load(const Streams<R>& w, int64_t first, int64_t left) {
    for (int r = 0; r < R; ++r) load_scales(w.scales[r] + 2 * first, left, of[r]);
  }
};

/// What decoders of formats without groups and with groups have in common.
template <int R>
struct Plain {
  Plain(const Streams<R>&, int64_t) {}
  void begin(int64_t) {}
};
template <int R, bool kMin>
struct Grouped {
  const Streams<R>& w;
  const int64_t groups;
  Factors<R> factors, minima;
  Grouped(const Streams<R>& w, int64_t columns) : w(w), groups((columns + 31) / 32) {}
  SLUICE_DOT_MEMBER void begin(int64_t i) {
    factors.load(w, i / 32, groups - i / 32);
    if (kMin) minima.load(w, groups + i / 32, groups - i / 32);
  }
};

template <int R>
struct Decode<Format::i8_group, R> : Grouped<R, false> {
  static constexpr int64_t kChunk = 32, kBytes = 32;
  using Grouped<R, false>::Grouped;
  const std::byte* codes[R];
  Floats factor[R];
  SLUICE_DOT_MEMBER void load(int r, const std::byte* from, int64_t i, int64_t) {
    codes[r] = from;
    factor[r] = broadcast(&this->factors.of[r][i / 32 % 16]);
  }
  SLUICE_DOT_MEMBER Floats part(int r, int p) const {
    return multiply(widen(codes[r] + kLanes * p), factor[r]);
  }
};

template <int R>
SLUICE_DOT_INLINE Streams<R> behind(Streams<R> w, int64_t bytes) {
  for (int r = 0; r < R; ++r) w.codes[r] += bytes;
  return w;
}

/// y[r][b] = sum_i w_r[i] x_b[i] over `count` columns. Each of these has one vector of sums,
/// whatever R and B are: a row of x gives the same numbers in a batch of any size.
template <class D, int R, int B>
SLUICE_DOT_INLINE void float_dot(const Streams<R>& w, int64_t count, const float* const (&x)[B],
                                 const Inputs<B>& in, float (&y)[R][B]) {
  constexpr int kParts = D::kChunk / kLanes;
  constexpr int64_t kLine = 64 / D::kBytes * D::kChunk;  // columns of a cache line
  D decode(w, count);
  Floats sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = zeros();
  const auto load = [&](int r, int64_t i, int64_t left) SLUICE_DOT_TARGET
      __attribute__((always_inline)) {
    const std::byte* from = w.codes[r] + i / D::kChunk * D::kBytes;
    if (i % kLine == 0) in.ahead(from, r);
    decode.load(r, from, i, left);
  };
  // A row's chunks, then the next row's: lines whose addresses agree in the lowest 12 bits, as
  // those of most rows do, are in each other's way.
  const auto by_rows = [&]<int kChunks>(int64_t i, int64_t left) SLUICE_DOT_TARGET
      __attribute__((always_inline)) {
    Floats v[B][kChunks * kParts];
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < kChunks * kParts; ++p) v[b][p] = load_floats(x[b] + i + kLanes * p);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kChunks; ++c) {
        load(r, i + c * D::kChunk, left);
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
          const auto weights = decode.part(r, p);
          for (int b = 0; b < B; ++b)
            sums[r][b] = multiply_add(weights, v[b][c * kParts + p], sums[r][b]);
        }
      }
    }
  };
  const auto by_parts = [&](int64_t i, int64_t left) SLUICE_DOT_TARGET
      __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) load(r, i, left);
#pragma GCC unroll 32
    for (int p = 0; p < kParts; ++p) {
      Floats v[B];
      for (int b = 0; b < B; ++b) v[b] = load_floats(x[b] + i + kLanes * p);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const auto weights = decode.part(r, p);
        for (int b = 0; b < B; ++b) sums[r][b] = multiply_add(weights, v[b], sums[r][b]);
      }
    }
  };
  constexpr bool kByRows = B * kParts <= kHeld;
  constexpr int kTurn = !kByRows || kParts >= 4 || B * 4 > kHeld ? 1 : 4 / kParts;
  const auto turn = [&]<int kChunks>(int64_t i, int64_t left) SLUICE_DOT_TARGET
      __attribute__((always_inline)) {
    if (i % 512 == 0) decode.begin(i);
    if constexpr (kByRows) {
      by_rows.template operator()<kChunks>(i, left);
    } else {
      by_parts(i, left);
    }
  };
  int64_t i = 0;
  for (; i + kTurn * D::kChunk <= count; i += kTurn * D::kChunk)
    turn.template operator()<kTurn>(i, D::kChunk);
  for (; i < count; i += D::kChunk) turn.template operator()<1>(i, least(count - i, D::kChunk));
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) y[r][b] = total(sums[r][b]);
}

/// The scale number k of each row.
template <int R>
SLUICE_DOT_INLINE void scale_rows(const Streams<R>& w, int k, float (&out)[R]) {
  for (int r = 0; r < R; ++r) out[r] = load_f32(w.scales[r] + 4 * k);
}

/// y += s_k (sum over set bits of x - sum over the others) of the bits at `plane`.
template <int R, int B>
SLUICE_DOT_INLINE void add_plane(const Streams<R>& w, int64_t plane, int k, int64_t columns,
                                 const Inputs<B>& in, float (&y)[R][B]) {
  float part[R][B], scale[R];
  const float* x[B];
  for (int b = 0; b < B; ++b) x[b] = in.floats(b);
  float_dot<Decode<Format::binary, R>, R, B>(behind(w, plane), columns, x, in, part);
  scale_rows(w, k, scale);
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b)
      y[r][b] = multiply_add(scale[r], multiply_add(2.0f, part[r][b], -in.header(b).sum), y[r][b]);
}

template <Format kFormat>
struct Product {
  static constexpr int64_t kMost = most_rows(kFormat, false);
  template <int B>
  static constexpr int kRows = side_by_side(kFormat, false, B);
  static constexpr int kFewest = fewest_rows(kFormat, false), kWidest = 4;

  template <int R, int B>
  SLUICE_DOT_INLINE void rows(const Streams<R>& w, int64_t columns, const Inputs<B>& in,
                              float (&y)[R][B]) {
    const int64_t plane = bit_plane_bytes(columns);
    const float* x[B];
    for (int b = 0; b < B; ++b) x[b] = in.floats(b);
    if constexpr (kFormat == Format::binary || kFormat == Format::binary2) {
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) y[r][b] = 0;
      add_plane(w, 0, 0, columns, in, y);
    } else if constexpr (kFormat == Format::mixed) {
      for (int b = 0; b < B; ++b) x[b] = in.template extra<float>(b);
      float_dot<Decode<Format::i8, R>, R, B>(behind(w, plane), bundle::salient_columns(columns), x,
                                             in, y);
    } else {
      float_dot<Decode<kFormat, R>, R, B>(w, columns, x, in, y);
    }
    if constexpr (kFormat == Format::mixed || kFormat == Format::i8 || kFormat == Format::ternary) {
      float scale[R];
      scale_rows(w, 0, scale);
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) y[r][b] *= scale[r];
    }
    if constexpr (kFormat == Format::binary2) add_plane(w, plane, 1, columns, in, y);
    if constexpr (kFormat == Format::mixed) add_plane(w, 0, 1, columns, in, y);
  }
};
