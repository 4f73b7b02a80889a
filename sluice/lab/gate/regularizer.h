// Losses over the gate log. All return a scalar tensor with gradient; an empty log gives 0.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "sluice/lab/brick/context.h"

namespace sluice::lab {

/// Exponential averages of each gate's batch mean, so that small batches do not shake the loss.
/// State goes into checkpoints.
class GateMeans {
 public:
  explicit GateMeans(double decay = 0.9) : decay_(decay) {}
  /// m [units] of one record: the value is the running average, the gradient that of this batch's
  /// mean of p.
  at::Tensor update(const GateRecord& record);
  const std::map<std::string, at::Tensor>& means() const { return means_; }
  void restore(std::map<std::string, at::Tensor> means) { means_ = std::move(means); }
  void clear() { means_.clear(); }

 private:
  double decay_;
  std::map<std::string, at::Tensor> means_;
};

/// Means of all records, by path; call once per forward and hand the result to the losses.
struct BatchMeans {
  std::vector<at::Tensor> means;      ///< [units] each
  std::vector<at::Tensor> unit_macs;  ///< [units] each
};
BatchMeans batch_means(const GateLog& log, GateMeans* averages);

/// mean_j m_j (1 - m_j): 0 only if every gate says the same for the whole batch (consensus; Zhi et
/// al. 2023).
at::Tensor polarization_loss(const BatchMeans& means);
/// (sum_j c_j m_j / sum_j c_j - kept)^2 with c_j the unit's MACs.
at::Tensor budget_loss(const BatchMeans& means, double kept);
/// mean_j m_j.
at::Tensor l1_loss(const BatchMeans& means);
/// Per-sample certainty, mean p (1 - p): not consensus; for comparison.
at::Tensor certainty_loss(const GateLog& log);
/// units * sum_j f_j P_j per record, f the share of hard decisions, P the mean probability share
/// (Switch, Fedus et al. 2021).
at::Tensor load_balance_loss(const GateLog& log);

}  // namespace sluice::lab
