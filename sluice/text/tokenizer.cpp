#include "sluice/text/tokenizer.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/text/tokenizer_impl.h"
#include "sluice/text/unicode.h"

namespace sluice::text {

using Impl = Tokenizer::Impl;

std::unique_ptr<Impl::Workspace> Impl::take() const {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Workspace> workspace = std::move(idle_.back());
      idle_.pop_back();
      return workspace;
    }
  }
  return std::make_unique<Workspace>();
}

void Impl::give_back(std::unique_ptr<Workspace> workspace) const {
  workspace->scratch.reset();
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(workspace));
}

namespace {

/// Gives the workspace back when the encoding is done; one that met an error is dropped.
class Borrowed {
 public:
  explicit Borrowed(const Impl& impl) : impl_(impl), workspace_(impl.take()) {}
  Impl::Workspace& operator*() { return *workspace_; }
  void give_back() { impl_.give_back(std::move(workspace_)); }

 private:
  const Impl& impl_;
  std::unique_ptr<Impl::Workspace> workspace_;
};

/// Where each byte of `repaired` comes from in `text`.
void repair_with_origins(std::string_view text, std::string& repaired,
                         std::vector<ByteRange>& origins) {
  for (size_t at = 0; at < text.size();) {
    bool incomplete;
    const bool ascii = static_cast<unsigned char>(text[at]) < 0x80;
    const size_t broken = ascii ? 0 : broken_utf8_size(text.substr(at, 4), incomplete);
    const size_t size = broken > 0 ? broken : utf8_size(text[at]);
    if (broken > 0) {
      append_utf8(repaired, kReplacementCharacter);
    } else {
      repaired += text.substr(at, size);
    }
    origins.resize(repaired.size(), {static_cast<uint32_t>(at), static_cast<uint32_t>(at + size)});
    at += size;
  }
}

}  // namespace

void Impl::word_ids(std::string_view word, bool map_bytes, Workspace& workspace,
                    std::vector<int32_t>& out) const {
  const bool cached = word.size() <= WordCache::kLongestWord;
  if (cached && workspace.cache.append(word, out)) {
    return;
  }
  std::string_view mapped = word;
  if (map_bytes) {
    workspace.mapped.clear();
    append_byte_level(workspace.mapped, word);
    mapped = workspace.mapped;
  }
  workspace.tokens.clear();
  model->tokenize(mapped, workspace.model, workspace.tokens);
  const size_t first = out.size();
  for (const Token& token : workspace.tokens) {
    out.push_back(token.id);
  }
  if (cached) {
    workspace.cache.add(word, std::span(out).subspan(first));
  }
}

