// sluice run for networks that read lines of text in pictures.
#pragma once
#include <string>
#include <vector>

#include "cli/verb.h"
#include "sluice/base/cost.h"
#include "sluice/engine/graph/network.h"

namespace sluice::cli {

struct Reading {
  std::string text;
  double confidence = 0;  ///< mean probability of the characters
};

/// What the rows [T, classes] of probabilities or logits say: in each the likeliest class, repeats
/// and blanks (class 0) left out (connectionist temporal classification).
Reading read_classes(const std::vector<float>& output, const Shape& shape,
                     const std::vector<std::string>& labels);

/// Prints the text of each picture, a line of black on white or white on black.
int read_lines(const engine::Network& network, const std::vector<std::string>& images,
               const Budget& budget, const Globals& globals);

}  // namespace sluice::cli
