#include <algorithm>
#include <array>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/text/model.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

using Symbol = ModelScratch::Symbol;
using Merge = ModelScratch::Merge;

// For std::push_heap, which keeps the largest on top.
constexpr auto kLater = [](const Merge& a, const Merge& b) { return a.key > b.key; };

void push_merge(std::vector<Merge>& heap, Merge merge) {
  heap.push_back(merge);
  std::push_heap(heap.begin(), heap.end(), kLater);
}

Merge pop_merge(std::vector<Merge>& heap) {
  std::pop_heap(heap.begin(), heap.end(), kLater);
  const Merge top = heap.back();
  heap.pop_back();
  return top;
}

void append_symbol(std::vector<Symbol>& symbols, int32_t id, size_t size) {
  const auto at = static_cast<int32_t>(symbols.size());
  if (at > 0) {
    symbols.back().next = at;
  }
  symbols.push_back({id, at - 1, -1, static_cast<uint32_t>(size)});
}

/// Joins the symbol at `at` with the one behind it.
void join(std::vector<Symbol>& symbols, int32_t at, int32_t id) {
  Symbol& left = symbols[static_cast<size_t>(at)];
  Symbol& right = symbols[static_cast<size_t>(left.next)];
  left.id = id;
  left.size += right.size;
  left.next = right.next;
  right.size = 0;
  if (left.next >= 0) {
    symbols[static_cast<size_t>(left.next)].previous = at;
  }
}

void emit(const std::vector<Symbol>& symbols, std::vector<Token>& out) {
  uint32_t at = 0;
  for (const Symbol& symbol : symbols) {
    if (symbol.size != 0) {
      out.push_back({symbol.id, at, at + symbol.size});
      at += symbol.size;
    }
  }
}

std::array<int32_t, 256> byte_tokens(const Vocabulary& vocabulary) {
  std::array<int32_t, 256> ids{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    ids[byte] = vocabulary.find(fmt::format("<0x{:02X}>", byte));
  }
  return ids;
}

constexpr char32_t kBlank = 0x2581;  // SentencePiece's space
constexpr std::string_view kBlankText = "\xE2\x96\x81";

/// Whether a token goes on over the start of a word: then a text cannot be cut there.
bool crosses_blank(std::string_view token) {
  for (size_t at = token.find(kBlankText, 1); at != std::string_view::npos;
       at = token.find(kBlankText, at + 1)) {
    if (token.substr(0, at).size() < kBlankText.size() ||
        token.substr(at - kBlankText.size(), 3) != kBlankText) {
      return true;
    }
  }
  return false;
}

