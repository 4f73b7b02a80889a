#include "sluice/text/train_bpe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <queue>
#include <thread>
#include <unordered_map>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/text/normalizers.h"
#include "sluice/text/pre_tokenizers.h"
#include "sluice/text/tables.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

struct HashText {
  size_t operator()(std::string_view text) const { return hash_text(text); }
};
using WordCounts = std::unordered_map<std::string_view, int64_t, HashText>;

void count_words(std::string_view text, const PreTokenizer& cutter, Scratch& scratch,
                 std::vector<Slice>& words, WordCounts& counts) {
  words.clear();
  scratch.reset();
  scratch.defer_bytes = true;
  cutter.split(Slice{text, nullptr, 0, -1}, scratch, words);
  for (const Slice& word : words) {
    for (std::string_view rest = word.text; !rest.empty();) {
      const std::string_view piece = rest.substr(0, kLongestTrainingWord);
      ++counts[piece];
      rest.remove_prefix(piece.size());
    }
  }
}

WordCounts count_all(std::span<const TrainingText> texts, int threads) {
  const auto cutter = make_byte_level_split(kGpt2Expression, "training a tokenizer");
  const size_t cores = static_cast<size_t>(threads > 0 ? threads : describe_machine().cores);
  const size_t workers = std::min(cores, std::max<size_t>(1, texts.size()));
  std::vector<WordCounts> counts(workers);
  std::vector<std::exception_ptr> errors(texts.size());
  std::atomic<size_t> next{0};
  const auto work = [&](WordCounts& mine) {
    Scratch scratch;
    std::vector<Slice> words;
    for (size_t i = next++; i < texts.size(); i = next++) {
      try {
        check_training_text(texts[i]);
        count_words(texts[i].text, *cutter, scratch, words, mine);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> others;  // joined at the end, also when one cannot be started
    for (size_t i = 1; i < workers; ++i) {
      others.emplace_back([&, i] { work(counts[i]); });
    }
    work(counts[0]);
  }
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
  for (size_t i = 1; i < workers; ++i) {
    for (const auto& [word, count] : counts[i]) {
      counts[0][word] += count;
    }
    WordCounts().swap(counts[i]);
  }
  return std::move(counts[0]);
}

struct Pair {
  int32_t left, right;
  uint64_t key() const {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
};

/// A pair with the count it had when it was put there; outdated ones are dropped when they come up.
struct Candidate {
  int64_t count;
  Pair pair;
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair.key() > other.pair.key();
  }
};

struct HashKey {
  size_t operator()(uint64_t key) const {
    key *= 0x9E3779B97F4A7C15u;
    return key ^ key >> 32;
  }
};

class Merger {
 public:
  Merger(const WordCounts& counts, const std::array<int32_t, 256>& byte_ids) {
    size_t bytes = 0;
    for (const auto& [word, count] : counts) {
      bytes += word.size();
    }
    symbols_.reserve(bytes);
    words_.reserve(counts.size());
    for (const auto& [word, count] : counts) {
      const Word entry{symbols_.size(), static_cast<uint32_t>(word.size()), count};
      for (const char byte : word) {
        symbols_.push_back(byte_ids[static_cast<unsigned char>(byte)]);
      }
      const auto index = static_cast<uint32_t>(words_.size());
      words_.push_back(entry);
      for (size_t i = 0; i + 1 < entry.size; ++i) {
        change({symbols_[entry.begin + i], symbols_[entry.begin + i + 1]}, count, index);
      }
    }
    for (auto& [key, use] : pairs_) {
      use.queued = use.count;
      heap_.push({use.count, unpack(key)});
    }
  }

  /// The most frequent pair; a count of 0 when there is none.
  Candidate best() {
    while (!heap_.empty()) {
      Candidate top = heap_.top();
      heap_.pop();
      const auto found = pairs_.find(top.pair.key());
      const int64_t count = found == pairs_.end() ? 0 : found->second.count;
      if (count == top.count) {
        return top;
      }
      if (count > 0) {
        top.count = found->second.queued = count;
        heap_.push(top);
      }
    }
    return {0, {0, 0}};
  }

  void merge(const Pair& pair, int32_t id) {
    const auto found = pairs_.find(pair.key());
    const std::vector<uint32_t> where = std::move(found->second.words);
    pairs_.erase(found);
    grown_.clear();
    for (const uint32_t index : where) {
      merge_in(index, pair, id);
    }
    pairs_.erase(pair.key());
    for (const uint64_t key : grown_) {
      const auto use = pairs_.find(key);
      if (use != pairs_.end() && use->second.count > use->second.queued) {
        use->second.queued = use->second.count;
        heap_.push({use->second.count, unpack(key)});
      }
    }
  }

 private:
  struct Word {
    size_t begin;
    uint32_t size;
    int64_t count;
  };
  struct Use {
    int64_t count = 0, queued = 0;
    std::vector<uint32_t> words;  // that hold the pair, or did
  };

  static Pair unpack(uint64_t key) {
    return {static_cast<int32_t>(key >> 32), static_cast<int32_t>(key & 0xFFFFFFFFu)};
  }

  void change(const Pair& pair, int64_t by, uint32_t word) {
    Use& use = pairs_[pair.key()];
    use.count += by;
    if (by > 0 && (use.words.empty() || use.words.back() != word)) {
      use.words.push_back(word);
    }
  }

  void merge_in(uint32_t index, const Pair& pair, int32_t id) {
    Word& word = words_[index];
    int32_t* const symbols = symbols_.data() + word.begin;
    uint32_t out = 0;
    for (uint32_t i = 0; i < word.size; ++i) {
      if (i + 1 == word.size || symbols[i] != pair.left || symbols[i + 1] != pair.right) {
        symbols[out++] = symbols[i];
        continue;
      }
      if (out > 0) {
        change({symbols[out - 1], pair.left}, -word.count, index);
        add({symbols[out - 1], id}, word.count, index);
      }
      if (i + 2 < word.size) {
        change({pair.right, symbols[i + 2]}, -word.count, index);
        add({id, symbols[i + 2]}, word.count, index);
      }
      symbols[out++] = id;
      ++i;
    }
    word.size = out;
  }
  void add(const Pair& pair, int64_t by, uint32_t word) {
    change(pair, by, word);
    if (grown_.empty() || grown_.back() != pair.key()) {
      grown_.push_back(pair.key());
    }
  }

  std::vector<int32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Use, HashKey> pairs_;
  std::priority_queue<Candidate> heap_;
  std::vector<uint64_t> grown_;
};

std::string quoted(const std::string& text) { return Json(text).dump(); }

struct Learned {
  std::vector<std::string> tokens;
  std::vector<Pair> merges;
};

std::string to_tokenizer_json(const Learned& learned, size_t special) {
  std::string out =
      "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\n\"added_tokens\":[";
  for (size_t i = 0; i < special; ++i) {
    out += fmt::format(
        "{}{{\"id\":{},\"content\":{},\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false,\"special\":true}}",
        i == 0 ? "" : ",", i, quoted(learned.tokens[i]));
  }
  const std::string byte_level =
      "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"
      "true}";
  out += "],\n\"normalizer\":null,\n\"pre_tokenizer\":" + byte_level +
         ",\n\"post_processor\":null,\n\"decoder\":" + byte_level +
         ",\n\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
         "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
         "\"byte_fallback\":false,\"ignore_merges\":false,\n\"vocab\":{";
  for (size_t i = 0; i < learned.tokens.size(); ++i) {
    out += fmt::format("{}{}:{}", i == 0 ? "" : ",\n", quoted(learned.tokens[i]), i);
  }
  out += "},\n\"merges\":[";
  for (size_t i = 0; i < learned.merges.size(); ++i) {
    const Pair& pair = learned.merges[i];
    out += fmt::format("{}[{},{}]", i == 0 ? "" : ",\n",
                       quoted(learned.tokens[static_cast<size_t>(pair.left)]),
                       quoted(learned.tokens[static_cast<size_t>(pair.right)]));
  }
  return out + "]}}\n";
}

/// Special tokens, then the bytes in the order of their characters.
Learned start(const BpeTrainOptions& options, std::array<int32_t, 256>& byte_ids) {
  Learned learned;
  for (const std::string& token : options.special_tokens) {
    if (token.empty() || valid_utf8_prefix(token) != token.size()) {
      fail(Code::config, "special token {}: expected a text of at least one character",
           shown(token));
    }
    if (std::find(learned.tokens.begin(), learned.tokens.end(), token) != learned.tokens.end()) {
      fail(Code::config, "special token {}: named twice", shown(token));
    }
    learned.tokens.push_back(token);
  }
  std::array<std::pair<char32_t, unsigned>, 256> alphabet;
  for (unsigned byte = 0; byte < 256; ++byte) {
    size_t at = 0;
    alphabet[byte] = {next_code_point(byte_level_character(static_cast<unsigned char>(byte)), at),
                      byte};
  }
  std::sort(alphabet.begin(), alphabet.end());
  for (const auto& [character, byte] : alphabet) {
    byte_ids[byte] = static_cast<int32_t>(learned.tokens.size());
    learned.tokens.emplace_back(byte_level_character(static_cast<unsigned char>(byte)));
  }
  return learned;
}

}  // namespace

void check_training_text(const TrainingText& text) {
  const size_t valid = valid_utf8_prefix(text.text);
  const size_t zero = text.text.substr(0, valid).find('\0');
  if (zero != std::string_view::npos) {
    fail(Code::format, "{}: a zero byte at offset {}: this is not text", text.name, zero);
  }
  if (valid != text.text.size()) {
    fail(Code::format,
         "{}: byte 0x{:02X} at offset {} is not UTF-8; expected text: convert it with iconv, or "
         "leave it out",
         text.name, static_cast<unsigned char>(text.text[valid]), valid);
  }
}

std::string train_bpe(std::span<const TrainingText> texts, const BpeTrainOptions& options) {
  std::array<int32_t, 256> byte_ids{};
  Learned learned = start(options, byte_ids);
  const size_t special = options.special_tokens.size();
  const auto least = static_cast<int64_t>(learned.tokens.size());
  if (options.vocabulary < least || options.vocabulary > BpeTrainOptions::kLargestVocabulary) {
    fail(Code::config,
         "vocabulary of {} tokens: expected {} to {} (256 bytes and {} special tokens are always "
         "in it)",
         options.vocabulary, least, BpeTrainOptions::kLargestVocabulary, special);
  }
  if (options.least_count < 1) {
    fail(Code::config, "least_count {}: at least 1", options.least_count);
  }
  const WordCounts counts = count_all(texts, options.threads);
  if (counts.empty()) {
    fail(Code::missing, "training a tokenizer: the {} texts are empty", texts.size());
  }
  std::unordered_map<std::string, int32_t> ids;
  for (size_t i = 0; i < learned.tokens.size(); ++i) {
    ids.emplace(learned.tokens[i], static_cast<int32_t>(i));
  }
  Merger merger(counts, byte_ids);
  while (static_cast<int64_t>(learned.tokens.size()) < options.vocabulary) {
    const Candidate best = merger.best();
    if (best.count < options.least_count || best.count == 0) {
      fail(Code::config,
           "vocabulary of {} tokens: the text fills only {} (no other pair of tokens occurs at "
           "least {} times); choose at most {}, or give more text",
           options.vocabulary, learned.tokens.size(), options.least_count, learned.tokens.size());
    }
    const std::string text = learned.tokens[static_cast<size_t>(best.pair.left)] +
                             learned.tokens[static_cast<size_t>(best.pair.right)];
    // Two ways of joining may give the same token.
    const auto [entry, added] = ids.emplace(text, static_cast<int32_t>(learned.tokens.size()));
    if (added) {
      learned.tokens.push_back(text);
    }
    learned.merges.push_back(best.pair);
    merger.merge(best.pair, entry->second);
    if (options.progress && learned.tokens.size() % 64 == 0) {
      options.progress(static_cast<int64_t>(learned.tokens.size()), options.vocabulary);
    }
  }
  return to_tokenizer_json(learned, special);
}

}  // namespace sluice::text
