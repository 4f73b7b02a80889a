#include "sluice/lab/gate/regularizer.h"

namespace sluice::lab {
namespace {

at::Tensor zero() { return at::zeros({}); }

/// [rows, units] of a record: a gate of tokens has decided for each row of each sample.
at::Tensor by_row(const at::Tensor& decided) { return decided.flatten(0, -2); }

/// [units]; zeros where no row came by (all left before).
at::Tensor mean_of(const at::Tensor& decided) {
  const at::Tensor rows = by_row(decided);
  return rows.size(0) == 0 ? rows.sum(0) : rows.mean(0);
}

}  // namespace

at::Tensor GateMeans::update(const GateRecord& record) {
  const at::Tensor batch = mean_of(record.probability);
  const at::Tensor now = batch.detach();
  at::Tensor& average = means_[record.path];
  if (!average.defined() || average.sizes() != now.sizes()) {
    average = now.clone();  // first seen, or surgery changed the units
  } else {
    average = average.to(now.options()) * decay_ + now * (1 - decay_);
  }
  return batch + (average - now);
}

BatchMeans batch_means(const GateLog& log, GateMeans* averages) {
  BatchMeans result;
  for (const GateRecord& record : log.records()) {
    result.means.push_back(averages != nullptr ? averages->update(record)
                                               : mean_of(record.probability));
    result.unit_macs.push_back(record.unit_macs);
  }
  return result;
}

at::Tensor polarization_loss(const BatchMeans& means) {
  if (means.means.empty()) return zero();
  const at::Tensor m = at::cat(means.means);
  return (m * (1 - m)).mean();
}

at::Tensor budget_loss(const BatchMeans& means, double kept) {
  if (means.means.empty()) return zero();
  const at::Tensor m = at::cat(means.means);
  const at::Tensor c = at::cat(means.unit_macs).to(m.options());
  return ((c * m).sum() / c.sum().clamp_min(1e-12) - kept).pow(2);
}

at::Tensor l1_loss(const BatchMeans& means) {
  return means.means.empty() ? zero() : at::cat(means.means).mean();
}

at::Tensor certainty_loss(const GateLog& log) {
  if (log.empty()) return zero();
  std::vector<at::Tensor> all;
  for (const GateRecord& record : log.records()) {
    const at::Tensor& p = record.probability;
    all.push_back((p * (1 - p)).flatten());
  }
  return at::cat(all).mean();
}

at::Tensor load_balance_loss(const GateLog& log) {
  if (log.empty()) return zero();
  constexpr double kTiny = 1e-12;  // of a row or batch in which everything is closed
  std::vector<at::Tensor> all;
  for (const GateRecord& record : log.records()) {
    const at::Tensor count = by_row(record.decision.detach()).sum(0);
    const at::Tensor share = count / count.sum().clamp_min(kTiny);
    const at::Tensor p = by_row(record.probability);
    const at::Tensor probability = mean_of(p / p.sum(-1, /*keepdim=*/true).clamp_min(kTiny));
    all.push_back((share * probability).sum() * static_cast<double>(p.size(-1)));
  }
  return at::stack(all).mean();
}

}  // namespace sluice::lab