void Impl::encode_text(std::string_view text, bool offsets, Workspace& workspace,
                       Encoding& out) const {
  if (text.size() > kLongestText) {
    fail(Code::limit, "a text of {} bytes; at most {} can be encoded at once", text.size(),
         kLongestText);
  }
  Scratch& scratch = workspace.scratch;
  scratch.reset();
  scratch.limit = 64 * text.size() + 65536;
  const bool last_maps = pre_tokenizer != nullptr && pre_tokenizer->maps_bytes_last();
  scratch.track = offsets || (pre_tokenizer != nullptr && pre_tokenizer->needs_origins());
  scratch.defer_bytes = last_maps && !offsets;
  Slice whole{text, nullptr, 0, -1};
  if (valid_utf8_prefix(text) != text.size()) {
    std::string& repaired = scratch.text();
    if (scratch.track) {
      std::vector<ByteRange>& origins = scratch.origins();
      repair_with_origins(text, repaired, origins);
      whole.origins = origins.data();
    } else {
      repaired = repair_utf8(text);
    }
    whole.text = repaired;
  }
  workspace.slices.clear();
  added.extract(whole, normalizer.get(), scratch, workspace.slices);
  const char32_t boundary = offsets ? 0 : model->boundary();
  std::string boundary_text;
  if (boundary != 0) {
    append_utf8(boundary_text, boundary);
  }
  const auto use = [&](const Slice& word) {
    if (word.text.empty()) {
      return;
    }
    if (offsets) {
      workspace.tokens.clear();
      model->tokenize(word.text, workspace.model, workspace.tokens);
      for (const Token& token : workspace.tokens) {
        out.ids.push_back(token.id);
        out.offsets.push_back(word.range(token.begin, token.end));
      }
      return;
    }
    if (boundary_text.empty() || scratch.defer_bytes) {
      word_ids(word.text, scratch.defer_bytes, workspace, out.ids);
      return;
    }
    // In pieces that the cache may know.
    const std::string_view all = word.text;
    size_t begin = 0;
    for (size_t at = all.find(boundary_text, 1); at != std::string_view::npos;
         at = all.find(boundary_text, at + boundary_text.size())) {
      const bool run = at >= boundary_text.size() &&
                       all.substr(at - boundary_text.size(), boundary_text.size()) ==
                           std::string_view(boundary_text);
      if (!run) {
        word_ids(all.substr(begin, at - begin), false, workspace, out.ids);
        begin = at;
      }
    }
    word_ids(all.substr(begin), false, workspace, out.ids);
  };
  for (const Slice& slice : workspace.slices) {
    if (slice.token >= 0) {
      out.ids.push_back(slice.token);
      if (offsets) {
        out.offsets.push_back(slice.range(0, slice.text.size()));
      }
    } else if (pre_tokenizer == nullptr) {
      use(slice);
    } else {
      workspace.words.clear();
      pre_tokenizer->split(slice, scratch, workspace.words);
      for (const Slice& word : workspace.words) {
        use(word);
      }
    }
  }
}

namespace {

void cut_encoding(Encoding& encoding, int64_t length, bool left) {
  const auto size = static_cast<int64_t>(encoding.size());
  length = std::max<int64_t>(length, 0);
  if (length >= size) {
    return;
  }
  const auto keep = [&](auto& values) {
    if (static_cast<int64_t>(values.size()) == size) {
      values.erase(left ? values.begin() : values.begin() + length,
                   left ? values.end() - length : values.end());
    }
  };
  keep(encoding.ids);
  keep(encoding.type_ids);
  keep(encoding.attention);
  keep(encoding.special);
  keep(encoding.offsets);
}

void truncate(std::vector<Encoding>& parts, const Truncation& how, int64_t room) {
  int64_t total = 0;
  for (const Encoding& part : parts) {
    total += static_cast<int64_t>(part.size());
  }
  if (total <= room) {
    return;
  }
  if (how.strategy == Truncation::Strategy::longest_first) {
    if (parts.size() == 1) {
      cut_encoding(parts[0], room, how.left);
      return;
    }
    // The shorter one keeps what it has while the longer one can give.
    auto small = static_cast<int64_t>(parts[0].size()),
         large = static_cast<int64_t>(parts[1].size());
    const bool swapped = small > large;
    if (swapped) {
      std::swap(small, large);
    }
    large = small > room ? small : std::max(small, room - small);
    if (small + large > room) {
      small = room / 2;
      large = small + room % 2;
    }
    cut_encoding(parts[0], swapped ? large : small, how.left);
    cut_encoding(parts[1], swapped ? small : large, how.left);
    return;
  }
  const size_t which = how.strategy == Truncation::Strategy::only_first ? 0 : 1;
  const int64_t excess = total - room;
  if (which >= parts.size() || static_cast<int64_t>(parts[which].size()) <= excess) {
    fail(Code::shape, "cannot cut the {} text to {} tokens in all: it has {}, and {} are too many",
         which == 0 ? "first" : "second", room, which < parts.size() ? parts[which].size() : 0,
         excess);
  }
  cut_encoding(parts[which], static_cast<int64_t>(parts[which].size()) - excess, how.left);
}

}  // namespace

