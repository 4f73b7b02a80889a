// Dictionary look-ups as sequences: letters, a separator, phonemes, an end.
#pragma once
#include <cstdint>
#include <vector>

#include "sluice/data/pronunciation.h"
#include "sluice/lab/train/feed.h"

namespace sluice::recipes::sorted_llama {

// Ids: 0 ends an answer (and pads), 1 stands between word and answer, then ', a .. z, phonemes.
inline constexpr int64_t kEnd = 0, kSeparator = 1, kFirstLetter = 2, kFirstPhoneme = 29;
inline constexpr int64_t kVocabulary = kFirstPhoneme + 39;

using Words = std::vector<data::Pronunciation>;

struct Splits {
  Words train, validation, test;
};

/// Words that fit `context`, by a hash of their letters: one in 32 is test, one in 32 validation;
/// of these two the first `most` in the order of the hashes.
Splits split_words(const Words& words, int64_t context, int64_t most);
/// Words of random syllables that are spoken as they are written.
Words synthetic_words(int64_t count);

/// Letters and separator.
std::vector<int32_t> prompt_of(const data::Pronunciation& word);
/// Phonemes and end.
std::vector<int32_t> answer_of(const data::Pronunciation& word);

/// Inputs [N, T] and the ids that follow them, T the longest of the words; `answers_alone`: labels
/// of letters do not count (-100), as those behind the end never do.
lab::Batch batch_of(const std::vector<const data::Pronunciation*>& words, bool answers_alone,
                    c10::Device device);

/// Words at random, from (seed, step), with replacement.
class WordFeed final : public lab::BatchSource {
 public:
  WordFeed(const Words& words, bool answers_alone, c10::Device device)
      : words_(words), answers_alone_(answers_alone), device_(device) {}
  int64_t count() const override { return std::ssize(words_); }
  using lab::BatchSource::at_step;
  lab::Batch at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                     int64_t samples) override;
  void check_batch(int64_t batch) const override;

 private:
  const Words& words_;
  bool answers_alone_;
  c10::Device device_;
};

}  // namespace sluice::recipes::sorted_llama
