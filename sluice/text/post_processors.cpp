#include "sluice/text/post_processors.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/text/stage_json.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

constexpr int64_t kHighestId = (int64_t{1} << 28) - 1;

Encoding special_tokens(const std::vector<int32_t>& ids, int32_t type_id, bool offsets) {
  Encoding part;
  part.ids = ids;
  part.type_ids.assign(ids.size(), type_id);
  part.attention.assign(ids.size(), 1);
  part.special.assign(ids.size(), 1);
  if (offsets) {
    part.offsets.assign(ids.size(), {});
  }
  return part;
}

/// Takes blanks at the ends of tokens out of their offsets.
void trim_offsets(Encoding& encoding, bool add_prefix_space, const PostProcessor::TokenText& text) {
  const auto blank = [](char32_t c) { return c == 0x120 || is_whitespace(c); };
  for (size_t i = 0; i < encoding.offsets.size(); ++i) {
    const std::string_view token = text(encoding.ids[i]);
    uint32_t leading = 0, trailing = 0;
    for (size_t at = 0; at < token.size();) {
      if (!blank(next_code_point(token, at))) {
        break;
      }
      ++leading;
    }
    for (size_t end = token.size(); end > 0;) {
      size_t at = end - 1;
      while (at > 0 && is_utf8_continuation(token[at])) {
        --at;
      }
      end = at;
      if (!blank(next_code_point(token, at))) {
        break;
      }
      ++trailing;
    }
    ByteRange& range = encoding.offsets[i];
    if (leading > 0) {
      if ((i == 0 || range.begin == 0) && add_prefix_space && leading == 1) {
        leading = 0;
      }
      range.begin = std::min(range.begin + leading, range.end);
    }
    if (trailing > 0 && range.end >= trailing) {
      range.end = std::max(range.end - trailing, range.begin);
    }
  }
}

class Template : public PostProcessor {
 public:
  struct Piece {
    int sequence = -1;  // 0 or 1; else special tokens
    std::vector<int32_t> ids;
    int32_t type_id = 0;
  };
  std::vector<Piece> single, pair;

  int64_t added_tokens(bool with_pair) const override {
    int64_t count = 0;
    for (const Piece& piece : with_pair ? pair : single) {
      count += static_cast<int64_t>(piece.ids.size());
    }
    return count;
  }
  void apply(std::vector<Encoding>& parts, bool add_special, const TokenText&) const override {
    const std::vector<Encoding> given = std::move(parts);
    parts.clear();
    const bool offsets =
        std::any_of(given.begin(), given.end(), [](const auto& e) { return !e.offsets.empty(); });
    for (const Piece& piece : given.size() > 1 ? pair : single) {
      if (piece.sequence >= 0) {
        if (static_cast<size_t>(piece.sequence) < given.size()) {
          parts.push_back(given[static_cast<size_t>(piece.sequence)]);
          parts.back().type_ids.assign(parts.back().size(), piece.type_id);
        }
      } else if (add_special) {
        parts.push_back(special_tokens(piece.ids, piece.type_id, offsets));
      }
    }
  }
};

/// BertProcessing and RobertaProcessing.
class Classic : public PostProcessor {
 public:
  int32_t cls = 0, sep = 0;
  bool roberta = false, trims = false, add_prefix_space = true;

  int64_t added_tokens(bool pair) const override { return pair ? (roberta ? 4 : 3) : 2; }
  void apply(std::vector<Encoding>& parts, bool add_special, const TokenText& text) const override {
    const bool offsets =
        std::any_of(parts.begin(), parts.end(), [](const auto& e) { return !e.offsets.empty(); });
    for (size_t i = 0; i < parts.size(); ++i) {
      if (trims) {
        trim_offsets(parts[i], add_prefix_space, text);
      }
      if (roberta) {
        parts[i].type_ids.assign(parts[i].size(), 0);
      } else if (add_special) {
        parts[i].type_ids.assign(parts[i].size(), static_cast<int32_t>(i));
      }
    }
    if (!add_special) {
      return;
    }
    std::vector<Encoding> given = std::move(parts);
    parts.clear();
    for (size_t i = 0; i < given.size(); ++i) {
      const int32_t type_id = roberta ? 0 : static_cast<int32_t>(i);
      if (i == 0) {
        parts.push_back(special_tokens({cls}, 0, offsets));
      } else if (roberta) {
        parts.push_back(special_tokens({sep}, 0, offsets));
      }
      parts.push_back(std::move(given[i]));
      parts.push_back(special_tokens({sep}, type_id, offsets));
    }
  }
};

struct ByteLevelOffsets : PostProcessor {
  bool trims = true, add_prefix_space = true;
  int64_t added_tokens(bool) const override { return 0; }
  void apply(std::vector<Encoding>& parts, bool, const TokenText& text) const override {
    if (trims) {
      for (Encoding& part : parts) {
        trim_offsets(part, add_prefix_space, text);
      }
    }
  }
};

