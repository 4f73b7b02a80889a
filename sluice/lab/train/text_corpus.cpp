#include "sluice/lab/train/text_corpus.h"

#include <algorithm>
#include <optional>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/data/directory.h"
#include "sluice/data/text/documents.h"
#include "sluice/text/tokenizer.h"
#include "sluice/text/train_bpe.h"

namespace sluice::lab {
namespace {

constexpr const char* kSeparator = "<|endoftext|>";

/// A path, or the name of a set of texts that scripts/data.sh has made.
std::string find_text(const std::string& text) {
  if (file_exists(text) || text.find('/') != std::string::npos) return text;
  const std::string path = data::data_directory(text);
  if (!file_exists(path))
    fail(Code::missing,
         "text '{}': neither a path nor a set of texts: there is no {}; "
         "scripts/data.sh {}",
         text, path, text);
  return path;
}

uint64_t fingerprint_of(const std::vector<data::Document>& documents, const CorpusConfig& corpus) {
  std::vector<uint64_t> parts{1};  // version of what is done here
  for (const data::Document& document : documents) parts.push_back(document.hash);
  const Json options = {corpus.held_out, corpus.vocabulary, corpus.train_tokens,
                        corpus.held_out_tokens};
  const std::string text = options.dump();
  parts.push_back(xxhash64(std::as_bytes(std::span(text))));
  return xxhash64(std::as_bytes(std::span(parts)));
}

std::string describe(const std::string& path, const std::vector<data::Document>& documents) {
  int64_t bytes = 0;
  for (const data::Document& document : documents) bytes += int64_t(document.text.size());
  const size_t slash = path.find_last_not_of('/');
  const std::string name = path.substr(0, slash + 1);
  return fmt::format("{}: {} documents, {}", name.substr(name.rfind('/') + 1), documents.size(),
                     format_bytes(bytes));
}

std::string train_tokenizer(const std::vector<data::Document>& documents,
                            const CorpusConfig& corpus) {
  // Held-out documents may not shape the vocabulary.
  std::vector<text::TrainingText> texts;
  for (const data::Document& document : documents) {
    if (!data::held_out(document, corpus.held_out)) texts.push_back({document.text, document.name});
  }
  if (texts.empty())
    fail(Code::config, "held_out = {}: none of the {} documents is left to train on",
         corpus.held_out, documents.size());
  Progress progress("tokenizer", corpus.vocabulary, "tokens");
  text::BpeTrainOptions options;
  options.vocabulary = corpus.vocabulary;
  options.special_tokens = {kSeparator};
  options.progress = [&](int64_t done, int64_t) { progress.update(done); };
  std::string json = text::train_bpe(texts, options);
  progress.finish();
  return json;
}

data::TokenWriter pack(const std::vector<data::Document>& documents, const CorpusConfig& corpus,
                       data::TokenInfo info) {
  const auto tokenizer = text::Tokenizer::parse(info.tokenizer_json, "the trained tokenizer");
  info.vocabulary = tokenizer.id_limit();
  info.separator = tokenizer.token_to_id(kSeparator).value();
  data::TokenWriter writer(std::move(info));
  Progress progress("tokens", static_cast<int64_t>(documents.size()), "documents");
  for (size_t i = 0; i < documents.size(); ++i) {
    const data::Document& document = documents[i];
    const bool out = data::held_out(document, corpus.held_out);
    const auto split = out ? data::TextSplit::held_out : data::TextSplit::train;
    const int64_t most = out ? corpus.held_out_tokens : corpus.train_tokens;
    if (most == 0 || writer.count(split) < most) {
      const std::vector<int32_t> ids = tokenizer.encode(document.text);
      // The last document that fits: a limit is a limit.
      if (most == 0 || writer.count(split) + 1 + int64_t(ids.size()) <= most)
        writer.add(split, ids, document.text.size(), document.name);
    }
    progress.update(static_cast<int64_t>(i + 1));
  }
  progress.finish();
  return writer;
}

}  // namespace

data::TokenFile prepare_tokens(const CorpusConfig& corpus) {
  if (corpus.text.empty()) return data::TokenFile::open(corpus.tokens);
  const std::string path = find_text(corpus.text);
  std::vector<data::Document> documents = data::read_documents(path);
  std::sort(documents.begin(), documents.end(), [](const auto& a, const auto& b) {
    return std::pair(a.hash, a.text) < std::pair(b.hash, b.text);
  });
  const uint64_t fingerprint = fingerprint_of(documents, corpus);
  if (file_exists(corpus.tokens)) {
    data::TokenFile file = data::TokenFile::open(corpus.tokens);
    if (file.info().fingerprint == fingerprint) return file;
    log_line(fmt::format("{} is of another text or other options: packing anew", corpus.tokens));
  }
  data::TokenInfo info;
  info.tokenizer_json = train_tokenizer(documents, corpus);
  info.source = describe(path, documents);
  info.fingerprint = fingerprint;
  pack(documents, corpus, std::move(info)).write(corpus.tokens);
  return data::TokenFile::open(corpus.tokens);
}

void write_held_out_text(const data::TokenFile& tokens, const std::string& path) {
  const auto tokenizer =
      text::Tokenizer::parse(tokens.info().tokenizer_json, tokens.path() + ": tokenizer");
  std::vector<int64_t> ids(static_cast<size_t>(tokens.count(data::TextSplit::held_out)));
  tokens.read(data::TextSplit::held_out, 0, ids);
  std::string out;
  for (size_t at = 0; at < ids.size();) {
    size_t end = at + 1;  // behind the separator
    while (end < ids.size() && ids[end] != tokens.info().separator) ++end;
    const std::vector<int32_t> document(ids.begin() + static_cast<std::ptrdiff_t>(at + 1),
                                        ids.begin() + static_cast<std::ptrdiff_t>(end));
    if (!out.empty()) out += "\n";
    out += tokenizer.decode(document, false);
    at = end;
  }
  write_text_file(path, out);
}

}  // namespace sluice::lab
