// Tokens that are found in the text before anything else happens to it: <|endoftext|>, [MASK],
// words added later.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "sluice/text/model.h"
#include "sluice/text/normalizers.h"
#include "sluice/text/slice.h"

namespace sluice::text {

struct AddedToken {
  std::string content;
  bool single_word = false;  ///< only where no word character is beside it
  bool lstrip = false;       ///< takes white space before it along
  bool rstrip = false;
  bool normalized = true;  ///< is looked for in the normalized text, in its normalized form
  bool special = false;    ///< left out by decode(skip_special)
};

class AddedTokens {
 public:
  static constexpr size_t kLongest = 4096, kMostBytes = size_t{1} << 24;  ///< of one, of all

  /// In order, as the reference does it: a token the model knows keeps the model's id, others are
  /// numbered on from the end of the vocabulary. Throws Error{limit} naming `what`.
  void add(const std::vector<AddedToken>& tokens, const Model& model, const Normalizer* normalizer,
           const std::string& what);

  /// Cuts `text` at the tokens that are looked for before normalization, normalizes the rest, and
  /// cuts that at the others.
  void extract(const Slice& text, const Normalizer* normalizer, Scratch& scratch,
               std::vector<Slice>& out) const;

  int32_t find(std::string_view content) const;  ///< -1 when absent
  const std::string* text(int32_t id) const;     ///< as decode() shows it; null when absent
  bool is_special(std::string_view content) const {
    return specials_.contains(std::string(content));
  }
  size_t size() const { return ids_.size(); }
  int32_t highest_id() const { return tokens_.empty() ? -1 : tokens_.rbegin()->first; }
  template <class Use>
  void each(Use&& use) const {
    for (const auto& [id, token] : tokens_) {
      use(id, token);
    }
  }

 private:
  /// All tokens of one kind; finds the leftmost, among those the longest.
  class Matcher {
   public:
    void add(std::string_view content, int32_t id);
    bool empty() const { return nodes_ == 1; }
    /// Bytes of the longest token at text[at], its id in `id`; 0 when none.
    size_t match(std::string_view text, size_t at, int32_t& id) const;
    size_t next_start(std::string_view text, size_t at) const;

   private:
    PairTable trie_;  // (node, byte) -> node, id or -1
    std::vector<int32_t> ends_{-1};
    bool starts_[256] = {};
    int32_t nodes_ = 1;
  };
  void cut(const Slice& slice, const Matcher& matcher, std::vector<Slice>& out) const;

  std::unordered_map<std::string, int32_t> ids_;
  std::map<int32_t, AddedToken> tokens_;
  std::unordered_map<int32_t, std::string> shown_;  // where it differs from the content
  std::unordered_set<std::string> specials_;
  Matcher raw_, normalized_;
};

}  // namespace sluice::text
