#include "sluice/lab/train/muon.h"

#include <torch/types.h>

#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"

namespace sluice::lab {

at::Tensor orthogonalize(const at::Tensor& m, int steps) {
  const bool tall = m.size(-2) > m.size(-1);
  auto x = tall ? m.transpose(-2, -1) : m;
  if (x.is_cuda()) x = x.to(at::kBFloat16);
  // The iteration converges for singular values up to about 1; the Frobenius norm bounds them.
  x = x / (x.pow(2).sum({-2, -1}, true).sqrt() + 1e-7);
  for (int i = 0; i < steps; ++i) {
    const auto a = at::matmul(x, x.transpose(-2, -1));
    const auto b = -4.7750 * a + 2.0315 * at::matmul(a, a);
    x = 3.4445 * x + at::matmul(b, x);
  }
  return (tall ? x.transpose(-2, -1) : x).to(m.scalar_type());
}

bool is_hidden_matrix(const std::string& name, const at::Tensor& parameter) {
  if (parameter.dim() != 2) return false;
  const std::string first = name.substr(0, name.find('.'));
  for (const char* outer : {"embed", "positions", "segments", "types", "head", "fc"}) {
    if (first == outer) return false;
  }
  return true;
}

Muon::Muon(std::vector<std::pair<std::string, at::Tensor>> parameters, MuonOptions options)
    : parameters_(std::move(parameters)), momentum_(parameters_.size()), options_(options) {}

void Muon::step() {
  const torch::NoGradGuard no_grad;
  // Matrices of one shape go through the iteration together: on a GPU the small products of one
  // alone would leave it idle. In the order of the parameters, so that runs repeat.
  std::map<std::vector<int64_t>, std::vector<size_t>> shapes;
  std::vector<at::Tensor> updates(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto& gradient = parameters_[i].second.grad();
    if (!gradient.defined()) continue;
    if (!momentum_[i].defined()) momentum_[i] = torch::zeros_like(gradient);
    momentum_[i].mul_(options_.momentum).add_(gradient);
    updates[i] = gradient.add(momentum_[i], options_.momentum);
    shapes[gradient.sizes().vec()].push_back(i);
  }
  for (const auto& [shape, indices] : shapes) {
    if (updates[indices[0]].is_cuda()) {
      std::vector<at::Tensor> stack;
      for (const size_t i : indices) stack.push_back(updates[i]);
      const auto made = orthogonalize(torch::stack(stack));
      for (size_t j = 0; j < indices.size(); ++j)
        updates[indices[j]] = made[static_cast<int64_t>(j)];
    } else {
      for (const size_t i : indices) updates[i] = orthogonalize(updates[i]);
    }
    const double factor = 0.2 * std::sqrt(double(std::max(shape[0], shape[1])));
    for (const size_t i : indices) {
      at::Tensor weight = parameters_[i].second;
      weight.mul_(1 - options_.rate * options_.weight_decay)
          .add_(updates[i], -options_.rate * factor);
    }
  }
}

std::map<std::string, at::Tensor> Muon::state() const {
  std::map<std::string, at::Tensor> out;
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (momentum_[i].defined()) out[parameters_[i].first + kMomentumSuffix] = momentum_[i];
  return out;
}

void Muon::load_state(const std::map<std::string, at::Tensor>& state, const std::string& what) {
  size_t used = 0;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto& [name, parameter] = parameters_[i];
    momentum_[i] = at::Tensor();
    const auto found = state.find(name + kMomentumSuffix);
    if (found == state.end()) continue;
    if (found->second.sizes() != parameter.sizes())
      fail(Code::format, "{}: tensor 'optimizer.{}' has shape {}, the parameter needs {}", what,
           found->first, to_string(found->second.sizes().vec()),
           to_string(parameter.sizes().vec()));
    momentum_[i] = found->second.to(parameter.options().requires_grad(false), false, true);
    ++used;
  }
  if (used != state.size())
    fail(Code::format, "{}: {} of {} optimizer tensors belong to no parameter of the model", what,
         state.size() - used, state.size());
}

}  // namespace sluice::lab
