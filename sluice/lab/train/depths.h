// A decoder at several depths at once: one pass over all blocks gives what each shorter network
// would say, the first n blocks followed by the shared last norm and head (Sorted LLaMA: Kavehzadeh
// et al. 2023, arXiv 2309.08968).
#pragma once
#include "sluice/lab/brick/brick.h"
#include "sluice/lab/train/feed.h"

namespace sluice::lab {

/// Training form of a decoder. The logits of all depths lie one after another along T, the deepest
/// last: [B, depths * T, V], so that cross-entropy against RepeatedLabels is the mean over the
/// depths. Slots: decoder; with heads of their own (early exits: SFT + ICT there) "head<n>" [V, D]
/// of every depth but the deepest, and no gradient goes into the decoder. Made in code; a file
/// holds the decoder, not this.
class AllDepths final : public Brick {
 public:
  /// `depths`: numbers of blocks, ascending, the last all of them; Error{config} otherwise, and for
  /// another brick than a decoder. Nothing is copied: training trains `decoder`.
  AllDepths(BrickPtr decoder, std::vector<int64_t> depths, bool own_heads = false);
  std::string kind() const override { return "all_depths"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& ids, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  int64_t vocabulary() const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  const std::vector<int64_t>& depths() const { return depths_; }

 private:
  std::vector<int64_t> depths_;
  bool own_heads_;
};

/// A source whose labels [B, T] come `times` times along T.
class RepeatedLabels final : public BatchSource {
 public:
  RepeatedLabels(BatchSource& source, int64_t times) : source_(source), times_(times) {}
  int64_t count() const override { return source_.count(); }
  using BatchSource::at_step;
  Batch at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                int64_t samples) override;
  void check_batch(int64_t batch) const override { source_.check_batch(batch); }

 private:
  BatchSource& source_;
  int64_t times_;
};

}  // namespace sluice::lab