Encoding Impl::finish(std::vector<Encoding> parts, const EncodeOptions& options) const {
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i].type_ids.assign(parts[i].size(), static_cast<int32_t>(i));
    parts[i].attention.assign(parts[i].size(), 1);
    parts[i].special.assign(parts[i].size(), 0);
  }
  if (options.truncate && truncation) {
    const int64_t extra = options.add_special_tokens && post_processor != nullptr
                              ? post_processor->added_tokens(parts.size() > 1)
                              : 0;
    truncate(parts, *truncation, std::max<int64_t>(0, truncation->max_length - extra));
  }
  if (post_processor != nullptr) {
    post_processor->apply(parts, options.add_special_tokens,
                          [this](int32_t id) { return token_text(id).value_or(""); });
  }
  Encoding all;
  for (Encoding& part : parts) {
    if (options.offsets) {
      part.offsets.resize(part.size());  // special tokens around an empty text
    }
    if (parts.size() == 1) {
      return std::move(part);
    }
    const auto append = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(all.ids, part.ids);
    append(all.type_ids, part.type_ids);
    append(all.attention, part.attention);
    append(all.special, part.special);
    append(all.offsets, part.offsets);
  }
  return all;
}

int64_t Impl::padded_length(int64_t longest) const {
  int64_t length = padding->fixed_length > 0 ? padding->fixed_length : longest;
  if (padding->multiple_of > 0 && length % padding->multiple_of > 0) {
    length += padding->multiple_of - length % padding->multiple_of;
  }
  return length;
}

void Impl::pad(Encoding& encoding, int64_t length) const {
  const auto missing = length - static_cast<int64_t>(encoding.size());
  if (missing <= 0) {
    return;
  }
  const auto fill = [&](auto& values, auto value) {
    values.insert(padding->left ? values.begin() : values.end(), static_cast<size_t>(missing),
                  value);
  };
  if (!encoding.offsets.empty()) {
    fill(encoding.offsets, ByteRange{});
  }
  fill(encoding.ids, padding->id);
  fill(encoding.type_ids, padding->type_id);
  fill(encoding.attention, uint8_t{0});
  fill(encoding.special, uint8_t{1});
}

std::optional<std::string_view> Impl::token_text(int32_t id) const {
  if (const std::string* text = added.text(id)) {
    return *text;
  }
  return model->has(id) ? std::optional<std::string_view>(model->token(id)) : std::nullopt;
}

std::string Impl::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::vector<std::string> tokens;
  for (const int32_t id : ids) {
    if (const auto text = token_text(id); text && !(skip_special && added.is_special(*text))) {
      tokens.emplace_back(*text);
    }
  }
  if (decoder != nullptr) {
    decoder->apply(tokens);
  }
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (decoder == nullptr && i > 0) {
      out += ' ';
    }
    out += tokens[i];
  }
  return out;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  EncodeOptions options;
  options.add_special_tokens = add_special_tokens;
  return encode(text, options).ids;
}

Encoding Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<Encoding> parts(1);
  Borrowed workspace(*impl_);
  impl_->encode_text(text, options.offsets, *workspace, parts[0]);
  workspace.give_back();
  Encoding result = impl_->finish(std::move(parts), options);
  if (options.pad && impl_->padding) {
    impl_->pad(result, impl_->padded_length(static_cast<int64_t>(result.size())));
  }
  return result;
}

Encoding Tokenizer::encode_pair(std::string_view first, std::string_view second,
                                const EncodeOptions& options) const {
  std::vector<Encoding> parts(2);
  Borrowed workspace(*impl_);
  impl_->encode_text(first, options.offsets, *workspace, parts[0]);
  impl_->encode_text(second, options.offsets, *workspace, parts[1]);
  workspace.give_back();
  Encoding result = impl_->finish(std::move(parts), options);
  if (options.pad && impl_->padding) {
    impl_->pad(result, impl_->padded_length(static_cast<int64_t>(result.size())));
  }
  return result;
}

