#include "sluice/data/text/documents.h"

#include <algorithm>
#include <filesystem>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/utf8.h"

namespace sluice::data {
namespace {

namespace fs = std::filesystem;

class DocumentReader {
 public:
  explicit DocumentReader(const DocumentLimits& limits) : limits_(limits) {}

  void file(const std::string& path, const std::string& name) {
    const MappedFile mapped = MappedFile::open(path);
    const std::string_view bytes(reinterpret_cast<const char*>(mapped.bytes().data()),
                                 mapped.bytes().size());
    if (!fs::path(path).filename().string().ends_with(".jsonl")) return add(name, bytes, path);
    int64_t line = 0;
    for (size_t at = 0; at < bytes.size();) {
      const size_t end = std::min(bytes.find('\n', at), bytes.size());
      const std::string_view text = bytes.substr(at, end - at);
      at = end + 1;
      ++line;
      if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      const std::string where = path + ":" + std::to_string(line);
      const Json json = parse_json(text, where);
      add(name + ":" + std::to_string(line), json_get<std::string>(json, "text", where), where);
    }
  }

  std::vector<Document> take() { return std::move(documents_); }

 private:
  void add(const std::string& name, std::string_view text, const std::string& where) {
    if (text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos) return;
    const size_t bad = std::min(valid_utf8_prefix(text), text.find('\0'));
    if (bad < text.size()) {
      fail(Code::format,
           "{}: byte 0x{:02X} at offset {} is not text in UTF-8; convert the file (iconv), or take "
           "it out of the folder",
           where, static_cast<unsigned char>(text[bad]), bad);
    }
    bytes_ += text.size();
    if (bytes_ > limits_.bytes)
      fail(Code::limit, "{}: more than {} bytes of text in all; give less", where, limits_.bytes);
    if (static_cast<int64_t>(documents_.size()) >= limits_.documents)
      fail(Code::limit, "{}: more than {} documents; give less", where, limits_.documents);
    documents_.push_back({name, std::string(text), xxhash64(std::as_bytes(std::span(text)))});
  }

  const DocumentLimits& limits_;
  std::vector<Document> documents_;
  uint64_t bytes_ = 0;
};

/// Files below `root`, as paths relative to it, in the order of their names.
std::vector<std::string> files_below(const std::string& root) {
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator at(root, error), end;
  for (; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (at->is_symlink(error) || error) continue;
    if (name.starts_with('.')) {
      if (at->is_directory(error)) at.disable_recursion_pending();
      continue;
    }
    if (at->is_regular_file(error) && name != "manifest.json")
      files.push_back(fs::path(at->path()).lexically_relative(root).string());
  }
  if (error) fail(Code::io, "cannot list {}: {}", root, error.message());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

std::vector<Document> read_documents(const std::string& path, const DocumentLimits& limits) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status))
    fail(Code::missing, "{}: no such file or folder of texts; scripts/data.sh text makes some",
         path);
  DocumentReader reader(limits);
  if (fs::is_directory(status)) {
    for (const std::string& file : files_below(path)) reader.file(path + "/" + file, file);
  } else {
    reader.file(path, fs::path(path).filename().string());
  }
  std::vector<Document> documents = reader.take();
  if (documents.empty())
    fail(Code::missing, "{}: no text in it; expected text files, or .jsonl with {{\"text\": ...}}",
         path);
  return documents;
}

bool held_out(const Document& document, double share) {
  return static_cast<double>(document.hash >> 11) * 0x1p-53 < share;
}

}  // namespace sluice::data
