// Tokenizers: text to ids and back, with exactly the ids of the Python library `tokenizers`.
//
// Loads tokenizer.json (byte-level BPE, BPE with byte fallback, WordPiece, WordLevel, Unigram) or
// the vocabulary of a GGUF file. A Tokenizer is immutable, cheap to copy and safe to use from
// several threads. docs/tokenizers.md says what is supported and where results may differ.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/text/encoding.h"

namespace sluice::text {

/// The keys tokenizer.ggml.* of a GGUF file.
struct GgufVocabulary {
  std::string model;  ///< "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)
  std::string pre;    ///< which expression cuts the text, for gpt2
  std::vector<std::string> tokens;
  std::vector<float> scores;  ///< llama only
  std::vector<int32_t>
      types;  ///< 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; may be empty
  std::vector<std::string> merges;  ///< gpt2 only, "left right"
  int64_t begin_id = -1, end_id = -1, unknown_id = -1;
  bool add_begin = false, add_end = false;
  bool add_space_prefix = true;  ///< llama only
};

struct EncodeOptions {
  bool add_special_tokens = true;  ///< what the template says: [CLS], <s>, ...
  bool offsets = false;            ///< fill Encoding::offsets
  bool truncate = false;           ///< as the file says; without it texts keep all tokens
  bool pad = false;
};

class DecodeStream;

class Tokenizer {
 public:
  /// Largest text encode() takes, in bytes.
  static constexpr size_t kLongestText = size_t{1} << 30;

  /// Reads tokenizer.json. Throws Error{missing, io} for the file, Error{config, format, limit,
  /// unsupported} naming the field for its contents.
  static Tokenizer open(const std::string& path);
  static Tokenizer parse(std::string_view json, const std::string& what);
  static Tokenizer from_gguf(const GgufVocabulary& vocabulary, const std::string& what);

  /// Ids of `text`. Broken UTF-8 counts as U+FFFD. Throws Error{limit} when the text is too long or
  /// a pattern of the file takes too many steps, Error{missing} when the text needs an unknown
  /// token that the file lacks.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const;
  Encoding encode(std::string_view text, const EncodeOptions& options) const;
  Encoding encode_pair(std::string_view first, std::string_view second,
                       const EncodeOptions& options = {}) const;
  /// Encodes texts on `threads` threads; pads to the longest when asked to and the file has no
  /// fixed length.
  std::vector<Encoding> encode_batch(std::span<const std::string_view> texts,
                                     const EncodeOptions& options = {}, int threads = 1) const;

  /// Text of `ids`; ids that no token has are left out, as in the reference.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;
  DecodeStream stream(bool skip_special_tokens = true) const;

  std::optional<int32_t> token_to_id(std::string_view token) const;
  /// As the vocabulary writes it ("\u0120the" in byte-level ones).
  std::optional<std::string> id_to_token(int32_t id) const;
  bool is_special(int32_t id) const;
  /// Number of tokens, and the highest id plus one: what an embedding table must have at least.
  int64_t token_count() const;
  int64_t id_limit() const;

  const std::optional<Truncation>& truncation() const;
  const std::optional<Padding>& padding() const;

  struct Impl;

 private:
  friend class DecodeStream;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Text of ids as they come. The pieces and flush() together are decode() of all ids; a character
/// whose bytes are not all there yet is held back.
class DecodeStream {
 public:
  /// Text that is certain now; may be empty.
  std::string push(int32_t id);
  /// What was held back; the stream starts afresh.
  std::string flush();

 private:
  friend class Tokenizer;
  DecodeStream(std::shared_ptr<const Tokenizer::Impl> impl, bool skip)
      : impl_(std::move(impl)), skip_(skip) {}
  std::string take_bytes(bool all);
  std::shared_ptr<const Tokenizer::Impl> impl_;
  bool skip_;
  std::string bytes_;         // byte-level: not given out yet
  std::vector<int32_t> ids_;  // others: a window whose decoded text begins with given_
  std::string given_;
  size_t given_ids_ = 0;
};

}  // namespace sluice::text
