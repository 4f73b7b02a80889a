#include "sluice/lab/train/feed.h"

#include <torch/types.h>

#include "sluice/base/error.h"
#include "sluice/base/random.h"

namespace sluice::lab {

Feed::Feed(const data::Split& split, double mean, double std, c10::Device device) {
  if (split.count() == 0) fail(Code::missing, "the data split has no samples");
  std::vector<int64_t> shape{split.count()};
  shape.insert(shape.end(), split.sample_shape.begin(), split.sample_shape.end());
  inputs_ = torch::empty(shape, torch::kFloat32);
  data::to_floats(split, 0, split.count(), mean, std,
                  {inputs_.data_ptr<float>(), static_cast<size_t>(inputs_.numel())});
  labels_ = torch::tensor(split.labels, torch::kInt64);
  inputs_ = inputs_.to(device);
  labels_ = labels_.to(device);
}

void Feed::check_batch(int64_t batch) const {
  if (batch < 1 || batch > count())
    fail(Code::config, "batch of {} samples from a split of {}: choose a batch between 1 and {}",
         batch, count(), count());
}

Batch Feed::at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first, int64_t samples) {
  check_batch(batch);
  const int64_t per_epoch = batches_per_epoch(batch);
  const int64_t epoch = step / per_epoch;
  if (epoch != order_epoch_ || seed != order_seed_ || !order_.defined()) {
    // Drawn on the CPU, so that every device sees the same order.
    auto generator =
        at::make_generator<at::CPUGeneratorImpl>(derive_seed(seed, "order", uint64_t(epoch)));
    order_ = torch::randperm(count(), generator, torch::kInt64).to(inputs_.device());
    order_epoch_ = epoch;
    order_seed_ = seed;
  }
  const auto pick = order_.narrow(0, step % per_epoch * batch + first, samples);
  return {inputs_.index_select(0, pick), labels_.index_select(0, pick)};
}

Batch Feed::range(int64_t first, int64_t n) const {
  if (first < 0 || n < 1 || first + n > count())
    fail(Code::usage, "samples [{}, {}) of a split of {}", first, first + n, count());
  return {inputs_.narrow(0, first, n), labels_.narrow(0, first, n)};
}

}  // namespace sluice::lab
