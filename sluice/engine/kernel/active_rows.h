// Which rows of a matrix each of a few tokens works with, and the two products over them: dots on
// the way into a hidden layer, sums on the way out. With one token there is one list. With several,
// either every token keeps its own list and the rows go by in blocks that stay in the cache while
// all tokens use them, or all tokens share the union of the lists with zeros where a token has not
// asked: rows are read from memory once either way, and which one computes less is measured.
#pragma once
#include <cstddef>
#include <cstdint>

#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/kernel/packed_accumulate.h"
#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine {

inline constexpr size_t kMaxTokens = kMaxDotBatch;

/// Lists of one chunk of tokens; memory by `bind`.
struct ActiveRows {
  size_t tokens = 0, rows = 0;
  bool shared = false;
  int32_t* index = nullptr;   ///< [tokens][rows], ascending
  int32_t* merged = nullptr;  ///< [rows]: the union, when shared
  uint8_t* uses = nullptr;    ///< [rows]: bit t when token t asked for the row
  size_t count[kMaxTokens] = {};
  size_t merged_count = 0;  ///< rows that anyone asked for

  static int64_t scratch_bytes(int64_t tokens, int64_t rows);
  void bind(std::byte* scratch, size_t most_tokens, size_t row_count);

  /// After index and count are filled for `tokens` tokens: counts the union and decides, for rows
  /// of that format.
  void settle(bundle::Format format);
  const int32_t* list(size_t token) const { return shared ? merged : index + token * rows; }
  size_t length(size_t token) const { return shared ? merged_count : count[token]; }
  /// Whether token asked for entry j of its list.
  bool asked(size_t token, size_t j) const {
    return !shared || (uses[merged[j]] >> token & 1) != 0;
  }
  /// Pairs of token and row that are computed.
  size_t pairs() const;
};

/// Prepared activations for both ways: all tokens together, and each one alone.
struct ActiveInput {
  DotInput together;
  DotInput alone[kMaxTokens];

  static int64_t scratch_bytes(bundle::Format format, DotKind kind, int64_t columns,
                               int64_t tokens);
};
ActiveInput prepare_active(const bundle::PackedMatrix& matrix, DotKind kind, const float* x,
                           int64_t x_stride, const ActiveRows& rows, std::byte* scratch);

/// out[t][j] = dot of the matrix's row list(t)[j] and token t; out [tokens][rows.rows].
void dot_active(const bundle::PackedMatrix& matrix, const ActiveInput& x, const ActiveRows& rows,
                float* out, int threads);
/// y[t] += sum_j factor[t][j] * row list(t)[j]; factor [tokens][rows.rows].
void accumulate_active(const bundle::PackedMatrix& matrix, const ActiveRows& rows,
                       const float* factor, float* y, size_t y_stride, std::byte* scratch,
                       int threads);

/// Adds to `work` what one of the two products did.
void count_active(const bundle::PackedMatrix& matrix, const ActiveRows& rows, Work* work);

}  // namespace sluice::engine
