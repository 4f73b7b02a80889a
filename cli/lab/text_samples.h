// Text files as inputs of models, for calibration and tuning.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "sluice/lab/model/model.h"

namespace sluice::cli {

struct TextSamples {
  at::Tensor ids;      ///< [n, T], whole numbers as floats
  at::Tensor lengths;  ///< [n] int64; undefined: all of T
};

/// Up to `limit` runs of exactly `tokens` tokens, one behind the other through the file, without
/// special tokens. Throws Error{missing} for a model without a tokenizer, Error{usage} naming
/// `option` for a file that is too short.
TextSamples load_runs(const std::string& path, const lab::Model& model, int64_t limit,
                      int64_t tokens, const std::string& option);
/// Up to `limit` lines that are not blank, with special tokens, cut to `tokens`.
TextSamples load_lines(const std::string& path, const lab::Model& model, int64_t limit,
                       int64_t tokens, const std::string& option);

}  // namespace sluice::cli
