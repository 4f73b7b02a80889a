// Models: how a word becomes tokens of the vocabulary.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/text/tables.h"

namespace sluice::text {

/// A token and the bytes of the word it stands for.
struct Token {
  int32_t id;
  uint32_t begin, end;
};

/// Memory of one word under way.
struct ModelScratch {
  struct Symbol {
    int32_t id, previous, next;
    uint32_t size;  // bytes; 0: merged into the one before
  };
  struct Merge {
    uint64_t key;  // what comes first is smaller
    int32_t id;
    uint32_t size;
  };
  struct Node {
    double score;
    int32_t id;
    int64_t begin;
  };
  std::vector<Symbol> symbols;
  std::vector<Merge> merges;
  std::vector<Node> nodes;
  std::string buffer;
};

class Model {
 public:
  virtual ~Model() = default;
  /// Appends the tokens of `word` (valid UTF-8, not empty). Thread-safe. Throws Error{missing} when
  /// the word needs an unknown token that the vocabulary lacks.
  virtual void tokenize(std::string_view word, ModelScratch& scratch,
                        std::vector<Token>& out) const = 0;
  /// A character whose start is always a start of a token when another character stands before it:
  /// long words may be cut there without changing the result. 0 when there is none.
  virtual char32_t boundary() const { return 0; }

  int32_t find(std::string_view token) const { return vocabulary_.find(token); }
  bool has(int32_t id) const { return vocabulary_.has(id); }
  std::string_view token(int32_t id) const { return vocabulary_.token(id); }
  /// Number of tokens, as the reference counts them.
  virtual size_t size() const { return vocabulary_.size(); }
  int32_t highest_id() const { return vocabulary_.highest_id(); }
  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  Vocabulary vocabulary_;
};

struct BpeOptions {
  std::string unknown;  ///< with has_unknown
  bool has_unknown = false;
  std::string continuing_prefix, end_suffix;
  bool fuse_unknown = false, byte_fallback = false, ignore_merges = false;
};

/// Merges as pairs of tokens, best first. Throws Error{format} naming `what` for a merge whose
/// parts or result are no tokens.
struct MergeText {
  std::string_view left, right;
};
std::unique_ptr<Model> make_bpe(Vocabulary vocabulary, std::span<const MergeText> merges,
                                const BpeOptions& options, const std::string& what);

/// SentencePiece's BPE: the pair whose union has the highest score is joined first. `mergeable`
/// says per id which tokens may come from joining; bytes that no token covers become <0xNN> tokens,
/// or `unknown`.
std::unique_ptr<Model> make_scored_bpe(Vocabulary vocabulary, std::vector<float> scores,
                                       std::vector<bool> mergeable, int32_t unknown,
                                       const std::string& what);

/// The most probable segmentation; `vocabulary` has ids 0, 1, ... in order. unknown -1: none.
std::unique_ptr<Model> make_unigram(Vocabulary vocabulary, std::vector<double> scores,
                                    int32_t unknown, bool byte_fallback, const std::string& what);

std::unique_ptr<Model> make_word_piece(Vocabulary vocabulary, std::string unknown,
                                       std::string prefix, int64_t longest_word);
std::unique_ptr<Model> make_word_level(Vocabulary vocabulary, std::string unknown);

/// From the "model" of a tokenizer.json: BPE, WordPiece, WordLevel, Unigram; without a type, by its
/// fields. Throws Error{config, format, limit, unsupported} naming `what`.
std::unique_ptr<Model> make_model(const Json& json, const std::string& what);

}  // namespace sluice::text
