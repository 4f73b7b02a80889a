#include <unicode/ubrk.h>
#include <unicode/utext.h>

#include <optional>

#include "sluice/base/error.h"
#include "sluice/text/normalizers.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

std::string decode_base64(std::string_view text, const std::string& what) {
  std::string out;
  out.reserve(text.size() / 4 * 3);
  uint32_t bits = 0;
  int held = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    uint32_t value;
    if (c >= 'A' && c <= 'Z') {
      value = static_cast<uint32_t>(c - 'A');
    } else if (c >= 'a' && c <= 'z') {
      value = static_cast<uint32_t>(c - 'a') + 26;
    } else if (c >= '0' && c <= '9') {
      value = static_cast<uint32_t>(c - '0') + 52;
    } else if (c == '+' || c == '/') {
      value = c == '+' ? 62 : 63;
    } else if (c == '=' && text.size() - i <= 2) {
      break;
    } else {
      fail(Code::format, "{}: 'precompiled_charsmap': character {} is not base64", what, i);
    }
    bits = bits << 6 | value;
    held += 6;
    if (held >= 8) {
      held -= 8;
      out += static_cast<char>(bits >> held & 0xFF);
    }
  }
  return out;
}

/// Grapheme clusters of a text that is not ASCII; one break iterator per thread.
class Clusters {
 public:
  explicit Clusters(std::string_view text) {
    thread_local const Breaker breaker;
    UErrorCode status = U_ZERO_ERROR;
    text_ = utext_openUTF8(nullptr, text.data(), static_cast<int64_t>(text.size()), &status);
    ubrk_setUText(breaker.iterator, text_, &status);
    if (U_FAILURE(status)) {
      utext_close(text_);
      fail(Code::limit, "cannot find the characters of a text: {}", u_errorName(status));
    }
    iterator_ = breaker.iterator;
    ubrk_first(iterator_);
  }
  ~Clusters() {
    // The iterator outlives the text.
    UErrorCode status = U_ZERO_ERROR;
    ubrk_setText(iterator_, u"", 0, &status);
    utext_close(text_);
  }
  Clusters(const Clusters&) = delete;
  Clusters& operator=(const Clusters&) = delete;
  /// End of the next cluster.
  std::optional<size_t> next() {
    const int32_t end = ubrk_next(iterator_);
    return end == UBRK_DONE ? std::nullopt : std::optional<size_t>(static_cast<size_t>(end));
  }

 private:
  struct Breaker {
    UBreakIterator* iterator;
    Breaker() {
      UErrorCode status = U_ZERO_ERROR;
      iterator = ubrk_open(UBRK_CHARACTER, "en", nullptr, 0, &status);
      if (U_FAILURE(status)) {
        fail(Code::unsupported, "ICU cannot find characters: {}; install its data files",
             u_errorName(status));
      }
    }
    ~Breaker() { ubrk_close(iterator); }
  };
  UText* text_ = nullptr;
  UBreakIterator* iterator_ = nullptr;
};

class Precompiled : public Normalizer {
 public:
  Precompiled(std::string_view base64, const std::string& what) {
    const std::string blob = decode_base64(base64, what);
    const auto word = [&](size_t i) {
      uint32_t value = 0;
      for (size_t b = 4; b-- > 0;) {
        value = value << 8 | static_cast<unsigned char>(blob[i + b]);
      }
      return value;
    };
    if (blob.size() < 4 || word(0) > blob.size() - 4 || word(0) % 4 != 0 || word(0) < 4) {
      fail(Code::format, "{}: 'precompiled_charsmap': a trie of {} bytes in {} bytes", what,
           blob.size() < 4 ? 0 : word(0), blob.size());
    }
    const size_t units = word(0) / 4;
    units_.reserve(units);
    for (size_t i = 0; i < units; ++i) {
      units_.push_back(word(4 + 4 * i));
    }
    texts_ = blob.substr(4 + 4 * units);
    if (valid_utf8_prefix(texts_) != texts_.size()) {
      fail(Code::format, "{}: 'precompiled_charsmap': its texts are not UTF-8", what);
    }
  }

  void apply(Slice& slice, Scratch& scratch) const override {
    if (slice.text.empty()) {
      return;
    }
    Rewriter rewriter(slice, scratch);
    const std::string_view text = slice.text;
    // Characters removed at the very start: the reference then takes the first one left for the
    // start of the text.
    const auto origin = [&](size_t at) {
      at = rewriter.text().empty() ? 0 : at;
      return slice.origin(at, utf8_size(text[at]));
    };
    // Character by character as far as both go; what is left over stands for the last.
    const auto put = [&](size_t begin, size_t end, std::string_view with) {
      ByteRange from = origin(begin);
      for (size_t at = 0; at < with.size();) {
        if (begin < end) {
          from = origin(begin);
          begin += utf8_size(text[begin]);
        }
        const size_t size = utf8_size(with[at]);
        rewriter.put(with.substr(at, size), from);
        at += size;
      }
    };
    const auto cluster = [&](size_t begin, size_t end) {
      if (end - begin < 6) {
        if (const auto found = look_up(text.substr(begin, end - begin))) {
          put(begin, end, *found);
          return;
        }
      }
      for (size_t at = begin; at < end;) {
        const size_t size = utf8_size(text[at]);
        if (const auto found = look_up(text.substr(at, size))) {
          put(at, at + size, *found);
        } else {
          rewriter.put(text.substr(at, size), origin(at));
        }
        at += size;
      }
    };
    if (is_ascii(text)) {
      for (size_t at = 0; at < text.size();) {
        const size_t end = at + (text.substr(at, 2) == "\r\n" ? 2 : 1);
        cluster(at, end);
        at = end;
      }
    } else {
      Clusters clusters(text);
      size_t at = 0;
      while (const auto end = clusters.next()) {
        cluster(at, *end);
        at = *end;
      }
    }
    slice = rewriter.finish();
  }

 private:
  /// The text for the shortest key that `key` begins with: the reference's rule, which takes the
  /// first it meets.
  std::optional<std::string_view> look_up(std::string_view key) const {
    const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
    uint32_t node = offset(units_[0]);
    for (const char c : key) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte == 0) {
        break;
      }
      node ^= byte;
      if (node >= units_.size()) {
        return std::nullopt;
      }
      const uint32_t unit = units_[node];
      if ((unit & (1u << 31 | 0xFF)) != byte) {
        return std::nullopt;
      }
      node ^= offset(unit);
      if ((unit >> 8 & 1) != 0) {
        if (node >= units_.size()) {
          return std::nullopt;
        }
        const uint32_t at = units_[node] & ~(1u << 31);
        if (at > texts_.size() || (at < texts_.size() && is_utf8_continuation(texts_[at]))) {
          return std::nullopt;
        }
        const size_t end = texts_.find('\0', at);
        return std::string_view(texts_).substr(at, end == std::string::npos ? end : end - at);
      }
    }
    return std::nullopt;
  }

  std::vector<uint32_t> units_;
  std::string texts_;
};

}  // namespace

std::unique_ptr<Normalizer> make_precompiled(std::string_view base64, const std::string& what) {
  return std::make_unique<Precompiled>(base64, what);
}

}  // namespace sluice::text