class Bpe : public Model {
 public:
  Bpe(Vocabulary vocabulary, std::span<const MergeText> merges, BpeOptions options,
      const std::string& what)
      : options_(std::move(options)), what_(what) {
    vocabulary_ = std::move(vocabulary);
    if (merges.size() >= size_t{1} << 31) {
      fail(Code::limit, "{}: {} merges", what, merges.size());
    }
    merges_.reserve(merges.size());
    std::string joined;
    bool crosses = false;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const auto& [left, right] = merges[rank];
      const int32_t a = vocabulary_.find(left), b = vocabulary_.find(right);
      if (a < 0 || b < 0) {
        fail(Code::format, "{}: merge {}: {} is not in the vocabulary", what, rank,
             shown(a < 0 ? left : right));
      }
      if (right.size() < options_.continuing_prefix.size()) {
        fail(Code::format, "{}: merge {}: {} is shorter than the prefix of continuing tokens", what,
             rank, shown(right));
      }
      joined.assign(left);
      joined += right.substr(options_.continuing_prefix.size());
      const int32_t id = vocabulary_.find(joined);
      if (id < 0) {
        fail(Code::format, "{}: merge {}: its result {} is not in the vocabulary", what, rank,
             shown(joined));
      }
      crosses |= crosses_blank(joined);
      merges_.set(a, b, {static_cast<int32_t>(rank), id});
    }
    bytes_ = byte_tokens(vocabulary_);
    for (size_t c = 0; c < ascii_.size(); ++c) {
      ascii_[c] = vocabulary_.find(std::string(1, static_cast<char>(c)));
    }
    unknown_ = options_.has_unknown ? vocabulary_.find(options_.unknown) : -1;
    // With ignore_merges a whole word is looked up first, so it must stay whole.
    cuts_ = !crosses && !options_.ignore_merges && options_.continuing_prefix.empty() &&
            options_.end_suffix.empty() && vocabulary_.find(kBlankText) >= 0;
  }

  char32_t boundary() const override { return cuts_ ? kBlank : 0; }

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<Token>& out) const override {
    if (options_.ignore_merges) {
      if (const int32_t id = vocabulary_.find(word); id >= 0) {
        out.push_back({id, 0, static_cast<uint32_t>(word.size())});
        return;
      }
    }
    start(word, scratch);
    merge(scratch);
    emit(scratch.symbols, out);
  }

 private:
  /// One symbol per character.
  void start(std::string_view word, ModelScratch& scratch) const {
    std::vector<Symbol>& symbols = scratch.symbols;
    symbols.clear();
    const bool plain = options_.continuing_prefix.empty() && options_.end_suffix.empty();
    size_t unknown_bytes = 0;  // of an unknown token not yet appended
    const auto flush = [&] {
      if (unknown_bytes > 0) {
        append_symbol(symbols, unknown_, unknown_bytes);
        unknown_bytes = 0;
      }
    };
    for (size_t at = 0; at < word.size();) {
      const size_t size = utf8_size(word[at]);
      std::string_view character = word.substr(at, size);
      if (!plain) {
        scratch.buffer = at > 0 ? options_.continuing_prefix : std::string();
        scratch.buffer += character;
        if (at + size == word.size()) {
          scratch.buffer += options_.end_suffix;
        }
        character = scratch.buffer;
      }
      at += size;
      const int32_t id = character.size() == 1 && static_cast<unsigned char>(character[0]) < 128
                             ? ascii_[static_cast<size_t>(character[0])]
                             : vocabulary_.find(character);
      if (id >= 0) {
        flush();
        append_symbol(symbols, id, size);
      } else if (options_.byte_fallback &&
                 std::all_of(character.begin(), character.end(),
                             [&](char c) { return bytes_[static_cast<unsigned char>(c)] >= 0; })) {
        // An unknown token before stays behind these, as in the reference.
        for (const char c : character) {
          append_symbol(symbols, bytes_[static_cast<unsigned char>(c)], 1);
        }
      } else if (options_.has_unknown) {
        if (unknown_ < 0) {
          fail(Code::missing, "{}: the unknown token {} is not in the vocabulary, and {} needs it",
               what_, shown(options_.unknown), shown(character));
        }
        if (!options_.fuse_unknown) {
          flush();
        }
        unknown_bytes += size;
      }
    }
    flush();
  }

  void merge(ModelScratch& scratch) const {
    std::vector<Symbol>& symbols = scratch.symbols;
    std::vector<Merge>& heap = scratch.merges;
    heap.clear();
    const auto candidate = [&](int32_t at) -> const PairTable::Value* {
      const Symbol& left = symbols[static_cast<size_t>(at)];
      return merges_.find(left.id, symbols[static_cast<size_t>(left.next)].id);
    };
    const auto entry = [](const PairTable::Value& value, int32_t at) {
      return Merge{static_cast<uint64_t>(value.first) << 32 | static_cast<uint32_t>(at),
                   value.second, 0};
    };
    for (int32_t at = 0; at + 1 < static_cast<int32_t>(symbols.size()); ++at) {
      if (const auto* value = candidate(at)) {
        heap.push_back(entry(*value, at));
      }
    }
    std::make_heap(heap.begin(), heap.end(), kLater);
    while (!heap.empty()) {
      const Merge top = pop_merge(heap);
      const auto at = static_cast<int32_t>(top.key & 0xFFFFFFFFu);
      const Symbol& left = symbols[static_cast<size_t>(at)];
      if (left.size == 0 || left.next < 0) {
        continue;
      }
      // The pair may have changed since; the reference asks only whether it still makes the same
      // token.
      const auto* now = candidate(at);
      if (now == nullptr || now->second != top.id) {
        continue;
      }
      join(symbols, at, top.id);
      if (left.previous >= 0) {
        if (const auto* value = candidate(left.previous)) {
          push_merge(heap, entry(*value, left.previous));
        }
      }
      if (left.next >= 0) {
        if (const auto* value = candidate(at)) {
          push_merge(heap, entry(*value, at));
        }
      }
    }
  }

  PairTable merges_;  // rank, result
  BpeOptions options_;
  std::string what_;
  std::array<int32_t, 256> bytes_{};
  std::array<int32_t, 128> ascii_{};
  int32_t unknown_ = -1;
  bool cuts_ = false;
};

