// A decoder whose tokens may leave early or end the text: after every layer a controller says stop,
// exit or go on (Sun et al. 2024, arXiv 2401.09964).
#pragma once
#include <functional>

#include "sluice/lab/brick/transformer.h"

namespace sluice::lab {

/// What a controller says of a token after a layer.
enum class ExitAction : int64_t { stop = 0, exit = 1, go_on = 2 };
inline constexpr int64_t kExitActions = 3;

struct ExitDecoderOptions {
  /// Probability above which a token stops the text, or exits; from 0.5 on, so that the action is
  /// also the likeliest of the three. 1: never.
  double stop_threshold = 1, exit_threshold = 1;
  int64_t stop_token = 0;  ///< what a token that stops the text predicts
};

/// Logits [B, T, V] of ids [B, T]. Slots as a Decoder's (the head always filled), then controller:
/// a linear layer D -> 3, shared by all layers, and exits: a sequential of one head D -> V for
/// every layer but the last. After layer i, p = softmax(controller(h)): above stop_threshold for
/// stop the logits are those of the stop token; above exit_threshold for exit they are head i's of
/// h, without a norm. A token that left keeps its h as the input of all later layers' keys and
/// values (state propagation: one norm and two projections a layer), so that the others, and the
/// cache of the engine, see every token in every layer.
///
/// Two sizes (Context::size): 0, all tokens may leave; 1 (the last, and what runs without a
/// choice), every token takes the whole depth. A text is continued by running its prompt in size 1
/// and each further token in size 0.
class ExitDecoder final : public TextRoot {
 public:
  ExitDecoder(int64_t context, const ExitDecoderOptions& options);
  std::string kind() const override { return "exit_decoder"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& ids, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  /// Of a token that takes the whole depth and every head.
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

  struct Result {
    at::Tensor logits;   ///< [B, T, V]
    at::Tensor layers;   ///< [B, T] int64: how many ran for the token
    at::Tensor stopped;  ///< [B, T] bool
  };
  /// [N] int64 of ExitAction for the outputs h [N, D] of layer `layer` (from 0), of the tokens
  /// `rows` [N] of all B T.
  using Decide =
      std::function<at::Tensor(int64_t layer, const at::Tensor& h, const at::Tensor& rows)>;
  /// Tokens at t < first take the whole depth; of the others `decide` says when they leave. By the
  /// controller: by_controller(). Metered as the engine runs it. Without `propagate` (a control)
  /// the keys and values of tokens that left are zeros in later layers.
  Result run(const at::Tensor& ids, int64_t first, const Decide& decide, Context& context,
             bool propagate = true) const;
  Decide by_controller(Context& context) const;
  /// Outputs [B, T, D] of every layer at whole depth.
  std::vector<at::Tensor> states(const at::Tensor& ids, Context& context) const;
  /// What layer `layer`'s head says of its outputs [.., D]; the last layer's is the decoder's own,
  /// with its norm.
  at::Tensor logits(int64_t layer, const at::Tensor& h, Context& context) const;

  int64_t layers() const;
  ExitDecoderOptions options;

 private:
  const TransformerBlock& block(int64_t layer) const;
  at::Tensor stop_logits(const at::Tensor& like) const;
  bundle::Value lower_decision(bundle::Builder& builder, const bundle::Value& h, int64_t layer,
                               const std::string& path) const;
  Slot *head_, *controller_, *exits_;
};

}  // namespace sluice::lab
