// sluice run on texts: vectors, classes and continuations, as the bundle's task says.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/size_budget.h"
#include "cli/verb.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/text/sampler.h"

namespace CLI {
class App;
}

namespace sluice::cli {

/// Prints a vector per text (numbers on one line, or JSON with the tokens they come from), or its
/// `top` classes where the model classifies. A budget in time is that of the first text.
int run_texts(const engine::Network& network, const std::vector<std::string>& texts, int64_t top,
              const Budget& budget, const SizeBudget& size, const Globals& globals);

struct GenerateOptions {
  std::vector<std::string> prompts, files;
  int64_t max_tokens = 128, batch = 8;
  engine::Sampling sampling;
  std::vector<std::string> stop;
  std::string draft, draft_size;  ///< a bundle; a size of it, as typed
  std::string prompt_size;        ///< as typed; empty: the same for prompts
  SizeBudget size;                ///< a budget is that of the first prompt's first tokens
  int64_t draft_tokens = 4;
  bool draft_fixed = false;  ///< always as many
  bool wanted() const { return !prompts.empty() || !files.empty(); }
};
void add_generate_options(CLI::App& app, GenerateOptions& options);
/// Prints the text behind each prompt as it comes, and to stderr how fast.
int generate(const engine::Network& network, const GenerateOptions& options, const Budget& budget,
             const Globals& globals);

/// The contents of a file, or of standard input for "-"; throws unless it is UTF-8.
std::string read_text(const std::string& path);

}  // namespace sluice::cli
