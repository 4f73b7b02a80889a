// The regular expressions behind tokenizer.ggml.pre. Internal to gguf.
#pragma once
#include <string>
#include <string_view>

namespace sluice::bundle::gguf {

inline constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct Expression {
  std::string_view pre, text;
  bool ignore_merges;  ///< a word that is a token is taken as it is
};
/// The first of a text's names is the one that is written.
inline constexpr Expression kExpressions[] = {
    {"gpt-2", kGpt2, false},
    {"llama-bpe",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     true},
    {"qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     false}};

inline const Expression* find_expression(std::string_view pre) {
  if (pre == "gpt2" || pre == "default") pre = "gpt-2";
  if (pre == "llama3" || pre == "llama-v3") pre = "llama-bpe";
  if (pre == "stablelm2") pre = "qwen2";
  for (const Expression& expression : kExpressions)
    if (expression.pre == pre) return &expression;
  return nullptr;
}

inline std::string known_expressions() {
  std::string names;
  for (const Expression& expression : kExpressions)
    names += (names.empty() ? "" : ", ") + std::string(expression.pre);
  return names;
}

}  // namespace sluice::bundle::gguf
