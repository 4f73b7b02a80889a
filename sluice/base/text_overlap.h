// How much of an expected text is in a generated one, token by token.
#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace sluice {

/// ROUGE-L (Lin 2004): F1 of the longest common subsequence, 0 to 1; 1 where both are empty.
double rouge_l(std::span<const int64_t> found, std::span<const int64_t> expected);

/// BLEU of a corpus (Papineni et al. 2002), 0 to 1: geometric mean of the clipped precisions of
/// runs of 1 to 4 tokens over all pairs {found, expected}, times the brevity penalty. 0 where no
/// run of some length agrees.
double bleu(std::span<const std::pair<std::vector<int64_t>, std::vector<int64_t>>> pairs);

}  // namespace sluice
