// What choosing could give at best: the loss of every row under every pattern of choices, and what
// follows from that table. An oracle reads the answer; part of what it gains is the least of many
// tries, and grows with their number. So beside it belong the least of as many random patterns, and
// the controls: patterns exchanged between rows, patterns chosen for another answer. (Duo-LLM:
// Alizadeh et al., arXiv 2410.10846.)
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "sluice/lab/model/model.h"

namespace sluice::lab {

/// A pattern is a number in the mixed radix of the slots' choices, the first slot's digit lowest.
struct ChoiceTable {
  std::vector<std::string> slots;  ///< paths of Choice bricks; "size" for the sizes of the network
  std::vector<int64_t> choices;    ///< of each slot
  at::Tensor losses;               ///< [rows, patterns] f32 on the CPU: cross-entropy in nats
  at::Tensor routed;               ///< [rows] int64: the routers' pattern; undefined: not known

  int64_t rows() const { return losses.size(0); }
  int64_t patterns() const;
  int64_t choice_of(int64_t pattern, size_t slot) const;
  int64_t pattern_of(const std::vector<int64_t>& digits) const;
  /// [patterns] int64: how many slots take `choice`.
  at::Tensor count(int64_t choice) const;
};

/// Every pattern run through the whole network with all rows alike: the slots are the Choice bricks
/// and, where the model has sizes, those. x and labels ([n], or [n, T] of a model that generates)
/// as in training; a row is a sample or a token. In a decoder the keys and values of earlier tokens
/// follow the pattern, too. Throws Error{unsupported} for a model in which nothing can be chosen,
/// Error{limit} for more than 65,536 patterns.
ChoiceTable pattern_losses(Model& model, const at::Tensor& x, const at::Tensor& labels,
                           int64_t batch = 64);

/// Every pattern for every token of a decoder, as a tree: behind layer l a token has as many states
/// as there are beginnings of patterns. Keys and values of earlier tokens are those of one
/// reference pass in which every slot takes choice `reference`; the token's own are its state's.
/// `routed` is where the routers lead. Throws Error{unsupported} naming the slot when the model is
/// no decoder of blocks with their norm before, or has a Choice in another place than a block's
/// ffn.
ChoiceTable tree_losses(Model& model, const at::Tensor& ids, const at::Tensor& labels,
                        int64_t reference = 0, int64_t batch = 1);

/// [rows] int64: each row's best pattern of those that `allowed` [patterns] (bool) marks, of equal
/// ones the first. Throws Error{usage} when none is.
at::Tensor best_patterns(const ChoiceTable& table, const at::Tensor& allowed);
/// The mean loss of rows under `patterns` [rows] int64.
double mean_loss(const ChoiceTable& table, const at::Tensor& patterns);
/// [patterns] f64: mean loss when all rows take it.
at::Tensor shared_losses(const ChoiceTable& table);
/// [rows]: what choosing can gain: loss of `reference` - the least loss.
at::Tensor difficulty(const ChoiceTable& table, int64_t reference);
/// [slots] f64: share of rows whose pattern takes `choice` there.
at::Tensor usage(const ChoiceTable& table, const at::Tensor& patterns, int64_t choice);
/// 0 .. rows - 1 in an order that `seed` alone gives: patterns[order] exchanges them between rows.
at::Tensor exchange_order(int64_t rows, uint64_t seed);
/// The least loss of `tries` patterns drawn for each row from all (with repetition), mean over
/// rows.
double best_of_random(const ChoiceTable& table, int64_t tries, uint64_t seed);

}  // namespace sluice::lab
