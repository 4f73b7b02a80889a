// sluice run --text: vectors of texts, by bundles that embed.
#pragma once
#include <string>
#include <vector>

#include "cli/verb.h"
#include "sluice/engine/graph/network.h"

namespace sluice::cli {

/// Prints a vector per text: numbers on one line, or JSON with the tokens they come from.
int embed_texts(const engine::Network& network, const std::vector<std::string>& texts,
                const Budget& budget, const Globals& globals);

}  // namespace sluice::cli
