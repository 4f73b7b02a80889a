#include "sluice/lab/train/token_feed.h"

#include <torch/types.h>

#include <numeric>

#include "sluice/base/error.h"
#include "sluice/base/random.h"
#include "sluice/lab/train/precision.h"

namespace sluice::lab {
namespace {

const char* split_name(data::TextSplit split) {
  return split == data::TextSplit::train ? "training" : "held-out";
}

/// Windows beginning at `starts`, as inputs and labels.
Batch windows_at(const data::TokenFile& file, data::TextSplit split,
                 const std::vector<int64_t>& starts, int64_t context, c10::Device device) {
  auto ids = torch::empty({static_cast<int64_t>(starts.size()), context + 1}, torch::kInt64);
  int64_t* out = ids.data_ptr<int64_t>();
  for (const int64_t start : starts) {
    file.read(split, start, {out, static_cast<size_t>(context + 1)});
    out += context + 1;
  }
  ids = ids.to(device);
  return {ids.narrow(1, 0, context).contiguous(), ids.narrow(1, 1, context).contiguous()};
}

}  // namespace

TokenFeed::TokenFeed(data::TokenFile file, data::TextSplit split, int64_t context,
                     c10::Device device)
    : file_(std::move(file)), split_(split), context_(context), device_(device) {
  const int64_t ids = file_.count(split_);
  if (context_ < 1) fail(Code::config, "context {}: at least 1", context_);
  if (ids < context_ + 1)
    fail(Code::config,
         "{}: {} {} tokens, a window of context {} needs {}; give more text or lower the context",
         file_.path(), ids, split_name(split_), context_, context_ + 1);
  // One less than fit, so that there is room to begin elsewhere each epoch.
  windows_ = std::max<int64_t>(1, (ids - 1) / context_ - 1);
}

void TokenFeed::check_batch(int64_t batch) const {
  if (batch < 1 || batch > 1'000'000) fail(Code::config, "batch {}: 1 to 1000000", batch);
}

const TokenFeed::Epoch& TokenFeed::epoch(int64_t number, uint64_t seed) {
  Epoch& epoch = epochs_[number % 2];
  if (epoch.number != number || epoch.seed != seed) {
    const uint64_t own = derive_seed(seed, "windows", static_cast<uint64_t>(number));
    const int64_t slack = file_.count(split_) - 1 - windows_ * context_;
    epoch.offset = static_cast<int64_t>(own % static_cast<uint64_t>(std::min(context_, slack + 1)));
    epoch.order.resize(static_cast<size_t>(windows_));
    std::iota(epoch.order.begin(), epoch.order.end(), int64_t{0});
    // Fisher-Yates by hand: std::shuffle differs between libraries.
    for (uint64_t i = epoch.order.size(); i > 1; --i)
      std::swap(epoch.order[i - 1], epoch.order[derive_seed(own, "shuffle", i) % i]);
    epoch.number = number;
    epoch.seed = seed;
  }
  return epoch;
}

Batch TokenFeed::at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                         int64_t samples) {
  check_batch(batch);
  std::vector<int64_t> starts;
  for (int64_t i = first; i < first + samples; ++i) {
    const int64_t window = step * batch + i;
    const Epoch& at = epoch(window / windows_, seed);
    starts.push_back(at.offset + at.order[static_cast<size_t>(window % windows_)] * context_);
  }
  return windows_at(file_, split_, starts, context_, device_);
}

TextEvaluation evaluate_text(Model& model, const data::TokenFile& file, data::TextSplit split,
                             int64_t context, int64_t max_tokens, bool bf16, int64_t batch,
                             int64_t size) {
  const int64_t ids = file.count(split);
  if (ids < 2)
    fail(Code::config, "{}: {} {} tokens: nothing to predict", file.path(), ids, split_name(split));
  const torch::NoGradGuard no_grad;
  auto& root = *model.root;
  const bool was_training = root.is_training();
  root.eval();
  const c10::Device device = device_of(root);
  const int64_t predicted = max_tokens > 0 ? std::min(max_tokens, ids - 1) : ids - 1;
  at::Tensor loss;
  int64_t done = 0;
  while (done < predicted) {
    const int64_t length = std::min(context, predicted - done);
    std::vector<int64_t> starts;
    for (; static_cast<int64_t>(starts.size()) < batch && done + length <= predicted;
         done += length)
      starts.push_back(done);
    const Batch part = windows_at(file, split, starts, length, device);
    Context forward;
    forward.size = size;
    at::Tensor logits;
    {
      const Autocast cast(bf16);
      logits = model.forward(part.inputs, forward);
    }
    const auto sum = at::cross_entropy_loss(logits.flatten(0, 1).to(torch::kFloat),
                                            part.labels.flatten(), {}, at::Reduction::Sum)
                         .to(torch::kDouble);
    loss = loss.defined() ? loss + sum : sum;
  }
  root.train(was_training);
  return {loss.item<double>() / double(predicted), predicted};
}

}  // namespace sluice::lab
