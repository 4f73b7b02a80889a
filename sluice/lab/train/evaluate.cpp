#include <torch/types.h>

#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

LabEvaluation evaluate(Model& model, const Feed& feed, bool log_gates, int64_t batch,
                       int64_t size) {
  torch::NoGradGuard no_grad;
  auto& root = *model.root;
  const bool was_training = root.is_training();
  root.eval();
  LabEvaluation out;
  std::vector<at::Tensor> predictions;
  at::Tensor loss, hits;
  std::map<std::string, at::Tensor> open;
  for (int64_t first = 0; first < feed.count(); first += batch) {
    const Batch part = feed.range(first, std::min(batch, feed.count() - first));
    GateLog log;
    Context context;
    context.size = size;
    if (log_gates) context.gate_log = &log;
    const auto logits = model.forward(part.inputs, context);
    const auto best = logits.argmax(1);
    predictions.push_back(best);
    const auto part_loss =
        at::cross_entropy_loss(logits, part.labels, {}, at::Reduction::Sum).to(torch::kDouble);
    const auto part_hits = (best == part.labels).sum();
    loss = loss.defined() ? loss + part_loss : part_loss;
    hits = hits.defined() ? hits + part_hits : part_hits;
    for (const auto& record : log.records()) {
      // A constant mask may log one row for the whole batch, a gate of tokens one for each.
      auto each =
          record.decision.dim() > 2 ? record.decision.flatten(1, -2).mean(1) : record.decision;
      // Behind a gate of whole tokens there is a row for each that went on, of whichever sample.
      if (each.size(0) != part.labels.size(0)) each = each.mean(0, /*keepdim=*/true);
      const auto rows = each.expand({part.labels.size(0), each.size(-1)});
      auto& sum = open[record.path];
      const auto part_sum = rows.sum(0).to(torch::kDouble);
      sum = sum.defined() ? sum + part_sum : part_sum;
    }
  }
  const auto n = static_cast<double>(feed.count());
  out.loss = loss.item<double>() / n;
  out.accuracy = hits.item<double>() / n;
  out.predictions = torch::cat(predictions).to(torch::kCPU);
  for (auto& [path, sum] : open) out.gate_means[path] = (sum / n).to(torch::kCPU, torch::kFloat);
  root.train(was_training);
  return out;
}

}  // namespace sluice::lab