class ScoredBpe : public Model {
 public:
  ScoredBpe(Vocabulary vocabulary, std::vector<float> scores, std::vector<bool> mergeable,
            int32_t unknown, const std::string& what)
      : what_(what), unknown_(unknown) {
    vocabulary_ = std::move(vocabulary);
    const auto count = static_cast<size_t>(vocabulary_.highest_id() + 1);
    if (scores.size() != count || mergeable.size() != count) {
      fail(Code::shape, "{}: {} tokens, {} scores and {} types; expected as many of each", what,
           count, scores.size(), mergeable.size());
    }
    // Ranks instead of scores: equal scores share one, the leftmost pair goes first among them.
    std::vector<float> sorted;
    for (size_t id = 0; id < count; ++id) {
      if (!(scores[id] == scores[id])) {
        fail(Code::numeric, "{}: the score of token {} is not a number", what, id);
      }
      if (mergeable[id]) {
        sorted.push_back(scores[id]);
      }
    }
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    ranks_.assign(count, -1);
    bool crosses = false;
    for (size_t id = 0; id < count; ++id) {
      const std::string_view token = vocabulary_.token(static_cast<int32_t>(id));
      if (mergeable[id] && vocabulary_.find(token) == static_cast<int32_t>(id)) {
        ranks_[id] = static_cast<int32_t>(
            std::lower_bound(sorted.begin(), sorted.end(), scores[id], std::greater<>()) -
            sorted.begin());
        crosses |= crosses_blank(token);
        longest_ = std::max(longest_, token.size());
      }
    }
    cuts_ = !crosses;
    bytes_ = byte_tokens(vocabulary_);
  }

  char32_t boundary() const override { return cuts_ ? kBlank : 0; }

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<Token>& out) const override {
    std::vector<Symbol>& symbols = scratch.symbols;
    std::vector<Merge>& heap = scratch.merges;
    symbols.clear();
    heap.clear();
    for (size_t at = 0; at < word.size();) {
      const size_t size = utf8_size(word[at]);
      append_symbol(symbols, static_cast<int32_t>(at),
                    size);  // the id says where in the word it begins
      at += size;
    }
    const auto push = [&](int32_t at) {
      const Symbol& left = symbols[static_cast<size_t>(at)];
      const uint32_t size = left.size + symbols[static_cast<size_t>(left.next)].size;
      if (size > longest_) {
        return;
      }
      const int32_t id = vocabulary_.find(word.substr(static_cast<size_t>(left.id), size));
      if (id >= 0 && ranks_[static_cast<size_t>(id)] >= 0) {
        push_merge(heap, {static_cast<uint64_t>(ranks_[static_cast<size_t>(id)]) << 32 |
                              static_cast<uint32_t>(at),
                          id, size});
      }
    };
    for (int32_t at = 0; at + 1 < static_cast<int32_t>(symbols.size()); ++at) {
      push(at);
    }
    while (!heap.empty()) {
      const Merge top = pop_merge(heap);
      const auto at = static_cast<int32_t>(top.key & 0xFFFFFFFFu);
      const Symbol& left = symbols[static_cast<size_t>(at)];
      if (left.size == 0 || left.next < 0 ||
          left.size + symbols[static_cast<size_t>(left.next)].size != top.size) {
        continue;
      }
      join(symbols, at, left.id);
      if (left.previous >= 0) {
        push(left.previous);
      }
      if (left.next >= 0) {
        push(at);
      }
    }
    for (const Symbol& symbol : symbols) {
      if (symbol.size != 0) {
        put(word, static_cast<uint32_t>(symbol.id), symbol.size, out);
      }
    }
  }

 private:
  void put(std::string_view word, uint32_t at, uint32_t size, std::vector<Token>& out) const {
    const int32_t id = vocabulary_.find(word.substr(at, size));
    if (id >= 0 && ranks_[static_cast<size_t>(id)] >= 0) {
      out.push_back({id, at, at + size});
      return;
    }
    const bool covered = std::all_of(word.begin() + at, word.begin() + at + size, [&](char c) {
      return bytes_[static_cast<unsigned char>(c)] >= 0;
    });
    if (!covered && unknown_ < 0) {
      fail(Code::missing, "{}: no token for {}, no byte tokens and no unknown token", what_,
           shown(word.substr(at, size)));
    }
    if (!covered) {
      out.push_back({unknown_, at, at + size});
      return;
    }
    for (uint32_t i = at; i < at + size; ++i) {
      out.push_back({bytes_[static_cast<unsigned char>(word[i])], i, i + 1});
    }
  }

  std::string what_;
  int32_t unknown_;
  std::vector<int32_t> ranks_;
  std::array<int32_t, 256> bytes_{};
  size_t longest_ = 0;
  bool cuts_ = false;
};

}  // namespace

std::unique_ptr<Model> make_bpe(Vocabulary vocabulary, std::span<const MergeText> merges,
                                const BpeOptions& options, const std::string& what) {
  return std::make_unique<Bpe>(std::move(vocabulary), merges, options, what);
}

std::unique_ptr<Model> make_scored_bpe(Vocabulary vocabulary, std::vector<float> scores,
                                       std::vector<bool> mergeable, int32_t unknown,
                                       const std::string& what) {
  return std::make_unique<ScoredBpe>(std::move(vocabulary), std::move(scores), std::move(mergeable),
                                     unknown, what);
}

}  // namespace sluice::text
