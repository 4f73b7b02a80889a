#include "recipes/elastic/sorted-llama/words.h"

#include <torch/types.h>

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/base/random.h"

namespace sluice::recipes::sorted_llama {
namespace {

constexpr int64_t kIgnored = -100;
constexpr uint64_t kParts = 32;

}  // namespace

Splits split_words(const Words& words, int64_t context, int64_t most) {
  struct Entry {
    uint64_t hash;
    const data::Pronunciation* word;
  };
  std::vector<Entry> entries;
  for (const data::Pronunciation& word : words) {
    // Input: all but the last id.
    if (std::ssize(word.word) + 1 + std::ssize(word.phonemes) > context) continue;
    entries.push_back({derive_seed(0, word.word), &word});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.hash != b.hash ? a.hash < b.hash : a.word->word < b.word->word;
  });
  Splits splits;
  for (const Entry& entry : entries) {
    const uint64_t part = entry.hash % kParts;
    Words& to = part == 0 ? splits.test : part == 1 ? splits.validation : splits.train;
    if (part > 1 || std::ssize(to) < most) to.push_back(*entry.word);
  }
  if (splits.train.empty() || splits.validation.empty() || splits.test.empty())
    fail(Code::config, "sorted-llama: {} words of at most {} ids are too few to split",
         entries.size(), context);
  return splits;
}

Words synthetic_words(int64_t count) {
  const std::vector<std::pair<const char*, const char*>> sounds = {
      {"b", "B"}, {"d", "D"},  {"k", "K"},  {"m", "M"}, {"s", "S"},
      {"t", "T"}, {"a", "AA"}, {"e", "EH"}, {"o", "OW"}};
  const auto& phonemes = data::cmu_phonemes();
  Words words;
  for (int64_t i = 0; i < count; ++i) {
    data::Pronunciation entry;
    const uint64_t seed = derive_seed(7, "synthetic word", static_cast<uint64_t>(i));
    for (uint64_t k = 0; k < 2 + seed % 3; ++k) {
      const auto& [letter, sound] = sounds[derive_seed(seed, "sound", k) % sounds.size()];
      entry.word += letter;
      entry.phonemes.push_back(static_cast<uint8_t>(
          std::find(phonemes.begin(), phonemes.end(), sound) - phonemes.begin()));
    }
    words.push_back(std::move(entry));
  }
  return words;
}

std::vector<int32_t> prompt_of(const data::Pronunciation& word) {
  std::vector<int32_t> ids;
  for (const char c : word.word)
    ids.push_back(static_cast<int32_t>(c == '\'' ? kFirstLetter : kFirstLetter + 1 + (c - 'a')));
  ids.push_back(kSeparator);
  return ids;
}

std::vector<int32_t> answer_of(const data::Pronunciation& word) {
  std::vector<int32_t> ids;
  for (const uint8_t phoneme : word.phonemes)
    ids.push_back(static_cast<int32_t>(kFirstPhoneme + phoneme));
  ids.push_back(kEnd);
  return ids;
}

lab::Batch batch_of(const std::vector<const data::Pronunciation*>& words, bool answers_alone,
                    c10::Device device) {
  int64_t longest = 1;
  for (const data::Pronunciation* word : words)
    longest = std::max(longest, std::ssize(word->word) + 1 + std::ssize(word->phonemes));
  const int64_t count = std::ssize(words);
  at::Tensor inputs = at::full({count, longest}, kEnd, at::kLong),
             labels = at::full({count, longest}, kIgnored, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int32_t> ids = prompt_of(*words[static_cast<size_t>(i)]);
    const auto asked = std::ssize(ids);
    const auto answer = answer_of(*words[static_cast<size_t>(i)]);
    ids.insert(ids.end(), answer.begin(), answer.end());
    int64_t* input = inputs.data_ptr<int64_t>() + i * longest;
    int64_t* label = labels.data_ptr<int64_t>() + i * longest;
    for (int64_t t = 0; t + 1 < std::ssize(ids); ++t) {
      input[t] = ids[static_cast<size_t>(t)];
      if (!answers_alone || t + 1 >= asked) label[t] = ids[static_cast<size_t>(t + 1)];
    }
  }
  return {inputs.to(device), labels.to(device)};
}

lab::Batch WordFeed::at_step(int64_t step, int64_t batch, uint64_t seed, int64_t first,
                             int64_t samples) {
  std::vector<const data::Pronunciation*> words;
  for (int64_t i = first; i < first + samples; ++i) {
    const uint64_t draw = derive_seed(seed, "word", static_cast<uint64_t>(step * batch + i));
    words.push_back(&words_[draw % words_.size()]);
  }
  return batch_of(words, answers_alone_, device_);
}

void WordFeed::check_batch(int64_t batch) const {
  if (batch < 1) fail(Code::config, "batches of {} words", batch);
}

}  // namespace sluice::recipes::sorted_llama
