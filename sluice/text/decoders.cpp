#include "sluice/text/decoders.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/text/normalizers.h"
#include "sluice/text/pattern.h"
#include "sluice/text/stage_json.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

constexpr std::string_view kBroken = "\xEF\xBF\xBD";

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) {
    return;
  }
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, done)) {
    out.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  if (done > 0) {
    out.append(text, done);
    text.swap(out);
  }
}

size_t total_size(const std::vector<std::string>& tokens) {
  size_t total = 0;
  for (const std::string& token : tokens) {
    total += token.size();
  }
  return total;
}

/// Decoders of hostile files multiply texts.
size_t growth_limit(const std::vector<std::string>& tokens) {
  return 64 * total_size(tokens) + 65536;
}
void check_growth(size_t size, size_t limit) {
  if (size > limit) {
    fail(Code::limit, "the decoder makes a text of more than {} bytes", limit);
  }
}

void clean_up(std::string& text) {
  static constexpr std::string_view kRules[][2] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& rule : kRules) {
    replace_all(text, rule[0], rule[1]);
  }
}

struct ByteLevelDecoder : Decoder {
  void apply(std::vector<std::string>& tokens) const override {
    std::string bytes;
    for (const std::string& token : tokens) {
      append_token_bytes(bytes, token);
    }
    tokens.assign(1, repair_utf8(bytes));
  }
  bool joins_bytes() const override { return true; }
};

struct WordPieceDecoder : Decoder {
  std::string prefix;
  bool cleanup;
  void apply(std::vector<std::string>& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) {
        if (tokens[i].starts_with(prefix)) {
          tokens[i].erase(0, prefix.size());
        } else {
          tokens[i].insert(0, " ");
        }
      }
      if (cleanup) {
        clean_up(tokens[i]);
      }
    }
  }
};

struct MetaspaceDecoder : Decoder {
  std::string replacement;
  bool strips_first;
  void apply(std::vector<std::string>& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      replace_all(tokens[i], replacement, i == 0 && strips_first ? "" : " ");
    }
  }
};

struct BpeDecoder : Decoder {
  std::string suffix;
  void apply(std::vector<std::string>& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      replace_all(tokens[i], suffix, i + 1 == tokens.size() ? "" : " ");
    }
  }
};

struct CtcDecoder : Decoder {
  std::string pad, delimiter;
  bool cleanup;
  void apply(std::vector<std::string>& tokens) const override {
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    for (std::string& token : tokens) {
      replace_all(token, pad, "");
      if (cleanup) {
        clean_up(token);
        replace_all(token, delimiter, " ");
      }
    }
  }
};

struct ReplaceDecoder : Decoder {
  Pattern pattern;
  std::string content;
  ReplaceDecoder(Pattern p, std::string c) : pattern(std::move(p)), content(std::move(c)) {}
  void apply(std::vector<std::string>& tokens) const override {
    std::vector<Stretch> stretches;
    const size_t limit = growth_limit(tokens);
    size_t after = 0;
    for (std::string& token : tokens) {
      pattern.find(token, stretches);
      std::string out;
      for (const Stretch& stretch : stretches) {
        out += stretch.match
                   ? std::string_view(content)
                   : std::string_view(token).substr(stretch.begin, stretch.end - stretch.begin);
        check_growth(after + out.size(), limit);
      }
      after += out.size();
      token.swap(out);
    }
  }
};

struct FuseDecoder : Decoder {
  void apply(std::vector<std::string>& tokens) const override {
    std::string all;
    for (const std::string& token : tokens) {
      all += token;
    }
    tokens.assign(1, std::move(all));
  }
};

struct StripDecoder : Decoder {
  std::string content;
  int64_t start, stop;
  void apply(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) {
      size_t begin = 0, end = token.size();
      for (int64_t i = 0; i < start && std::string_view(token).substr(begin).starts_with(content);
           ++i) {
        begin += content.size();
      }
      for (int64_t i = 0;
           i < stop && std::string_view(token).substr(begin, end - begin).ends_with(content); ++i) {
        end -= content.size();
      }
      token = token.substr(begin, end - begin);
    }
  }
};

struct ByteFallbackDecoder : Decoder {
  static std::optional<char> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') {
      return std::nullopt;
    }
    int value = 0;
    for (const char c : token.substr(3, 2)) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                               : -1;
      if (digit < 0) {
        return std::nullopt;
      }
      value = value * 16 + digit;
    }
    return static_cast<char>(value);
  }
  void apply(std::vector<std::string>& tokens) const override {
    std::vector<std::string> out;
    std::string bytes;
    const auto flush = [&] {
      if (valid_utf8_prefix(bytes) == bytes.size()) {
        if (!bytes.empty()) {
          out.push_back(bytes);
        }
      } else {
        out.insert(out.end(), bytes.size(), std::string(kBroken));
      }
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = byte_of(token)) {
        bytes += *byte;
      } else {
        flush();
        out.push_back(std::move(token));
      }
    }
    flush();
    tokens.swap(out);
  }
};

