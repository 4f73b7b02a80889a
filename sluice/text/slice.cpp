#include "sluice/text/slice.h"

#include "sluice/base/error.h"
#include "sluice/text/unicode.h"

namespace sluice::text {

ByteRange Slice::range(size_t from, size_t to) const {
  if (from >= to || to > text.size()) {
    const auto at = static_cast<uint32_t>(begin);
    return {at, at};
  }
  if (origins != nullptr) {
    return {origins[from].begin, origins[to - 1].end};
  }
  while (from > 0 && is_utf8_continuation(text[from])) {
    --from;
  }
  while (to < text.size() && is_utf8_continuation(text[to])) {
    ++to;
  }
  return {static_cast<uint32_t>(begin + from), static_cast<uint32_t>(begin + to)};
}

std::string& Scratch::text() {
  if (texts_used_ == texts_.size()) {
    texts_.emplace_back();
  }
  std::string& next = texts_[texts_used_++];
  next.clear();
  return next;
}

std::vector<ByteRange>& Scratch::origins() {
  if (origins_used_ == origins_.size()) {
    origins_.emplace_back();
  }
  std::vector<ByteRange>& next = origins_[origins_used_++];
  next.clear();
  return next;
}

void Scratch::reset() {
  // A single huge text must not keep its memory for ever.
  constexpr size_t kKept = 64, kKeptBytes = size_t{1} << 20;
  if (texts_.size() > kKept) {
    texts_.resize(kKept);
  }
  if (origins_.size() > kKept) {
    origins_.resize(kKept);
  }
  for (std::string& text : texts_) {
    if (text.capacity() > kKeptBytes) {
      std::string().swap(text);
    }
  }
  for (auto& origins : origins_) {
    if (origins.capacity() > kKeptBytes) {
      std::vector<ByteRange>().swap(origins);
    }
  }
  texts_used_ = origins_used_ = 0;
}

Rewriter::Rewriter(const Slice& from, Scratch& scratch)
    : from_(from),
      text_(scratch.text()),
      limit_(scratch.limit),
      origins_(scratch.track ? &scratch.origins() : nullptr) {}

void Rewriter::keep(size_t from, size_t to) {
  text_.append(from_.text.substr(from, to - from));
  if (origins_ == nullptr) {
    return;
  }
  if (from_.origins != nullptr) {
    origins_->insert(origins_->end(), from_.origins + from, from_.origins + to);
    return;
  }
  for (size_t at = from; at < to;) {
    const size_t size = utf8_size(from_.text[at]);
    origins_->insert(origins_->end(), size, from_.origin(at, size));
    at += size;
  }
}

void Rewriter::put(std::string_view text, ByteRange origin) {
  check(text.size());
  text_.append(text);
  mark(origin);
}

void Rewriter::mark(ByteRange origin) {
  check(0);
  if (origins_ != nullptr) {
    origins_->resize(text_.size(), origin);
  }
}

void Rewriter::check(size_t more) const {
  if (text_.size() + more > limit_) {
    fail(Code::limit, "a stage of the tokenizer makes more than {} bytes of a text of {}", limit_,
         from_.text.size());
  }
}

Slice Rewriter::finish() {
  Slice result{text_, nullptr, from_.begin, -1};
  if (origins_ != nullptr && !text_.empty()) {
    result.origins = origins_->data();
  }
  return result;
}

}  // namespace sluice::text
