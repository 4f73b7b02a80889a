#include "sluice/text/tables.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "sluice/base/error.h"
#include "sluice/text/unicode.h"

namespace sluice::text {

uint64_t hash_text(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }

void Vocabulary::add(std::string_view token, int64_t id, std::string_view what) {
  if (token.size() > kLongestToken) {
    fail(Code::limit, "{}: token {} has {} bytes; at most {} are allowed", what, shown(token),
         token.size(), kLongestToken);
  }
  if (id < 0 || id >= int64_t{1} << 28) {
    fail(Code::limit, "{}: token {} has id {}; expected 0 to {}", what, shown(token), id,
         (int64_t{1} << 28) - 1);
  }
  if (bytes_.size() + token.size() > size_t{1} << 31) {
    fail(Code::limit, "{}: more than 2 GB of tokens", what);
  }
  if (2 * (used_ + 1) > entries_.size()) {
    grow();
  }
  const uint64_t hash = hash_text(token);
  size_t i = hash & (entries_.size() - 1);
  while (entries_[i].id >= 0 &&
         !(entries_[i].hash == hash &&
           std::string_view(bytes_).substr(entries_[i].at, entries_[i].size) == token)) {
    i = (i + 1) & (entries_.size() - 1);
  }
  Entry& entry = entries_[i];
  if (entry.id < 0) {
    entry = {hash, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(token.size()), 0};
    bytes_ += token;
    ++used_;
  }
  entry.id = static_cast<int32_t>(id);
  order_.push_back({entry.at, entry.size});
  ids_.push_back(entry.id);
  highest_ = std::max(highest_, entry.id);
  longest_ = std::max(longest_, token.size());
}

void Vocabulary::grow() {
  std::vector<Entry> old = std::move(entries_);
  entries_.assign(old.empty() ? 64 : 2 * old.size(), Entry{0, 0, 0, -1});
  for (const Entry& entry : old) {
    if (entry.id >= 0) {
      size_t i = entry.hash & (entries_.size() - 1);
      while (entries_[i].id >= 0) {
        i = (i + 1) & (entries_.size() - 1);
      }
      entries_[i] = entry;
    }
  }
}

void Vocabulary::finish(std::string_view what) {
  if (highest_ >= 0 && static_cast<size_t>(highest_) > 4 * order_.size() + 65536) {
    fail(Code::limit, "{}: the highest id is {} in a vocabulary of {} tokens", what, highest_,
         order_.size());
  }
  by_id_.assign(static_cast<size_t>(highest_ + 1), 0);
  for (size_t i = 0; i < order_.size(); ++i) {
    uint32_t& slot = by_id_[static_cast<size_t>(ids_[i])];
    if (slot == 0) {
      slot = static_cast<uint32_t>(i + 1);
    }
  }
  std::vector<int32_t>().swap(ids_);
}

int32_t Vocabulary::find(std::string_view token) const {
  if (entries_.empty()) {
    return -1;
  }
  const uint64_t hash = hash_text(token);
  for (size_t i = hash & (entries_.size() - 1); entries_[i].id >= 0;
       i = (i + 1) & (entries_.size() - 1)) {
    if (entries_[i].hash == hash &&
        std::string_view(bytes_).substr(entries_[i].at, entries_[i].size) == token) {
      return entries_[i].id;
    }
  }
  return -1;
}

bool Vocabulary::has(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < by_id_.size() && by_id_[static_cast<size_t>(id)] != 0;
}

std::string_view Vocabulary::token(int32_t id) const {
  if (!has(id)) {
    return {};
  }
  const Text& text = order_[by_id_[static_cast<size_t>(id)] - 1];
  return std::string_view(bytes_).substr(text.at, text.size);
}

void PairTable::reserve(size_t count) {
  size_t size = 16;
  while (size < 2 * count) {
    size *= 2;
  }
  if (size <= slots_.size()) {
    return;
  }
  std::vector<Slot> old = std::move(slots_);
  slots_.assign(size, Slot{});
  for (const Slot& slot : old) {
    if (slot.key != kFree) {
      size_t i = place(slot.key);
      while (slots_[i].key != kFree) {
        i = (i + 1) & (slots_.size() - 1);
      }
      slots_[i] = slot;
    }
  }
}

void PairTable::set(int32_t a, int32_t b, Value value) {
  reserve(used_ + 1);
  const uint64_t key = key_of(a, b);
  size_t i = place(key);
  while (slots_[i].key != kFree && slots_[i].key != key) {
    i = (i + 1) & (slots_.size() - 1);
  }
  used_ += slots_[i].key == kFree ? 1 : 0;
  slots_[i] = {key, value};
}

bool WordCache::append(std::string_view word, std::vector<int32_t>& out) {
  if (slots_.empty()) {
    slots_.resize(1024);
  }
  last_hash_ = hash_text(word);
  for (size_t i = last_hash_ & (slots_.size() - 1); slots_[i].size != 0;
       i = (i + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[i];
    if (slot.hash == last_hash_ && std::string_view(words_).substr(slot.at, slot.size) == word) {
      out.insert(out.end(), ids_.begin() + slot.ids_at, ids_.begin() + slot.ids_at + slot.ids);
      return true;
    }
  }
  return false;
}

void WordCache::add(std::string_view word, std::span<const int32_t> ids) {
  if (word.empty() || word.size() > kLongestWord) {
    return;
  }
  if (used_ == kMostWords) {
    slots_.assign(slots_.size(), Slot{});
    words_.clear();
    ids_.clear();
    used_ = 0;
  }
  if (2 * (used_ + 1) > slots_.size()) {
    std::vector<Slot> old = std::move(slots_);
    slots_.assign(old.empty() ? 1024 : 2 * old.size(), Slot{});
    for (const Slot& slot : old) {
      if (slot.size != 0) {
        size_t i = slot.hash & (slots_.size() - 1);
        while (slots_[i].size != 0) {
          i = (i + 1) & (slots_.size() - 1);
        }
        slots_[i] = slot;
      }
    }
  }
  const uint64_t hash = hash_text(word);
  size_t i = hash & (slots_.size() - 1);
  while (slots_[i].size != 0) {
    i = (i + 1) & (slots_.size() - 1);
  }
  slots_[i] = {hash, static_cast<uint32_t>(words_.size()), static_cast<uint32_t>(word.size()),
               static_cast<uint32_t>(ids_.size()), static_cast<uint32_t>(ids.size())};
  words_ += word;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++used_;
}

}  // namespace sluice::text
