#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/text/stage_json.h"
#include "sluice/text/tokenizer_impl.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

constexpr size_t kLargestFile = size_t{1} << 28;
constexpr int64_t kLongestSequence = int64_t{1} << 22;

bool flag_or(const Json& json, std::string_view key, bool fallback, const std::string& what) {
  return present(json, key, what) == nullptr ? fallback : json_get<bool>(json, key, what);
}

bool read_direction(const Json& json, const std::string& what) {
  if (present(json, "direction", what) == nullptr) {
    return false;
  }
  const auto direction = json_get<std::string>(json, "direction", what);
  if (direction != "Left" && direction != "Right") {
    fail(Code::config, "{}: 'direction': expected Left or Right, found {}", what, shown(direction));
  }
  return direction == "Left";
}

Truncation read_truncation(const Json& json, const std::string& what) {
  Truncation result;
  result.max_length = bounded(json, "max_length", 0, int64_t{1} << 62, what);
  result.stride = bounded(json, "stride", 0, int64_t{1} << 62, what);
  const auto strategy = json_get<std::string>(json, "strategy", what);
  if (strategy == "OnlyFirst") {
    result.strategy = Truncation::Strategy::only_first;
  } else if (strategy == "OnlySecond") {
    result.strategy = Truncation::Strategy::only_second;
  } else if (strategy != "LongestFirst") {
    fail(Code::config, "{}: 'strategy': expected LongestFirst, OnlyFirst or OnlySecond, found {}",
         what, shown(strategy));
  }
  result.left = read_direction(json, what);
  return result;
}

Padding read_padding(const Json& json, const std::string& what) {
  Padding result;
  const Json* strategy = present(json, "strategy", what);
  if (strategy != nullptr && strategy->is_object()) {
    result.fixed_length = bounded(*strategy, "Fixed", 0, kLongestSequence, what + ".strategy");
  } else if (strategy == nullptr || *strategy != "BatchLongest") {
    fail(Code::config, "{}: 'strategy': expected BatchLongest or {{\"Fixed\": N}}", what);
  }
  result.multiple_of = present(json, "pad_to_multiple_of", what) == nullptr
                           ? 0
                           : bounded(json, "pad_to_multiple_of", 0, kLongestSequence, what);
  result.left = read_direction(json, what);
  result.id = static_cast<int32_t>(bounded(json, "pad_id", 0, (int64_t{1} << 28) - 1, what));
  result.type_id = static_cast<int32_t>(bounded(json, "pad_type_id", 0, 1 << 20, what));
  result.token = json_get<std::string>(json, "pad_token", what);
  return result;
}

std::vector<AddedToken> read_added_tokens(const Json& list, const std::string& what) {
  if (!list.is_array()) {
    fail(Code::config, "{}: expected an array, found {}", what, list.type_name());
  }
  std::vector<AddedToken> tokens;
  for (const Json& entry : list) {
    const std::string name = fmt::format("{}[{}]", what, tokens.size());
    AddedToken token;
    token.content = json_get<std::string>(entry, "content", name);
    token.special = flag_or(entry, "special", false, name);
    token.single_word = flag_or(entry, "single_word", false, name);
    token.lstrip = flag_or(entry, "lstrip", false, name);
    token.rstrip = flag_or(entry, "rstrip", false, name);
    token.normalized = flag_or(entry, "normalized", !token.special, name);
    bounded(entry, "id", 0, (int64_t{1} << 32) - 1, name);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace

Tokenizer Tokenizer::parse(std::string_view text, const std::string& what) {
  const Json json = parse_json(text, what);
  if (present(json, "version", what) != nullptr &&
      json_get<std::string>(json, "version", what) != "1.0") {
    fail(Code::unsupported, "{}: 'version': expected 1.0, found {}", what,
         shown(json_get<std::string>(json, "version", what)));
  }
  auto impl = std::make_shared<Impl>();
  const Json* model = present(json, "model", what);
  if (model == nullptr) {
    fail(Code::config, "{}: the key 'model' is missing; is this a tokenizer.json?", what);
  }
  impl->model = make_model(*model, what + ": model");
  if (const Json* stage = present(json, "normalizer", what)) {
    impl->normalizer = make_normalizer(*stage, what + ": normalizer");
  }
  if (const Json* stage = present(json, "pre_tokenizer", what)) {
    impl->pre_tokenizer = make_pre_tokenizer(*stage, what + ": pre_tokenizer");
  }
  if (const Json* stage = present(json, "post_processor", what)) {
    impl->post_processor = make_post_processor(*stage, what + ": post_processor");
  }
  if (const Json* stage = present(json, "decoder", what)) {
    impl->decoder = make_decoder(*stage, what + ": decoder");
  }
  if (const Json* part = present(json, "truncation", what)) {
    impl->truncation = read_truncation(*part, what + ": truncation");
  }
  if (const Json* part = present(json, "padding", what)) {
    impl->padding = read_padding(*part, what + ": padding");
  }
  if (const Json* list = present(json, "added_tokens", what)) {
    impl->added.add(read_added_tokens(*list, what + ": added_tokens"), *impl->model,
                    impl->normalizer.get(), what);
  }
  return Tokenizer(std::move(impl));
}

Tokenizer Tokenizer::open(const std::string& path) {
  return parse(read_text_file(path, kLargestFile), path);
}

}  // namespace sluice::text
