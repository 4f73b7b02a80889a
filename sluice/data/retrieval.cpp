#include "sluice/data/retrieval.h"

#include <charconv>
#include <functional>
#include <set>
#include <string_view>
#include <unordered_map>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/utf8.h"

namespace sluice::data {
namespace {

constexpr size_t kLargestTable = size_t{1} << 30;
constexpr int64_t kHighestGrade = 1'000'000;

/// Calls `use(line, "file: line 7")` for each line that is not empty.
void each_line(const std::string& path,
               const std::function<void(std::string_view, const std::string&)>& use) {
  const std::string text = read_text_file(path, kLargestTable);
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    std::string_view line(text.data() + at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++number;
    if (!line.empty()) use(line, fmt::format("{}: line {}", path, number));
    at = end + 1;
  }
}

std::string text_of(const Json& object, const char* key, const std::string& what) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string())
    fail(Code::format, "{}: key '{}': expected text, found {}", what, key,
         it == object.end() ? "nothing" : it->type_name());
  return it->get<std::string>();
}

Json object_of(std::string_view line, const std::string& what) {
  Json object = parse_json(line, what, 16);
  if (!object.is_object())
    fail(Code::format, "{}: expected an object, found {}", what, object.type_name());
  return object;
}

using Index = std::unordered_map<std::string, int64_t>;

Index read_texts(const std::string& path, std::vector<std::string>& ids,
                 std::vector<std::string>& texts) {
  Index index;
  each_line(path, [&](std::string_view line, const std::string& what) {
    const Json object = object_of(line, what);
    const std::string id = text_of(object, "_id", what);
    if (!index.emplace(id, std::ssize(ids)).second)
      fail(Code::format, "{}: the id '{}' was there before", what, printable(id));
    std::string text = object.contains("title") ? text_of(object, "title", what) : "";
    const std::string body = text_of(object, "text", what);
    if (!text.empty() && !body.empty()) text += ' ';
    ids.push_back(id);
    texts.push_back(text + body);
  });
  if (ids.empty()) fail(Code::format, "{}: no line; expected at least one text", path);
  return index;
}

int64_t number_of(std::string_view text) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : -1;
}

std::vector<std::string> fields_of(std::string_view line) {
  std::vector<std::string> fields(1);
  for (const char c : line) {
    if (c == '\t') {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  return fields;
}

}  // namespace

RetrievalSet read_retrieval_set(const std::string& folder) {
  RetrievalSet set;
  const Index documents = read_texts(folder + "/corpus.jsonl", set.document_ids, set.documents);
  const Index queries = read_texts(folder + "/queries.jsonl", set.query_ids, set.queries);
  std::string path = folder + "/qrels.tsv";
  if (!file_exists(path) && file_exists(folder + "/qrels/test.tsv"))
    path = folder + "/qrels/test.tsv";
  std::set<std::pair<int64_t, int64_t>> seen;
  bool first = true, any = false;
  each_line(path, [&](std::string_view line, const std::string& what) {
    const std::vector<std::string> fields = fields_of(line);
    if (fields.size() != 3)
      fail(Code::format, "{}: {} fields; expected query id, document id and grade, between tabs",
           what, fields.size());
    const int64_t grade = number_of(fields[2]);
    const bool heading =
        first && grade < 0 && fields[2].find_first_of("0123456789") == std::string::npos;
    first = false;
    if (heading) return;
    if (grade < 0 || grade > kHighestGrade)
      fail(Code::format, "{}: grade '{}'; expected a whole number from 0", what,
           printable(fields[2]));
    const auto query = queries.find(fields[0]), document = documents.find(fields[1]);
    if (query == queries.end() || document == documents.end())
      fail(Code::format, "{}: no {} '{}'", what, query == queries.end() ? "query" : "document",
           printable(query == queries.end() ? fields[0] : fields[1]));
    if (!seen.insert({query->second, document->second}).second)
      fail(Code::format, "{}: query '{}' and document '{}' were judged before", what,
           printable(fields[0]), printable(fields[1]));
    set.judgements.push_back({query->second, document->second, grade});
    any = any || grade > 0;
  });
  if (!any) fail(Code::format, "{}: no relevant document; expected a grade above 0", path);
  return set;
}

LabelledTexts read_labelled_texts(const std::string& path) {
  LabelledTexts set;
  each_line(path, [&](std::string_view line, const std::string& what) {
    const Json object = object_of(line, what);
    set.texts.push_back(text_of(object, "text", what));
    set.labels.push_back(text_of(object, "label", what));
  });
  if (set.texts.empty()) fail(Code::format, "{}: no line; expected at least one text", path);
  return set;
}

}  // namespace sluice::data
