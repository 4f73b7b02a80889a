// The tokenizer of a GGUF file (keys tokenizer.ggml.*), from and to the text of tokenizer.json.
// Both directions refuse what the other side cannot say, so that ids stay the same.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/bundle/gguf/gguf.h"

namespace sluice::bundle::gguf {

/// Types of tokens.
enum TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct Vocabulary {
  std::string model;  ///< "gpt2" (byte-level BPE), "llama" (SentencePiece BPE)
  std::string pre;    ///< which expression cuts the text, for gpt2
  std::vector<std::string> tokens;
  std::vector<float> scores;        ///< llama only
  std::vector<int32_t> types;       ///< TokenType, one a token
  std::vector<std::string> merges;  ///< gpt2 only, "left right"
  int64_t begin_id = -1, unknown_id = -1;
  std::vector<int64_t> end_ids;  ///< of the text, of a turn
  bool add_begin = false, add_end = false;
  bool add_space_prefix = true;  ///< llama only
};

/// Throws Error naming key, expected and found; Error{unsupported} for other kinds. A file without
/// a tokenizer (model none) gives one without tokens.
/// What SentencePiece writes for a space: U+2581.
inline constexpr char kSpaceMark[] = "\u2581";

Vocabulary read_vocabulary(const File& file);
void write_vocabulary(const Vocabulary& vocabulary, Writer& writer);

/// The text of a tokenizer.json that gives the same ids. Throws Error{unsupported} naming `what`
/// where there is none: scores that are equal (which of two pairs comes first is then a matter of
/// place), letters that no token is, bytes without a token.
std::string tokenizer_json(const Vocabulary& vocabulary, const std::string& what);

/// The other way, for an embedding of `rows` rows: ids behind the last token become unused ones.
/// Throws Error{unsupported} naming field and reason for a stage that GGUF has no key for; where
/// llama.cpp itself goes without one (NFC before Qwen's), `notes` says so.
Vocabulary vocabulary_of(std::string_view tokenizer_json, int64_t rows, const std::string& what,
                         std::vector<std::string>* notes);

}  // namespace sluice::bundle::gguf