std::vector<Encoding> Tokenizer::encode_batch(std::span<const std::string_view> texts,
                                              const EncodeOptions& options, int threads) const {
  std::vector<Encoding> results(texts.size());
  EncodeOptions alone = options;
  alone.pad = false;
  std::exception_ptr problem;  // exceptions must not leave the parallel part
  const auto count = static_cast<int64_t>(texts.size());
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) {
    try {
      results[static_cast<size_t>(i)] = encode(texts[static_cast<size_t>(i)], alone);
    } catch (...) {
#pragma omp critical(sluice_text_batch)
      problem = std::current_exception();
    }
  }
  if (problem) {
    std::rethrow_exception(problem);
  }
  if (options.pad && impl_->padding) {
    int64_t longest = 0;
    for (const Encoding& result : results) {
      longest = std::max(longest, static_cast<int64_t>(result.size()));
    }
    for (Encoding& result : results) {
      impl_->pad(result, impl_->padded_length(longest));
    }
  }
  return results;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  return impl_->decode(ids, skip_special_tokens);
}

DecodeStream Tokenizer::stream(bool skip_special_tokens) const {
  return {impl_, skip_special_tokens};
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  int32_t id = impl_->added.find(token);
  id = id < 0 ? impl_->model->find(token) : id;
  return id < 0 ? std::nullopt : std::optional(id);
}

std::optional<std::string> Tokenizer::id_to_token(int32_t id) const {
  const auto text = impl_->token_text(id);
  return text ? std::optional<std::string>(*text) : std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const {
  const auto text = impl_->token_text(id);
  return text && impl_->added.is_special(*text);
}

int64_t Tokenizer::token_count() const {
  auto count = static_cast<int64_t>(impl_->model->size());
  impl_->added.each([&](int32_t, const AddedToken& token) {
    count += impl_->model->find(token.content) < 0 ? 1 : 0;
  });
  return count;
}

int64_t Tokenizer::id_limit() const {
  return int64_t{1} + std::max(impl_->model->highest_id(), impl_->added.highest_id());
}

const std::optional<Truncation>& Tokenizer::truncation() const { return impl_->truncation; }
const std::optional<Padding>& Tokenizer::padding() const { return impl_->padding; }

std::string DecodeStream::take_bytes(bool all) {
  std::string out;
  std::string_view rest = bytes_;
  while (!rest.empty()) {
    const size_t good = valid_utf8_prefix(rest);
    out += rest.substr(0, good);
    rest.remove_prefix(good);
    if (rest.empty()) {
      break;
    }
    bool incomplete;
    const size_t broken = broken_utf8_size(rest.substr(0, 4), incomplete);
    if (incomplete && !all) {
      break;
    }
    append_utf8(out, kReplacementCharacter);
    rest.remove_prefix(broken);
  }
  bytes_ = std::string(rest);
  return out;
}

std::string DecodeStream::push(int32_t id) {
  if (impl_->decoder != nullptr && impl_->decoder->joins_bytes()) {
    const auto text = impl_->token_text(id);
    if (text && !(skip_ && impl_->added.is_special(*text))) {
      append_token_bytes(bytes_, *text);
    }
    return take_bytes(false);
  }
  ids_.push_back(id);
  const std::string text = impl_->decode(ids_, skip_);
  // U+FFFD at the end may be a character whose other bytes are still to come.
  if (text.size() <= given_.size() || text.ends_with("\xEF\xBF\xBD") || !text.starts_with(given_)) {
    return "";
  }
  std::string fresh = text.substr(given_.size());
  // The window goes on with the ids of this piece, so that a token still has one before it.
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(given_ids_));
  given_ids_ = ids_.size();
  given_ = impl_->decode(ids_, skip_);
  return fresh;
}

std::string DecodeStream::flush() {
  std::string out;
  if (impl_->decoder != nullptr && impl_->decoder->joins_bytes()) {
    out = take_bytes(true);
  } else {
    const std::string text = impl_->decode(ids_, skip_);
    out = text.size() > given_.size() ? text.substr(given_.size()) : "";
  }
  bytes_.clear();
  ids_.clear();
  given_.clear();
  given_ids_ = 0;
  return out;
}

}  // namespace sluice::text
