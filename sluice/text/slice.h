// A stretch of text on its way through the stages of a tokenizer, and where its bytes came from.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::text {

/// A range of bytes of the text that was given to the tokenizer.
struct ByteRange {
  uint32_t begin = 0, end = 0;
  bool operator==(const ByteRange&) const = default;
};

struct Slice {
  std::string_view text;  ///< valid UTF-8; owned by the Scratch or the caller
  const ByteRange* origins =
      nullptr;         ///< per byte of `text`, the input bytes of its character; null: one to one
  uint32_t begin = 0;  ///< input position of the start
  int32_t token = -1;  ///< an added token: later stages leave it alone

  /// Bytes [from, to) of this slice.
  Slice part(size_t from, size_t to) const {
    Slice result{text.substr(from, to - from), origins, 0, -1};
    if (origins != nullptr) {
      result.origins += from;
      result.begin = from < to ? origins[from].begin : begin;
    } else {
      result.begin = begin + static_cast<uint32_t>(from);
    }
    return result;
  }
  /// Input bytes of the character of `size` bytes at `at`.
  ByteRange origin(size_t at, size_t size) const {
    if (origins != nullptr) {
      return origins[at];
    }
    const auto start = static_cast<uint32_t>(begin + at);
    return {start, static_cast<uint32_t>(start + size)};
  }
  /// Input bytes of text[from, to), whole characters.
  ByteRange range(size_t from, size_t to) const;
};

/// Memory of one encoding under way, reused by the next.
class Scratch {
 public:
  bool track = false;        ///< keep origins; without them slices know only their text
  bool defer_bytes = false;  ///< a final byte-level step leaves its mapping to the word cache

  size_t limit =
      size_t{1} << 20;  ///< largest text a stage may make; stages of hostile files multiply texts

  std::string& text();
  std::vector<ByteRange>& origins();
  void reset();
  std::vector<Slice> spare;  ///< for sequences of pre-tokenizers

 private:
  std::deque<std::string> texts_;
  std::deque<std::vector<ByteRange>> origins_;
  size_t texts_used_ = 0, origins_used_ = 0;
};

/// Writes the changed version of a slice piece by piece.
class Rewriter {
 public:
  Rewriter(const Slice& from, Scratch& scratch);
  /// Bytes [from, to) of the old text unchanged; whole characters.
  void keep(size_t from, size_t to);
  /// New text that stands for `origin`.
  void put(std::string_view text, ByteRange origin);
  /// For code that appends to text() itself: marks everything appended since the last call as
  /// coming from `origin`.
  std::string& text() { return text_; }
  void mark(ByteRange origin);
  /// Throws Error{limit} when `more` bytes would be too many.
  void check(size_t more) const;
  /// The new slice; begins in the input where its first character does.
  Slice finish();

 private:
  const Slice& from_;
  std::string& text_;
  size_t limit_;
  std::vector<ByteRange>* origins_;
};

}  // namespace sluice::text
