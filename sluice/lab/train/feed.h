// Batches for training and evaluation: a data split as tensors on the device, in an order that
// depends on (seed, epoch) only.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "sluice/data/dataset.h"

namespace sluice::lab {

struct Batch {
  at::Tensor inputs;  ///< [batch, channels, height, width], normalised
  at::Tensor labels;  ///< [batch] int64
};

class Feed {
 public:
  Feed(const data::Split& split, double mean, double std, c10::Device device);
  int64_t count() const { return labels_.size(0); }
  int64_t batches_per_epoch(int64_t batch) const {
    return count() / batch;
  }  ///< the last partial batch is dropped
  /// Batch number `step` of an endless stream of epochs, each shuffled by (seed, epoch).
  Batch at_step(int64_t step, int64_t batch, uint64_t seed);
  /// In order, for evaluation; the last may be smaller.
  Batch range(int64_t first, int64_t count) const;

 private:
  at::Tensor inputs_, labels_, order_;
  int64_t order_epoch_ = -1;
  uint64_t order_seed_ = 0;
};

}  // namespace sluice::lab
