// Normalizers: what is done to a text before it is cut into words.
#pragma once
#include <memory>
#include <string>

#include "sluice/base/json_fwd.h"
#include "sluice/text/slice.h"

namespace sluice::text {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// Replaces `slice` by its normalized form, held in `scratch`. Thread-safe. Throws Error{limit}.
  virtual void apply(Slice& slice, Scratch& scratch) const = 0;
};

/// From the "normalizer" of a tokenizer.json: BertNormalizer, Strip, StripAccents, NFC, NFD, NFKC,
/// NFKD, Sequence, Lowercase, Nmt, Precompiled, Replace, Prepend, ByteLevel. Throws Error{config,
/// format, unsupported} naming `what`.
std::unique_ptr<Normalizer> make_normalizer(const Json& json, const std::string& what);
/// U+2581 for every blank and, with `prefix`, before the text.
std::unique_ptr<Normalizer> make_sentence_piece_normalizer(bool prefix);

/// SentencePiece's compiled character map: a double-array trie and the texts it points to, base64
/// in the file.
std::unique_ptr<Normalizer> make_precompiled(std::string_view base64, const std::string& what);

/// Byte b as the printable character of byte-level vocabularies, UTF-8.
std::string_view byte_level_character(unsigned char byte);
/// The byte that character `c` stands for, or -1.
int byte_level_byte(char32_t c);
void append_byte_level(std::string& out, std::string_view bytes);
/// Every byte of `slice` as its printable character.
void map_bytes(Slice& slice, Scratch& scratch);

}  // namespace sluice::text
