// Texts to train on: the documents of a folder, and which of them are held out.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sluice::data {

struct Document {
  std::string name;  ///< "brown.jsonl:17", "books/emma.txt"
  std::string text;  ///< valid UTF-8 without zero bytes, not empty
  /// Decides about held_out; equal texts have equal ones.
  uint64_t hash = 0;
};

struct DocumentLimits {
  uint64_t bytes = uint64_t{4} << 30;  ///< of all texts
  int64_t documents = 10'000'000;
};

/// The documents of `path`: a file, or a folder with everything below it, in the order of names.
/// A file NAME.jsonl holds one document a line, {"text": "..."} with whatever other keys; any other
/// file is one document. Hidden files, links and "manifest.json" are passed over, and texts of only
/// white space. Throws Error{missing} when nothing is left, Error{format} naming file and offset of
/// what is not UTF-8 or holds a zero byte, Error{limit}.
std::vector<Document> read_documents(const std::string& path, const DocumentLimits& limits = {});

/// True for about `share` of all documents: those whose hash is small. Depends on the text alone,
/// so a document stays on its side when others come and go, and copies of it go with it.
bool held_out(const Document& document, double share);

}  // namespace sluice::data
