// `sluice train` for models of text: [data] has `text` or `tokens`.
//
//   [data]       text = folder, file or name; tokens = token file; held_out = 0.05;
//                train_tokens, held_out_tokens = 0 (all)
//   [tokenizer]  vocab = 4096
//   [model]      name = "decoder" and its options (lab/model/model.h), without vocab
//   [nest]       widths, depths, order, multiple, slots, knobs, mixtures (pass nest), sampling,
//   draws:
//                a nested network of many sizes
//   [sparse]     the fields of lab::SparseOptions: few weights, found while training
//   [train]      as for pictures, and micro_batch, precision = "f32" | "bf16", validate_every,
//                validate_tokens
#pragma once
#include <string>

#include "cli/verb.h"
#include "sluice/base/json_fwd.h"

namespace sluice::cli {

struct TextTraining {
  Json config;
  std::string config_path, output, device = "cpu";
  std::string tokens;         ///< instead of what the configuration says
  std::string events;         ///< folder for TensorBoard; "" none
  std::string held_out_text;  ///< file for the held-out documents; "" none
  bool pack_only = false;
  bool resume = false;
};

/// True when the configuration is of text.
bool is_text_config(const Json& config);

int train_text(const TextTraining& training, const Globals& globals);

}  // namespace sluice::cli