struct PostProcessorSequence : PostProcessor {
  std::vector<std::unique_ptr<PostProcessor>> parts;
  int64_t added_tokens(bool pair) const override {
    int64_t count = 0;
    for (const auto& part : parts) {
      count += part->added_tokens(pair);
    }
    return count;
  }
  void apply(std::vector<Encoding>& encodings, bool add_special,
             const TokenText& text) const override {
    for (const auto& part : parts) {
      part->apply(encodings, add_special, text);
    }
  }
};

using SpecialTokens = std::unordered_map<std::string, std::vector<int32_t>>;

SpecialTokens read_special_tokens(const Json& json, const std::string& what) {
  SpecialTokens tokens;
  const Json* table = present(json, "special_tokens", what);
  if (table == nullptr || !table->is_object()) {
    fail(Code::config, "{}: 'special_tokens': expected a table", what);
  }
  for (const auto& item : table->items()) {
    const std::string name = what + ".special_tokens." + shown(item.key());
    std::vector<int32_t>& ids = tokens[item.key()];
    for (const int64_t id : json_get<std::vector<int64_t>>(item.value(), "ids", name)) {
      if (id < 0 || id > kHighestId || ids.size() >= 1024) {
        fail(Code::limit, "{}: 'ids': expected at most 1024 ids of 0 to {}", name, kHighestId);
      }
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  return tokens;
}

std::vector<Template::Piece> read_template(const Json& json, std::string_view key,
                                           const SpecialTokens& tokens, const std::string& what) {
  std::vector<Template::Piece> pieces;
  for_each_part(json, key, what, [&](const Json& part, const std::string& name) {
    Template::Piece piece;
    const Json* sequence = present(part, "Sequence", name);
    const Json* special = present(part, "SpecialToken", name);
    if (sequence != nullptr) {
      const auto id = json_get<std::string>(*sequence, "id", name);
      if (id != "A" && id != "B") {
        fail(Code::config, "{}: 'id': expected A or B, found {}", name, shown(id));
      }
      piece.sequence = id == "A" ? 0 : 1;
    } else if (special != nullptr) {
      const auto id = json_get<std::string>(*special, "id", name);
      const auto found = tokens.find(id);
      if (found == tokens.end()) {
        fail(Code::config, "{}: {} is not among the special tokens", name, shown(id));
      }
      piece.ids = found->second;
    } else {
      fail(Code::config, "{}: expected {{\"Sequence\": ...}} or {{\"SpecialToken\": ...}}", name);
    }
    piece.type_id = static_cast<int32_t>(
        bounded(sequence != nullptr ? *sequence : *special, "type_id", 0, 1 << 20, name));
    pieces.push_back(std::move(piece));
  });
  return pieces;
}

int32_t read_pair_id(const Json& json, std::string_view key, const std::string& what) {
  const Json* pair = present(json, key, what);
  if (pair == nullptr || !pair->is_array() || pair->size() != 2 ||
      !(*pair)[1].is_number_integer() || (*pair)[1].get<int64_t>() < 0 ||
      (*pair)[1].get<int64_t>() > kHighestId) {
    fail(Code::config, "{}: '{}': expected [token, id]", what, key);
  }
  return (*pair)[1].get<int32_t>();
}

}  // namespace

std::unique_ptr<PostProcessor> make_frame(int32_t before, int32_t after) {
  auto made = std::make_unique<Template>();
  const auto add = [&](std::vector<Template::Piece>& pieces, int sequence) {
    if (before >= 0) {
      pieces.push_back({-1, {before}, sequence});
    }
    pieces.push_back({sequence, {}, sequence});
    if (after >= 0) {
      pieces.push_back({-1, {after}, sequence});
    }
  };
  add(made->single, 0);
  add(made->pair, 0);
  add(made->pair, 1);
  return made;
}

std::unique_ptr<PostProcessor> make_post_processor(const Json& json, const std::string& what) {
  const auto type = json_get<std::string>(json, "type", what);
  if (type == "TemplateProcessing") {
    auto made = std::make_unique<Template>();
    const SpecialTokens tokens = read_special_tokens(json, what);
    made->single = read_template(json, "single", tokens, what);
    made->pair = read_template(json, "pair", tokens, what);
    return made;
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    auto made = std::make_unique<Classic>();
    made->cls = read_pair_id(json, "cls", what);
    made->sep = read_pair_id(json, "sep", what);
    made->roberta = type == "RobertaProcessing";
    if (made->roberta) {
      made->trims = json_get<bool>(json, "trim_offsets", what);
      made->add_prefix_space = json_get<bool>(json, "add_prefix_space", what);
    }
    return made;
  }
  if (type == "ByteLevel") {
    auto made = std::make_unique<ByteLevelOffsets>();
    made->trims = json_get_or<bool>(json, "trim_offsets", true, what);
    made->add_prefix_space = json_get_or<bool>(json, "add_prefix_space", true, what);
    return made;
  }
  if (type == "Sequence") {
    auto made = std::make_unique<PostProcessorSequence>();
    for_each_part(json, "processors", what, [&](const Json& part, const std::string& name) {
      made->parts.push_back(make_post_processor(part, name));
    });
    return made;
  }
  unknown_type(type, what,
               "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, Sequence");
}

}  // namespace sluice::text
