// The tree of a decoder's states: one forward for all patterns of a token.
#include <torch/types.h>

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/choice.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/inspect/oracle.h"
#include "sluice/lab/inspect/oracle_steps.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

struct TreeBlock {
  std::string path;
  TransformerBlock* block;
  Attention* attention;  ///< nullptr: none
  Choice* choice;        ///< nullptr: its ffn runs as it is
};

std::vector<TreeBlock> tree_blocks(const Model& model) {
  auto* decoder = dynamic_cast<Decoder*>(model.root.get());
  if (decoder == nullptr) {
    fail(Code::unsupported, "oracle: a tree is made of a decoder, this model is a {}",
         model.root->kind());
  }
  auto& blocks = decoder->slot("blocks").as<Sequential>();
  std::vector<TreeBlock> result;
  size_t found = 0;
  for (const auto& slot : blocks.slots()) {
    TreeBlock each{join_path("blocks", slot->name()), nullptr, nullptr, nullptr};
    each.block = dynamic_cast<TransformerBlock*>(slot->get().get());
    const bool turned = each.block != nullptr &&
                        (each.block->has_slot("attn_turn") || each.block->has_slot("ffn_turn"));
    if (each.block == nullptr || each.block->post_norm() || turned) {
      fail(Code::unsupported,
           "oracle: {}: expected a transformer block with its norms before the branches, and no "
           "layer on the stream",
           each.path);
    }
    const Slot &attn = each.block->slot("attn"), &ffn = each.block->slot("ffn");
    if (!attn.empty()) each.attention = &attn.as<Attention>();
    if (!ffn.empty()) each.choice = dynamic_cast<Choice*>(ffn.get().get());
    found += each.choice != nullptr;
    result.push_back(each);
  }
  for (const ChoiceRef& ref : choices_of(*model.root)) {
    bool known = false;
    for (const TreeBlock& each : result) known = known || each.choice == ref.choice;
    if (!known) {
      fail(Code::unsupported, "oracle: {}: a tree has choices in the ffn of blocks only", ref.path);
    }
  }
  if (found == 0) fail(Code::unsupported, "oracle: no block's ffn is a choice; there is no tree");
  return result;
}

struct Leaves {
  at::Tensor states;  ///< [patterns, B, T, D]
  at::Tensor routed;  ///< [B, T] int64; undefined: a choice has no router
};

/// Follows all choices of all blocks from x [B, T, D].
Leaves grow(const std::vector<TreeBlock>& blocks, const at::Tensor& x, int64_t reference,
            Context& context) {
  Leaves tree;
  tree.states = x.unsqueeze(0);
  int64_t place = 0, weight = 1;  // of the reference among the states; of the next digit
  bool routed = true;
  at::Tensor led = at::zeros({1, x.size(0), x.size(1)}, x.options().dtype(at::kLong));
  for (const TreeBlock& each : blocks) {
    const auto& slot = [&](const char* name) -> const Slot& { return each.block->slot(name); };
    if (each.attention != nullptr) {
      const at::Tensor normed = through(slot("attn_norm"), tree.states, context);
      tree.states = tree.states + each.attention->beside(normed[place], normed, context);
    }
    if (slot("ffn").empty()) continue;
    const at::Tensor normed = through(slot("ffn_norm"), tree.states, context);
    if (each.choice == nullptr) {
      tree.states = tree.states + slot("ffn").forward(normed, context);
      continue;
    }
    routed = routed && each.choice->routed();
    if (routed) {
      const at::Tensor own =
          normed.gather(0, led.unsqueeze(-1).expand({1, x.size(0), x.size(1), x.size(2)}));
      led = led + weight * each.choice->routed_choice(own, context);
    }
    std::vector<at::Tensor> next;
    for (int64_t option = 0; option < each.choice->options(); ++option) {
      next.push_back(tree.states + each.choice->run_option(option, normed, context));
    }
    tree.states = at::cat(next, 0);
    place += weight * reference;
    weight *= each.choice->options();
  }
  if (routed) tree.routed = led.squeeze(0);
  return tree;
}

}  // namespace

ChoiceTable tree_losses(Model& model, const at::Tensor& ids, const at::Tensor& labels,
                        int64_t reference, int64_t batch) {
  const std::vector<TreeBlock> blocks = tree_blocks(model);
  const auto& decoder = dynamic_cast<const Decoder&>(*model.root);
  ChoiceTable table;
  for (const TreeBlock& each : blocks) {
    if (each.choice == nullptr) continue;
    each.choice->option(reference);  // throws for one that is not there
    table.slots.push_back(join_path(each.path, "ffn"));
    table.choices.push_back(each.choice->options());
  }
  const int64_t patterns = table.patterns();
  if (ids.dim() != 2 || labels.sizes() != ids.sizes() || ids.size(1) > decoder.context_length()) {
    fail(Code::shape, "oracle: ids {} and labels {}; expected [B, T] twice, T up to {}",
         to_string(ids.sizes()), to_string(labels.sizes()), decoder.context_length());
  }
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(*model.root);
  std::vector<at::Tensor> losses, routed;
  Context context;
  for (int64_t first = 0; first < ids.size(0); first += batch) {
    const int64_t count = std::min(batch, ids.size(0) - first);
    const at::Tensor part = as_input(ids.narrow(0, first, count), model);
    const at::Tensor wanted = labels.narrow(0, first, count).to(part.device());
    at::Tensor x = decoder.slot("embed").forward(part, context);
    if (!decoder.slot("positions").empty()) {
      const at::Tensor index = at::arange(ids.size(1), part.options().dtype(at::kLong));
      x = x + decoder.slot("positions").forward(index.unsqueeze(0), context);
    }
    const Leaves leaves =
        grow(blocks, through(decoder.slot("embed_norm"), x, context), reference, context);
    std::vector<at::Tensor> columns;
    for (int64_t p = 0; p < patterns; ++p) {  // one at a time: logits are the largest value
      const at::Tensor rows = through(decoder.slot("norm"), leaves.states[p], context);
      columns.push_back(row_losses(decoder.logits(rows, context), wanted));
    }
    losses.push_back(at::stack(columns, 1).cpu());
    if (leaves.routed.defined()) routed.push_back(leaves.routed.flatten().cpu());
  }
  table.losses = at::cat(losses, 0);
  if (!routed.empty()) table.routed = at::cat(routed);
  return table;
}

}  // namespace sluice::lab
