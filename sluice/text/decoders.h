// Decoders: tokens back into text.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"

namespace sluice::text {

class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Changes the texts of tokens; the decoded text is all of them joined.
  virtual void apply(std::vector<std::string>& tokens) const = 0;
  /// True when the text is the bytes of the tokens, one after the other: streams need no look back.
  virtual bool joins_bytes() const { return false; }
};

/// From the "decoder" of a tokenizer.json: ByteLevel, WordPiece, Metaspace, BPEDecoder, CTC,
/// Replace, Fuse, Strip, ByteFallback, Sequence. Throws Error{config, format, unsupported} naming
/// `what`.
std::unique_ptr<Decoder> make_decoder(const Json& json, const std::string& what);

std::unique_ptr<Decoder> make_byte_level_decoder();
/// SentencePiece: U+2581 to blank, byte tokens to bytes, and one leading blank less where
/// `strips_first`.
std::unique_ptr<Decoder> make_sentence_piece_decoder(bool strips_first);

/// The bytes that a token of a byte-level vocabulary stands for; a token with other characters
/// stands for itself.
void append_token_bytes(std::string& out, std::string_view token);

}  // namespace sluice::text
