// Tiny random language models as folders of Hugging Face, with a tokenizer of 35 words.
#pragma once
#include <string>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/import/testing.h"
#include "tests/process.h"

namespace sluice::test {

/// Ids 0 <s>, 1 <unk>, 2 </s>, then the words w3 .. w37 and "." and ",". A decoder's puts <s>
/// before a text, an encoder's </s> behind it as well.
inline std::string tiny_tokenizer(bool closes) {
  Json vocabulary = {{"<s>", 0}, {"<unk>", 1}, {"</s>", 2}, {".", 38}, {",", 39}};
  for (int id = 3; id < 38; ++id) vocabulary["w" + std::to_string(id)] = id;
  const auto special = [](const char* content, int id) {
    return Json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  const auto token = [](const char* name) {
    return Json{{"SpecialToken", {{"id", name}, {"type_id", 0}}}};
  };
  Json single = {token("<s>"), {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}};
  if (closes) single.push_back(token("</s>"));
  const Json pair = {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                     {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}};
  const auto entry = [](const char* name, int id) {
    return Json{{"id", name}, {"ids", {id}}, {"tokens", {name}}};
  };
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", {special("<s>", 0), special("</s>", 2)}},
              {"normalizer", nullptr},
              {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
              {"post_processor",
               {{"type", "TemplateProcessing"},
                {"single", single},
                {"pair", pair},
                {"special_tokens", {{"<s>", entry("<s>", 0)}, {"</s>", entry("</s>", 2)}}}}},
              {"decoder", nullptr},
              {"model", {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", "<unk>"}}}}
      .dump();
}

/// A golden case of tests/golden/huggingface with that tokenizer; contexts of `context` tokens.
inline void write_tiny_model(const std::string& golden, const std::string& folder,
                             int64_t context = 0) {
  Json model = read_json_file(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/huggingface/" +
                              golden + ".json");
  if (context > 0) model["config"]["max_position_embeddings"] = context;
  bundle::testing::write_model(model, folder);
  write_text_file(folder + "/tokenizer.json", tiny_tokenizer(golden == "bert"));
}

/// Four documents, two queries.
inline void write_tiny_retrieval_set(const std::string& folder) {
  make_directories(folder);
  write_text_file(folder + "/corpus.jsonl",
                  "{\"_id\": \"d1\", \"title\": \"w3\", \"text\": \"w4 w5 w6\"}\n"
                  "{\"_id\": \"d2\", \"text\": \"w10 w11 w12\"}\n"
                  "{\"_id\": \"d3\", \"text\": \"w20 w21\"}\n"
                  "{\"_id\": \"d4\", \"text\": \"w30 .\"}\n");
  write_text_file(folder + "/queries.jsonl",
                  "{\"_id\": \"q1\", \"text\": \"w10 w11 w12\"}\n"
                  "{\"_id\": \"q2\", \"text\": \"w20 w21\"}\n");
  write_text_file(folder + "/qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td3\t1\n");
}

}  // namespace sluice::test
