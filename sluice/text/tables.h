// Hash tables of tokenizers: the vocabulary, pairs of numbers, and ids of words already seen.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::text {

uint64_t hash_text(std::string_view text);

/// Tokens and their ids, both ways. Ids may have holes.
class Vocabulary {
 public:
  static constexpr size_t kLongestToken = 65536;

  /// A token that is there already gets the new id. Throws Error{limit} naming `what` for a token
  /// above kLongestToken bytes or an id that is negative or above 2^28.
  void add(std::string_view token, int64_t id, std::string_view what);
  /// To be called after the last add(): throws Error{limit} when ids are so sparse that a table of
  /// them would be much larger than the vocabulary.
  void finish(std::string_view what);

  int32_t find(std::string_view token) const;  ///< -1 when absent
  bool has(int32_t id) const;
  std::string_view token(int32_t id) const;  ///< empty when absent
  size_t size() const { return used_; }      ///< tokens
  int32_t highest_id() const { return highest_; }
  size_t bytes() const { return bytes_.size(); }  ///< of all tokens
  size_t longest() const { return longest_; }     ///< bytes

 private:
  struct Entry {
    uint64_t hash;
    uint32_t at, size;
    int32_t id;  // -1: free
  };
  void grow();
  std::vector<Entry> entries_;
  std::vector<uint32_t> by_id_;  // index into order_, plus one
  struct Text {
    uint32_t at, size;
  };
  std::vector<Text> order_;
  std::vector<int32_t> ids_;
  std::string bytes_;
  size_t used_ = 0, longest_ = 0;
  int32_t highest_ = -1;
};

/// (a, b) -> two numbers; open addressing.
class PairTable {
 public:
  struct Value {
    int32_t first = -1, second = -1;
  };
  void reserve(size_t count);
  /// Replaces what was there.
  void set(int32_t a, int32_t b, Value value);
  const Value* find(int32_t a, int32_t b) const {
    if (slots_.empty()) {
      return nullptr;
    }
    const uint64_t key = key_of(a, b);
    for (size_t i = place(key);; i = (i + 1) & (slots_.size() - 1)) {
      const Slot& slot = slots_[i];
      if (slot.key == key) {
        return &slot.value;
      }
      if (slot.key == kFree) {
        return nullptr;
      }
    }
  }
  size_t size() const { return used_; }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  struct Slot {
    uint64_t key = kFree;
    Value value;
  };
  static uint64_t key_of(int32_t a, int32_t b) {
    return static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b);
  }
  size_t place(uint64_t key) const {
    key *= 0x9E3779B97F4A7C15u;
    return (key ^ key >> 32) & (slots_.size() - 1);
  }
  std::vector<Slot> slots_;
  size_t used_ = 0;
};

/// Ids of words; forgets everything when full. Not thread-safe.
class WordCache {
 public:
  static constexpr size_t kLongestWord = 256;
  /// Whether `word` is known; its ids are then appended to `out`.
  bool append(std::string_view word, std::vector<int32_t>& out);
  void add(std::string_view word, std::span<const int32_t> ids);

 private:
  static constexpr size_t kMostWords = 1 << 17;
  struct Slot {
    uint64_t hash = 0;
    uint32_t at = 0, size = 0, ids_at = 0, ids = 0;  // size 0: free
  };
  std::vector<Slot> slots_;
  std::string words_;
  std::vector<int32_t> ids_;
  size_t used_ = 0;
  uint64_t last_hash_ = 0;
};

}  // namespace sluice::text
