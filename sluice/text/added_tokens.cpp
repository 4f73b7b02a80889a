#include "sluice/text/added_tokens.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

size_t character_before(std::string_view text, size_t at) {
  do {
    --at;
  } while (at > 0 && is_utf8_continuation(text[at]));
  return at;
}

bool word_before(std::string_view text, size_t at) {
  size_t start = character_before(text, at);
  return is_word(next_code_point(text, start));
}

bool word_at(std::string_view text, size_t at) { return is_word(next_code_point(text, at)); }

}  // namespace

void AddedTokens::Matcher::add(std::string_view content, int32_t id) {
  starts_[static_cast<unsigned char>(content[0])] = true;
  int32_t node = 0;
  for (const char c : content) {
    const auto byte = static_cast<unsigned char>(c);
    const PairTable::Value* found = trie_.find(node, byte);
    if (found != nullptr) {
      node = found->first;
    } else {
      trie_.set(node, byte, {nodes_, -1});
      node = nodes_++;
      ends_.push_back(-1);
    }
  }
  ends_[static_cast<size_t>(node)] = id;
}

size_t AddedTokens::Matcher::next_start(std::string_view text, size_t at) const {
  while (at < text.size() && !starts_[static_cast<unsigned char>(text[at])]) {
    ++at;
  }
  return at;
}

size_t AddedTokens::Matcher::match(std::string_view text, size_t at, int32_t& id) const {
  size_t longest = 0;
  int32_t node = 0;
  for (size_t end = at; end < text.size();) {
    const PairTable::Value* next = trie_.find(node, static_cast<unsigned char>(text[end]));
    if (next == nullptr) {
      break;
    }
    ++end;
    node = next->first;
    if (ends_[static_cast<size_t>(node)] >= 0) {
      longest = end - at;
      id = ends_[static_cast<size_t>(node)];
    }
  }
  return longest;
}

void AddedTokens::add(const std::vector<AddedToken>& tokens, const Model& model,
                      const Normalizer* normalizer, const std::string& what) {
  auto next = static_cast<int64_t>(model.size());
  if (!tokens_.empty() && (highest_id() >= next || next == 0)) {
    next = highest_id() + 1;
  }
  Scratch scratch;
  size_t bytes = 0;
  for (const AddedToken& token : tokens) {
    if (token.content.empty()) {
      continue;
    }
    bytes += token.content.size();
    if (token.content.size() > kLongest || bytes > kMostBytes) {
      fail(Code::limit,
           "{}: the added token {} has {} bytes; at most {} are allowed, and {} for all", what,
           shown(token.content), token.content.size(), kLongest, kMostBytes);
    }
    int32_t id = find(token.content);
    id = id < 0 ? model.find(token.content) : id;
    if (id < 0) {
      if (next >= int64_t{1} << 28) {
        fail(Code::limit, "{}: no id is left for the added token {}", what, shown(token.content));
      }
      id = static_cast<int32_t>(next++);
    }
    if (token.normalized && normalizer != nullptr) {
      Slice slice{token.content, nullptr, 0, -1};
      normalizer->apply(slice, scratch);
      if (slice.text != token.content) {
        shown_[id] = std::string(slice.text);
      }
      scratch.reset();
    }
    ids_[token.content] = id;
    if (token.special) {
      specials_.insert(token.content);
    }
    tokens_[id] = token;
  }
  raw_ = Matcher();
  normalized_ = Matcher();
  for (const auto& [id, token] : tokens_) {
    const std::string& form = token.normalized ? *text(id) : token.content;
    if (!form.empty()) {
      (token.normalized ? normalized_ : raw_).add(form, id);
    }
  }
}

int32_t AddedTokens::find(std::string_view content) const {
  const auto place = ids_.find(std::string(content));
  return place == ids_.end() ? -1 : place->second;
}

const std::string* AddedTokens::text(int32_t id) const {
  const auto token = tokens_.find(id);
  if (token == tokens_.end()) {
    return nullptr;
  }
  const auto other = shown_.find(id);
  return other != shown_.end() ? &other->second : &token->second.content;
}

void AddedTokens::cut(const Slice& slice, const Matcher& matcher, std::vector<Slice>& out) const {
  const std::string_view text = slice.text;
  size_t done = 0;
  for (size_t at = matcher.next_start(text, 0); at < text.size();
       at = matcher.next_start(text, at)) {
    int32_t id = -1;
    const size_t size = matcher.match(text, at, id);
    if (size == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + size;
    at = end;
    const AddedToken& token = tokens_.at(id);
    if (token.single_word &&
        ((begin > 0 && word_before(text, begin)) || (end < text.size() && word_at(text, end)))) {
      continue;
    }
    while (token.lstrip && begin > done) {
      const size_t before = character_before(text, begin);
      size_t place = before;
      if (!is_whitespace(next_code_point(text, place))) {
        break;
      }
      begin = before;
    }
    begin = std::max(begin, token.lstrip ? done : size_t{0});
    while (token.rstrip && end < text.size()) {
      size_t next = end;
      if (!is_whitespace(next_code_point(text, next))) {
        break;
      }
      end = next;
    }
    if (done < begin) {
      out.push_back(slice.part(done, begin));
    }
    out.push_back(slice.part(begin, end));
    out.back().token = id;
    done = end;
  }
  if (done < text.size()) {
    out.push_back(slice.part(done, text.size()));
  }
}

void AddedTokens::extract(const Slice& text, const Normalizer* normalizer, Scratch& scratch,
                          std::vector<Slice>& out) const {
  std::vector<Slice>& first = scratch.spare;
  first.clear();
  if (raw_.empty()) {
    if (!text.text.empty()) {
      first.push_back(text);
    }
  } else {
    cut(text, raw_, first);
  }
  for (Slice& slice : first) {
    if (slice.token >= 0) {
      out.push_back(slice);
      continue;
    }
    if (normalizer != nullptr) {
      normalizer->apply(slice, scratch);
    }
    if (slice.text.empty()) {
      continue;
    }
    if (!normalized_.empty()) {
      cut(slice, normalized_, out);
    } else {
      out.push_back(slice.part(0, slice.text.size()));
    }
  }
}

}  // namespace sluice::text
