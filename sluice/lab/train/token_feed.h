// Windows of a token file as batches: ids and, as labels, the ids that follow them.
#pragma once
#include "sluice/data/text/token_file.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/train/feed.h"

namespace sluice::lab {

/// Windows of `context` + 1 ids, cut one after the other from where (seed, epoch) says, in an order
/// that (seed, epoch) gives; each epoch sees every id about once. Batches go on over the end of an
/// epoch.
class TokenFeed : public BatchSource {
 public:
  /// Throws Error{config} when the split has fewer than context + 1 ids.
  TokenFeed(data::TokenFile file, data::TextSplit split, int64_t context, c10::Device device);
  int64_t count() const override { return windows_; }
  int64_t context() const { return context_; }
  using BatchSource::at_step;
  Batch at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                int64_t samples) override;
  void check_batch(int64_t batch) const override;

 private:
  struct Epoch {
    int64_t number = -1, offset = 0;
    uint64_t seed = 0;
    std::vector<int64_t> order;
  };
  const Epoch& epoch(int64_t number, uint64_t seed);
  data::TokenFile file_;
  data::TextSplit split_;
  int64_t context_, windows_;
  c10::Device device_;
  Epoch epochs_[2];  // a batch may see two
};

struct TextEvaluation {
  double loss = 0;  ///< mean cross-entropy of the next id, in nats
  int64_t tokens = 0;
};

/// Over consecutive windows of the split, at most `max_tokens` ids (0: all), in evaluation mode
/// without gradients. `bf16`: matrix products as in training with that precision; `size` as
/// Context::size.
TextEvaluation evaluate_text(Model& model, const data::TokenFile& file, data::TextSplit split,
                             int64_t context, int64_t max_tokens = 0, bool bf16 = false,
                             int64_t batch = 16, int64_t size = -1);

}  // namespace sluice::lab
