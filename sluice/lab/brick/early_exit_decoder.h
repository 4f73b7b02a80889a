// A decoder whose tokens leave behind chosen layers when what would be predicted there is sure
// enough (CALM: Schuster et al. 2022, arXiv 2207.07061; heads shared as in LayerSkip: Elhoushi et
// al. 2024, arXiv 2404.16710).
#pragma once
#include "sluice/lab/brick/exits.h"
#include "sluice/lab/brick/transformer.h"

namespace sluice::lab {

/// A Decoder with two more slots: gate, an exit_gate with a statistic, one for all exits; and
/// exits: empty, then every exit has the norm and the head of the decoder itself, or a sequential
/// with a head [.., D] to [.., V] for each exit (called as exit_name() has it).
///
/// Behind layer l of `layers` an exit makes logits of every token that is still there, and those
/// whose score reaches the size's threshold (exit_sizes()) have them as their output. A token that
/// left keeps its h as the input of all later layers' keys and values (state propagation, as
/// ExitDecoder), so that later tokens, and the cache of the engine, see every token in every layer.
/// In the last size, and before exit_sizes() are set, nobody leaves: the decoder itself, in its
/// cost too (in the engine a run for the last row alone computes the last layer for all rows).
class EarlyExitDecoder final : public Decoder, public ExitNetwork {
 public:
  /// `layers`: how many have run at each exit, ascending. `sizes` are checked with the slots.
  EarlyExitDecoder(int64_t context, std::vector<int64_t> layers,
                   std::vector<ExitThresholds> sizes = {});
  std::string kind() const override { return "early_exit_decoder"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& ids, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  /// Of tokens that take the whole depth and every exit's head.
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

  int64_t exit_count() const override { return std::ssize(layers_); }
  std::string exit_name(int64_t index) const override;
  DepthTable exit_table(const at::Tensor& ids, Context& context) const override;
  std::vector<double> exit_costs(const Shape& input, const std::vector<bool>& open) const override;
  const std::vector<int64_t>& exit_layers() const { return layers_; }
  /// How many layers each token ran in the context's size, [B, T] int64, with the logits.
  struct Result {
    at::Tensor logits, layers;
  };
  Result run(const at::Tensor& ids, Context& context) const;

 private:
  int64_t depth() const;
  const Slot& layer(int64_t index) const;
  at::Tensor normed_logits(const at::Tensor& h, Context& context) const;
  at::Tensor exit_logits(size_t exit, const at::Tensor& h, Context& context) const;
  bundle::Value lower_exit(bundle::Builder& builder, const bundle::Value& h, int64_t exit,
                           const std::string& path) const;
  std::vector<int64_t> layers_;
  Slot *gate_, *exits_;
};

BrickPtr make_early_exit_decoder(const Json& attributes);

}  // namespace sluice::lab
