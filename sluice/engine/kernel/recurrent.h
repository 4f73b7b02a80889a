// Recurrent cells over the rows of one sequence, gates as in the usual frameworks:
//
//   lstm  i, f, g, o = W x + R h + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);
//         h' = sigmoid(o) tanh(c')
//   gru   r, z = sigmoid(W x + R h + b);  n = tanh(W_n x + b_n + r (R_n h + b_r)), or with
//         reset_before tanh(W_n x + b_n + R_n (r h) + b_r);  h' = (1 - z) n + z h
//
// The products with x are made for all rows at once, those with h row by row.
#pragma once
#include <cstddef>
#include <vector>

namespace sluice::engine {

struct RecurrentWeights {
  size_t in = 0, hidden = 0;
  std::vector<float> weight;          ///< [gates H][I]
  std::vector<float> recurrent;       ///< [gates H][H]
  std::vector<float> bias;            ///< [gates H], or empty
  std::vector<float> recurrent_bias;  ///< gru: [H], or empty
};

/// Floats of scratch for `rows` rows and `gates` 4 or 3.
size_t recurrent_scratch(const RecurrentWeights& w, size_t gates, size_t rows);

/// x [rows][I] -> out [rows][H], or with `cells` [rows][2H] with the cell states behind. h0, c0 [H]
/// may be null (zeros). `reverse` runs from the last row to the first.
void lstm(const RecurrentWeights& w, const float* x, const float* h0, const float* c0, size_t rows,
          bool reverse, bool cells, float* out, float* scratch);
void gru(const RecurrentWeights& w, const float* x, const float* h0, size_t rows, bool reverse,
         bool reset_before, float* out, float* scratch);

}  // namespace sluice::engine
