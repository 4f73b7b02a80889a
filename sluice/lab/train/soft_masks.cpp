// Soft masks: the weights a forward sees are w * m(s); scores s learn beside them.
#include <torch/types.h>

#include <cmath>

#include "sluice/lab/train/sparse_state.h"

namespace sluice::lab {
namespace {

constexpr double kFirstScore = 1;   // open, and not so far that its sigmoid is flat
constexpr double kRampShare = 0.8;  // of the soft steps, after which the target is the density
constexpr const char* kSoftMasks = "soft masks";

/// [1, ...] but for the first: one number for each output.
std::vector<int64_t> unit_shape(at::IntArrayRef weight) {
  std::vector<int64_t> shape(weight.size(), 1);
  shape[0] = weight[0];
  return shape;
}

}  // namespace

SoftMasks::SoftMasks(const std::map<std::string, at::Tensor>& weights, const SparseOptions& options,
                     int64_t steps)
    : options_(options),
      soft_steps_(std::max<int64_t>(1, std::llround(options.harden * static_cast<double>(steps)))) {
  NamedParameters parameters;
  for (const auto& [path, weight] : weights) {
    const std::vector<int64_t> shape =
        options.granularity == "unit" ? unit_shape(weight.sizes()) : weight.sizes().vec();
    at::Tensor score = at::full(shape, kFirstScore, weight.options().requires_grad(false));
    score.requires_grad_(true);
    scores_[path] = score;
    shapes_[path] = weight.sizes().vec();
    count_ += score.numel();
    parameters.emplace_back(path, score);
  }
  OptimizerOptions adam;
  adam.kind = "adam";
  adam.rate = options.rate;
  adam.weight_decay = 0;
  optimizer_ = build_optimizer(adam, parameters);
  start_ = density(0);
}

at::Tensor SoftMasks::mask_of(const std::string& path, int64_t step) const {
  const at::Tensor& score = scores_.at(path);
  if (options_.estimator == "straight_through") {
    const at::Tensor soft = at::sigmoid(score);
    return (score.detach() > 0).to(score.scalar_type()) + soft - soft.detach();
  }
  // Steeper by the same factor every step.
  const double t = std::min(1.0, static_cast<double>(step) / static_cast<double>(soft_steps_));
  return at::sigmoid(score * std::pow(options_.slope, t));
}

double SoftMasks::target(int64_t step) const {
  const double ramp = std::max(1.0, kRampShare * static_cast<double>(soft_steps_));
  const double left = std::max(0.0, 1 - static_cast<double>(step) / ramp);
  return options_.density + (start_ - options_.density) * left * left * left;
}

void SoftMasks::mask(const std::map<std::string, at::Tensor>& weights, int64_t step) {
  const at::NoGradGuard no_grad;
  for (const auto& [path, weight] : weights) {
    dense_[path] = weight.detach().clone();
    at::Tensor seen = weight;
    seen.mul_(mask_of(path, step));
  }
}

void SoftMasks::restore(const std::map<std::string, at::Tensor>& weights) {
  const at::NoGradGuard no_grad;
  for (const auto& [path, weight] : weights) {
    at::Tensor seen = weight;
    seen.copy_(dense_.at(path));
  }
  dense_.clear();
}

void SoftMasks::learn(const std::map<std::string, at::Tensor>& weights, int64_t step) {
  // d loss / d m = gradient of the masked weight * weight, d loss / d w = that gradient * m.
  at::Tensor surrogate, sum;
  for (const auto& [path, weight] : weights) {
    const at::Tensor m = mask_of(path, step);
    sum = sum.defined() ? sum + m.sum() : m.sum();
    at::Tensor gradient = weight.grad();
    if (!gradient.defined()) continue;
    const at::Tensor part = (gradient.detach() * dense_.at(path) * m).sum();
    surrogate = surrogate.defined() ? surrogate + part : part;
    const at::NoGradGuard no_grad;
    gradient.mul_(m.detach());
  }
  const at::Tensor off = sum / static_cast<double>(count_) - target(step);
  at::Tensor loss = off * off * (options_.pressure * static_cast<double>(count_));
  if (surrogate.defined()) loss = loss + surrogate;
  for (auto& [path, score] : scores_) score.mutable_grad() = at::Tensor();
  loss.backward();
  optimizer_->step();
  restore(weights);
}

double SoftMasks::density(int64_t step) const {
  const at::NoGradGuard no_grad;
  double kept = 0, all = 0;
  for (const auto& [path, score] : scores_) {
    const at::Tensor m = mask_of(path, step);
    double numel = 1;
    for (const int64_t size : shapes_.at(path)) numel *= static_cast<double>(size);
    kept += m.mean(at::kDouble).item<double>() * numel;
    all += numel;
  }
  return kept / all;
}

MaskSet SoftMasks::harden() const {
  std::vector<at::Tensor> all;
  for (const auto& [path, score] : scores_)
    all.push_back(score.detach().to(at::kCPU, at::kDouble).flatten());
  const at::Tensor scores = at::cat(all);
  const auto keep =
      std::max<int64_t>(1, std::llround(options_.density * static_cast<double>(scores.numel())));
  const at::Tensor hard = highest(scores, keep).to(at::kDouble);
  MaskSet masks;
  int64_t at = 0;
  for (const auto& [path, score] : scores_) {
    const at::Tensor own = hard.narrow(0, at, score.numel()).view(score.sizes());
    at += score.numel();
    masks.set(path,
              own.expand(shapes_.at(path)).to(score.options().requires_grad(false)).contiguous());
  }
  return masks;
}

std::map<std::string, at::Tensor> SoftMasks::state() const {
  std::map<std::string, at::Tensor> out;
  for (const auto& [path, score] : scores_) out["score/" + path] = score.detach();
  for (const auto& [name, tensor] : optimizer_->state()) out["adam/" + name] = tensor;
  return out;
}

void SoftMasks::load_state(const std::map<std::string, at::Tensor>& state) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> moments;
  size_t used = 0;
  for (const auto& [name, tensor] : state) {
    if (name.starts_with("adam/")) {
      moments[name.substr(5)] = tensor;
      continue;
    }
    const auto score = scores_.find(name.starts_with("score/") ? name.substr(6) : "");
    if (score == scores_.end() || score->second.sizes() != tensor.sizes())
      fail(Code::format, "{}: '{}' of {} fits no weight", kSoftMasks, name,
           to_string(tensor.sizes().vec()));
    score->second.copy_(tensor);
    ++used;
  }
  if (used != scores_.size())
    fail(Code::format, "{}: the checkpoint holds the scores of {} of {} weights", kSoftMasks, used,
         scores_.size());
  optimizer_->load_state(moments, "checkpoint");
}

}  // namespace sluice::lab
