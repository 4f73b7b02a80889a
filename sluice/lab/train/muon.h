// Muon: momentum whose singular values are all made about 1 before it is applied. Every direction
// of a hidden matrix then moves equally far.
//
//   M <- mu M + G                       G: gradient
//   O  = orthogonalize(G + mu M)        Nesterov
//   W <- W - rate (0.2 sqrt(max(rows, columns)) O + decay W)
//
// Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the factor, which gives updates
// the size of AdamW's so that one rate serves both, is of Liu et al. 2025, arXiv 2502.16982.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace sluice::lab {

inline constexpr char kMomentumSuffix[] = ".momentum_buffer";

/// U V^T of m = U S V^T, about: `steps` Newton-Schulz steps of degree 5 leave singular values in
/// roughly [0.7, 1.2]. m [.., rows, columns]; works in bf16 on a GPU.
at::Tensor orthogonalize(const at::Tensor& m, int steps = 5);

/// A 2-D weight that is neither an embedding table nor the last layer: what Muon is for. By the
/// names of the lab's models: embed, positions, segments, head, fc.
bool is_hidden_matrix(const std::string& name, const at::Tensor& parameter);

struct MuonOptions {
  double rate = 1e-3, momentum = 0.95, weight_decay = 0.1;
};

class Muon {
 public:
  Muon(std::vector<std::pair<std::string, at::Tensor>> parameters, MuonOptions options);
  void set_rate(double rate) { options_.rate = rate; }
  void step();
  std::map<std::string, at::Tensor> state() const;
  /// Throws Error{format} naming a tensor that is misshapen or of no parameter.
  void load_state(const std::map<std::string, at::Tensor>& state, const std::string& what);

 private:
  std::vector<std::pair<std::string, at::Tensor>> parameters_;
  std::vector<at::Tensor> momentum_;  ///< undefined before the first step
  MuonOptions options_;
};

}  // namespace sluice::lab