struct DecoderSequence : Decoder {
  std::vector<std::unique_ptr<Decoder>> parts;
  void apply(std::vector<std::string>& tokens) const override {
    const size_t limit = growth_limit(tokens);
    for (const auto& part : parts) {
      part->apply(tokens);
      check_growth(total_size(tokens), limit);
    }
  }
  bool joins_bytes() const override { return parts.size() == 1 && parts[0]->joins_bytes(); }
};

}  // namespace

void append_token_bytes(std::string& out, std::string_view token) {
  const size_t before = out.size();
  for (size_t at = 0; at < token.size();) {
    const int byte = byte_level_byte(next_code_point(token, at));
    if (byte < 0) {
      out.resize(before);
      out += token;
      return;
    }
    out += static_cast<char>(byte);
  }
}

std::unique_ptr<Decoder> make_byte_level_decoder() { return std::make_unique<ByteLevelDecoder>(); }

std::unique_ptr<Decoder> make_sentence_piece_decoder(bool strips_first) {
  auto sequence = std::make_unique<DecoderSequence>();
  sequence->parts.push_back(
      std::make_unique<ReplaceDecoder>(Pattern::literal("\xE2\x96\x81"), " "));
  sequence->parts.push_back(std::make_unique<ByteFallbackDecoder>());
  sequence->parts.push_back(std::make_unique<FuseDecoder>());
  if (strips_first) {
    auto strip = std::make_unique<StripDecoder>();
    strip->content = " ";
    strip->start = 1;
    strip->stop = 0;
    sequence->parts.push_back(std::move(strip));
  }
  return sequence;
}

std::unique_ptr<Decoder> make_decoder(const Json& json, const std::string& what) {
  const auto type = json_get<std::string>(json, "type", what);
  if (type == "ByteLevel") {
    return make_byte_level_decoder();
  }
  if (type == "WordPiece") {
    auto made = std::make_unique<WordPieceDecoder>();
    made->prefix = json_get<std::string>(json, "prefix", what);
    made->cleanup = json_get<bool>(json, "cleanup", what);
    return made;
  }
  if (type == "Metaspace") {
    auto made = std::make_unique<MetaspaceDecoder>();
    append_utf8(made->replacement, one_character(json, "replacement", what));
    made->strips_first = present(json, "prepend_scheme", what) == nullptr ||
                         json_get<std::string>(json, "prepend_scheme", what) != "never";
    if (present(json, "add_prefix_space", what) != nullptr &&
        !json_get<bool>(json, "add_prefix_space", what)) {
      made->strips_first = false;
    }
    return made;
  }
  if (type == "BPEDecoder") {
    auto made = std::make_unique<BpeDecoder>();
    made->suffix = json_get<std::string>(json, "suffix", what);
    return made;
  }
  if (type == "CTC") {
    auto made = std::make_unique<CtcDecoder>();
    made->pad = json_get<std::string>(json, "pad_token", what);
    made->delimiter = json_get<std::string>(json, "word_delimiter_token", what);
    made->cleanup = json_get<bool>(json, "cleanup", what);
    return made;
  }
  if (type == "Replace") {
    return std::make_unique<ReplaceDecoder>(make_pattern(json, what),
                                            json_get<std::string>(json, "content", what));
  }
  if (type == "Strip") {
    auto made = std::make_unique<StripDecoder>();
    append_utf8(made->content, one_character(json, "content", what));
    made->start = bounded(json, "start", 0, 1 << 30, what);
    made->stop = bounded(json, "stop", 0, 1 << 30, what);
    return made;
  }
  if (type == "Fuse") {
    return std::make_unique<FuseDecoder>();
  }
  if (type == "ByteFallback") {
    return std::make_unique<ByteFallbackDecoder>();
  }
  if (type == "Sequence") {
    auto made = std::make_unique<DecoderSequence>();
    for_each_part(json, "decoders", what, [&](const Json& part, const std::string& name) {
      made->parts.push_back(make_decoder(part, name));
    });
    return made;
  }
  unknown_type(type, what,
               "ByteLevel, WordPiece, Metaspace, BPEDecoder, CTC, Replace, Strip, Fuse, "
               "ByteFallback, Sequence");
}

}  // namespace sluice::text
