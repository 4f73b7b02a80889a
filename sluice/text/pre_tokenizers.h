// Pre-tokenizers: how a normalized text is cut into the words that the model looks at.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/text/slice.h"

namespace sluice::text {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  /// Appends the words of `slice` to `out`; empty ones may be among them. Thread-safe. Throws
  /// Error{limit}.
  virtual void split(const Slice& slice, Scratch& scratch, std::vector<Slice>& out) const = 0;
  /// True for a byte-level step (or a sequence that ends with one): with Scratch::defer_bytes its
  /// words are left unmapped, and the caller maps them.
  virtual bool maps_bytes_last() const { return false; }
  /// True when the result depends on where in the input a slice begins.
  virtual bool needs_origins() const { return false; }
};

/// From the "pre_tokenizer" of a tokenizer.json: ByteLevel, Split, Metaspace, BertPreTokenizer,
/// Whitespace, WhitespaceSplit, Punctuation, Digits, CharDelimiterSplit, FixedLength, Sequence.
/// Throws Error{config, format, unsupported} naming `what`.
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json& json, const std::string& what);
/// Split by `expression`, every match a word of its own, then byte-level; the words of GGUF
/// vocabularies.
std::unique_ptr<PreTokenizer> make_byte_level_split(std::string_view expression,
                                                    const std::string& what);

/// GPT-2's expression, which ByteLevel uses by default.
extern const std::string_view kGpt2Expression;

}  // namespace sluice::text
