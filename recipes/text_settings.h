// The parts of a recipe.toml that all recipes about text read alike.
#pragma once
#include <string>
#include <string_view>

#include "sluice/base/json_fwd.h"
#include "sluice/lab/train/text_corpus.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes {

/// The corpus of `text`, `vocab`, `held_out` and `train_tokens` in `settings`; its token file is
/// `name` in `folder`. Throws Error{config} naming the key that lacks, with `what` before it.
lab::CorpusConfig read_corpus(const Json& settings, const std::string& folder,
                              std::string_view name, std::string_view what);

/// The table `train` in `settings`: AdamW, warm-up and cosine. steps, batch, rate and weight_decay
/// have to be there; beta2 (0.98), warmup (0.05), floor (0.05), optimizer ("adamw"), precision
/// ("f32", or "bf16" for a CUDA device) and checkpoint_every (0) may be. Gradients are clipped to a
/// norm of 1. Throws Error{config} naming a key that lacks or that nothing reads.
lab::TrainOptions read_text_training(const Json& settings, std::string_view what);

}  // namespace sluice::recipes
