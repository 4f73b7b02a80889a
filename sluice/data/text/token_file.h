// Packed tokens: the ids of a text, ready to be mapped, with the tokenizer that made them.
//
//   offset  type
//        0  8 bytes  "SLTOKENS"
//        8  u32      version, 1
//       12  u32      bytes per id, 2 or 4
//       16  u64      ids for training
//       24  u64      ids held out
//       32  u64      bytes of the description
//       40  u64      xxHash64 of the description
//       48  u64      xxHash64 of all ids
//       56  u64      xxHash64 of the 56 bytes before
//       64  JSON     description, then zeros up to a multiple of 8
//        .. ids      for training, then held out; little endian
//
// Every document is preceded by the separator; documents follow each other without padding, so that
// a window of any length can be cut anywhere, and a document longer than the window goes on in the
// next one. docs/formats.md
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace sluice::data {

enum class TextSplit { train, held_out };

/// What a token file says of itself; the description in the file.
struct TokenInfo {
  int64_t vocabulary = 0;        ///< ids are below
  int64_t separator = 0;         ///< id before every document
  std::string tokenizer_json{};  ///< text of the tokenizer.json
  std::string source{};          ///< of the texts, for people
  uint64_t fingerprint = 0;      ///< of the texts, the split and the options
  int64_t train_documents = 0, held_out_documents = 0;
  int64_t train_bytes = 0, held_out_bytes = 0;  ///< of the texts, in UTF-8
};

/// Collects ids and writes them.
class TokenWriter {
 public:
  explicit TokenWriter(TokenInfo info) : info_(std::move(info)) {}
  /// Appends the separator and the ids of a document of `bytes` bytes. Throws Error{format} for ids
  /// outside the vocabulary.
  void add(TextSplit split, std::span<const int32_t> ids, size_t bytes, const std::string& name);
  const TokenInfo& info() const { return info_; }
  int64_t count(TextSplit split) const;
  void write(const std::string& path) const;
  std::vector<std::byte> bytes() const;

 private:
  TokenInfo info_;
  std::vector<uint32_t> train_, held_out_;
};

/// An opened token file; cheap to copy.
class TokenFile {
 public:
  /// Throws Error{missing, io} for the file, Error{format} naming field, expected and found,
  /// Error{unsupported} for a newer version, Error{limit}. Checksums and ids are all checked.
  static TokenFile open(const std::string& path);
  static TokenFile parse(std::span<const std::byte> bytes, const std::string& what);

  const std::string& path() const;
  const TokenInfo& info() const;
  uint64_t checksum() const;  ///< of ids and description
  int64_t count(TextSplit split) const;
  /// Ids [first, first + out.size()). Throws Error{usage} outside of the split.
  void read(TextSplit split, int64_t first, std::span<int64_t> out) const;

 private:
  struct State;
  static TokenFile checked(std::shared_ptr<State> state);
  std::shared_ptr<const State> state_;
};

}  // namespace sluice::data
