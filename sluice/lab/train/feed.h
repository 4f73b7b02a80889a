// Batches for training and evaluation: a data split as tensors on the device, in an order that
// depends on (seed, epoch) only.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "sluice/data/dataset.h"

namespace sluice::lab {

struct Batch {
  at::Tensor inputs;  ///< [batch, channels, height, width], normalised; or ids [batch, T] int64
  at::Tensor labels;  ///< [batch], or [batch, T]: the next ids; int64
};

/// Where a Trainer gets its batches.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  virtual int64_t count() const = 0;  ///< samples of an epoch
  /// Samples [first, first + samples) of the batch of `batch` samples that step `step` takes. A
  /// function of its arguments.
  virtual Batch at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                        int64_t samples) = 0;
  /// The whole batch.
  Batch at_step(int64_t step, int64_t batch, uint64_t seed) {
    return at_step(step, batch, seed, 0, batch);
  }
  /// Throws Error{config} when batches of that size cannot be had.
  virtual void check_batch(int64_t batch) const = 0;
};

class Feed : public BatchSource {
 public:
  Feed(const data::Split& split, double mean, double std, c10::Device device);
  int64_t count() const override { return labels_.size(0); }
  int64_t batches_per_epoch(int64_t batch) const {
    return count() / batch;
  }  ///< the last partial batch is dropped
  using BatchSource::at_step;
  /// Of an endless stream of epochs, each shuffled by (seed, epoch).
  Batch at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                int64_t samples) override;
  void check_batch(int64_t batch) const override;
  /// In order, for evaluation; the last may be smaller.
  Batch range(int64_t first, int64_t count) const;

 private:
  at::Tensor inputs_, labels_, order_;
  int64_t order_epoch_ = -1;
  uint64_t order_seed_ = 0;
};

}  // namespace sluice::lab
