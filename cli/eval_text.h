// sluice eval on texts: perplexity of decoders, retrieval and accuracy of encoders, beside their
// cost.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/budget_curve.h"
#include "cli/verb.h"

namespace CLI {
class App;
}

namespace sluice::cli {

struct EvalTextOptions {
  std::string text, retrieval, labelled;  ///< file, folder, file; one of them
  int64_t window = 0, stride = 0, max_tokens = 0, batch = 16;
  CurveOptions curve;
  bool wanted() const { return !text.empty() || !retrieval.empty() || !labelled.empty(); }
};
void add_eval_text_options(CLI::App& app, EvalTextOptions& options);
/// One row per model, or per size with a curve: quality, metered MACs, speed and size.
int evaluate_texts(const std::vector<std::string>& models, const EvalTextOptions& options,
                   std::optional<int64_t> budget_macs, const Globals& globals);

}  // namespace sluice::cli
