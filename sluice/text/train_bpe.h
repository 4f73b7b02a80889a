// Training of byte-level BPE tokenizers (Sennrich et al. 2016, arXiv 1508.07909; bytes as in
// GPT-2): the pair of tokens that occurs most often within words becomes a token, again and again.
//
// Words are cut by GPT-2's expression. Equal counts are decided by the smaller ids, so the result
// depends on the texts only, not on their order or on threads; merges and ids are those of the
// Python library `tokenizers` (BpeTrainer with the byte alphabet). Words above kLongestTrainingWord
// bytes
// are counted in pieces.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::text {

struct BpeTrainOptions {
  static constexpr int64_t kLargestVocabulary = 1 << 20;
  int64_t vocabulary = 4096;  ///< tokens in all: special ones, 256 bytes, merges
  /// Get the ids 0, 1, ...; found in texts before anything else when encoding.
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  int64_t least_count = 2;  ///< pairs that occur less often are not merged
  int threads = 0;          ///< for counting words; 0: all cores
  /// Called now and then with the tokens there are and the tokens wanted.
  std::function<void(int64_t done, int64_t total)> progress{};
};

/// A text and what errors call it.
struct TrainingText {
  std::string_view text, name;
};

inline constexpr size_t kLongestTrainingWord = 4096;

/// The text of a tokenizer.json. Throws Error{format} naming the text and the byte where it is not
/// UTF-8 or holds a zero byte, Error{missing} when there are no words at all, Error{config} for a
/// vocabulary that is too small for the bytes or larger than the texts can fill (saying by how
/// much).
std::string train_bpe(std::span<const TrainingText> texts, const BpeTrainOptions& options = {});

/// Throws Error{format} as above; for whoever reads texts.
void check_training_text(const TrainingText& text);

}  // namespace sluice::text
