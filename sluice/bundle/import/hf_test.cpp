// Reading Hugging Face folders: what the bundle holds, and a table of what is refused and how.
// engine/graph/imported_test.cpp compares what the models compute.
#include "sluice/bundle/import/hf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/import/testing.h"

namespace sluice::bundle {
namespace hf_test {

using ::testing::ElementsAre;
using testing::golden_values;
using testing::raw_tensor;
using testing::write_model;

Json golden(const std::string& name) {
  return read_json_file(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/huggingface/" + name +
                        ".json");
}

constexpr char kTokenizer[] =
    R"({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 39}}, "added_tokens": [{"id": 2, "content": "<s>"}]})";

class Import : public ::testing::Test {
 protected:
  ImportResult import(const ImportOptions& options = {}) {
    return import_hugging_face(source, output, options);
  }
  void write(const std::string& name, const std::string& text) {
    write_text_file(source + "/" + name, text);
  }
  TempDirectory folder;
  const std::string source = folder / "model", output = folder / "out.safetensors";
};

TEST_F(Import, ADecoderBecomesABundleThatNeedsNothingElse) {
  write_model(golden("qwen3"), source);
  write("tokenizer.json", kTokenizer);
  write("generation_config.json", R"({"eos_token_id": [2, 7]})");
  const ImportResult result = import({.context = 32, .block = 8, .cache_type = "bf16"});
  EXPECT_EQ(result.architecture, "Qwen3ForCausalLM");
  EXPECT_EQ(result.layers, 2);
  EXPECT_EQ(result.vocabulary, 40);
  EXPECT_EQ(result.context, 32);
  EXPECT_TRUE(result.tokenizer);
  const Bundle bundle = Bundle::open(output);
  EXPECT_EQ(bundle.task().kind, "generate");
  EXPECT_THAT(bundle.task().stop_tokens, ElementsAre(2, 7));
  EXPECT_EQ(bundle.tokenizer_json(), kTokenizer);
  EXPECT_EQ(bundle.graph().inputs[0].shape, (Shape{8}));
  EXPECT_EQ(bundle.verify(), int64_t(bundle.graph().tensors.size()) + 1);
  for (const Node& node : bundle.graph().nodes) {
    if (node.op != "attention") continue;
    EXPECT_EQ(attr_int(node.attrs, "cache", 0), 32);
    EXPECT_EQ(attr_string(node.attrs, "cache_type", ""), "bf16");
  }
  EXPECT_THAT(bundle.provenance_json(), ::testing::HasSubstr("Qwen3ForCausalLM"));
}

TEST_F(Import, MatricesKeepTheirTypeUnlessToldOtherwise) {
  using Weights = ImportOptions::Weights;
  const auto format = [&](DType stored, Weights weights, const char* name) {
    std::filesystem::remove_all(source);
    write_model(golden("llama"), source, stored);
    import({.weights = weights});
    return Bundle::open(output).graph().tensors.at(name).format;
  };
  const char* matrix = "blocks.0.attn.q.weight";
  const char* vector = "norm.weight";
  EXPECT_EQ(format(DType::bf16, Weights::keep, matrix), "bf16");
  EXPECT_EQ(format(DType::bf16, Weights::keep, "embed.weight"), "bf16");
  EXPECT_EQ(format(DType::bf16, Weights::keep, vector), "f32");
  EXPECT_EQ(format(DType::bf16, Weights::f32, matrix), "f32");
  EXPECT_EQ(format(DType::f16, Weights::keep, matrix), "f32");
  EXPECT_EQ(format(DType::f32, Weights::keep, matrix), "f32");
  EXPECT_EQ(format(DType::f16, Weights::bf16, matrix), "bf16");
}

TEST_F(Import, ShardsAreOneModel) {
  write_model(golden("llama"), source);
  import();
  const auto whole = Bundle::open(output).provenance_json();
  const auto graph = graph_to_json(Bundle::open(output).graph());
  std::filesystem::remove_all(source);
  write_model(golden("llama"), source, DType::f32, 4);
  import();
  EXPECT_EQ(graph_to_json(Bundle::open(output).graph()), graph);  // checksums included
  EXPECT_EQ(Bundle::open(output).provenance_json(), whole);
}

TEST_F(Import, TheFileInTheFolderWillDo) {
  write_model(golden("llama"), source);
  std::filesystem::rename(source + "/model.safetensors", source + "/other.safetensors");
  import_hugging_face(source + "/other.safetensors", output);
  EXPECT_EQ(Bundle::open(output).task().kind, "generate");
}

TEST_F(Import, TensorsThatRunningDoesNotNeedAreNamed) {
  Json document = golden("llama_llama3");  // tied
  document["tensors"]["lm_head.weight"] = {40, 32};
  document["tensors"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = {4};
  write_model(document, source);
  EXPECT_THAT(import().ignored,
              ElementsAre("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"));
}

void write_sentence(const std::string& source, const std::string& pooling) {
  write_text_file(source + "/modules.json", R"([
      {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
      {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
      {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}])");
  make_directories(source + "/1_Pooling");
  write_text_file(source + "/1_Pooling/config.json", pooling);
  write_text_file(source + "/sentence_bert_config.json", R"({"max_seq_length": 12})");
}

TEST_F(Import, SentenceTransformersSayHowToPool) {
  for (const auto& [mode, kind] : {std::pair{"pooling_mode_mean_tokens", "mean"},
                                   {"pooling_mode_cls_token", "first"},
                                   {"pooling_mode_lasttoken", "last"}}) {
    write_model(golden("bert"), source);
    write_sentence(source,
                   fmt::format(R"({{"pooling_mode_max_tokens": false, "{}": true}})", mode));
    const ImportResult result = import();
    EXPECT_EQ(result.kind, "embed");
    EXPECT_EQ(result.context, 12);
    const Bundle bundle = Bundle::open(output);
    const std::vector<Node>& nodes = bundle.graph().nodes;
    EXPECT_EQ(nodes.back().op, "l2_normalize");
    EXPECT_EQ(attr_string(nodes[nodes.size() - 2].attrs, "kind", ""), kind);
    EXPECT_EQ(bundle.info().shapes.at(bundle.graph().outputs[0]), (Shape{32}));
  }
}

TEST_F(Import, ADecoderWithAPoolingEmbeds) {
  write_model(golden("qwen3"), source);
  write_sentence(source, R"({"pooling_mode_lasttoken": true})");
  const ImportResult result = import();
  EXPECT_EQ(result.kind, "embed");
  EXPECT_THAT(result.ignored, ElementsAre("lm_head.weight"));
  EXPECT_EQ(Bundle::open(output).task().kind, "embed");
}

TEST_F(Import, RobertaCountsPositionsFromBehindThePadding) {
  write_model(golden("roberta"), source);
  EXPECT_EQ(import({.pooling = "mean"}).context, 18);
}

TEST_F(Import, AFailureLeavesTheOldFile) {
  write_model(golden("llama"), source);
  write_text_file(output, "old");
  write("tokenizer.json", "{");
  EXPECT_ERROR(import(), Code::format, "tokenizer.json");
  EXPECT_EQ(read_text_file(output), "old");
  EXPECT_EQ(folder.entries().size(), 2u);
}

struct Refusal {
  const char* name;
  const char* model;
  std::function<void(Json& document)> change;
  Code code;
  const char* words;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

auto set(const char* field, Json value) {
  return [=](Json& d) { d["config"][field] = value; };
}
auto unset(const char* field) {
  return [=](Json& d) { d["config"].erase(field); };
}
auto shape(const char* tensor, Shape sizes) {
  return [=](Json& d) { d["tensors"][tensor] = sizes; };
}
auto pixels(Json preprocessor) {
  return [=](Json& d) { d["preprocessor"] = preprocessor; };
}
auto rope(Json scaling) { return set("rope_scaling", std::move(scaling)); }

const Refusal kRefusals[] = {
    {"NoArchitecture", "llama", unset("architectures"), Code::unsupported, "found nothing"},
    {"OtherArchitecture", "llama", set("architectures", {"FalconForCausalLM"}), Code::unsupported,
     "found 'FalconForCausalLM'"},
    {"ArchitecturesNotAList", "llama", set("architectures", 3), Code::config, "'architectures'"},
    {"NoWidth", "llama", unset("hidden_size"), Code::config, "field 'hidden_size': expected an"},
    {"ZeroWidth", "llama", set("hidden_size", 0), Code::config, "'hidden_size'"},
    {"NegativeLayers", "llama", set("num_hidden_layers", -1), Code::config, "found -1"},
    {"HugeLayers", "llama", set("num_hidden_layers", 1e15), Code::config, "'num_hidden_layers'"},
    {"MoreLayersThanTensors", "llama", set("num_hidden_layers", 60000), Code::missing,
     "model.layers.2.input_layernorm.weight"},
    {"HugeVocabulary", "llama", set("vocab_size", 16777216), Code::shape,
     "config.json asks for 16777216 x 32, the file holds 40 x 32"},
    {"VocabularyBeyondExactIds", "llama", set("vocab_size", 16777217), Code::config, "16777217"},
    {"HeadsDoNotDivide", "llama", set("num_attention_heads", 5), Code::config,
     "'num_key_value_heads': expected a divisor of the 5 heads"},
    {"KeyHeadsDoNotDivide", "llama", set("num_key_value_heads", 3), Code::config, "found 3"},
    {"OddHead", "llama", set("head_dim", 9), Code::unsupported, "expected an even number"},
    {"TextForANumber", "llama", set("rms_norm_eps", "small"), Code::config, "found \"small\""},
    {"NumberForAFlag", "llama", set("attention_bias", 1), Code::config, "expected true or false"},
    {"NoPositions", "llama", unset("max_position_embeddings"), Code::config,
     "'max_position_embeddings'"},
    {"OtherActivation", "llama", set("hidden_act", "quick_gelu"), Code::unsupported,
     "'hidden_act': expected silu"},
    {"AbsurdTheta", "llama", set("rope_theta", -5), Code::config, "'rope_theta'"},
    {"LongRope", "llama", rope({{"type", "longrope"}, {"factor", 4.0}}), Code::unsupported,
     "'rope_scaling.type'"},
    {"RopeNotAnObject", "llama", rope("linear"), Code::config,
     "'rope_scaling': expected an object"},
    {"ZeroRopeFactor", "llama", rope({{"type", "linear"}, {"factor", 0}}), Code::config,
     "'rope_scaling.factor'"},
    {"Llama3WithoutFrequencies", "llama", rope({{"rope_type", "llama3"}, {"factor", 8}}),
     Code::config, "'rope_scaling.low_freq_factor'"},
    {"Llama3WithTurnedFrequencies", "llama",
     rope(
         {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 1}}),
     Code::config, "'rope_scaling.high_freq_factor'"},
    {"Quantized", "llama", set("quantization_config", {{"bits", 4}}), Code::unsupported,
     "quantization_config"},
    {"MissingTensor", "llama", [](Json& d) { d["tensors"].erase("model.norm.weight"); },
     Code::missing, "tensor 'model.norm.weight' is not there"},
    {"MisshapenTensor", "llama", shape("model.norm.weight", {31}), Code::shape,
     "asks for 32, the file holds 31"},
    {"TransposedMatrix", "llama", shape("model.layers.0.mlp.up_proj.weight", {32, 48}), Code::shape,
     "asks for 48 x 32"},
    {"UnknownTensor", "llama", shape("model.layers.0.self_attn.sinks", {4}), Code::unsupported,
     "'model.layers.0.self_attn.sinks' has no place"},
    {"BiasThatConfigDenies", "llama", set("mlp_bias", false), Code::unsupported,
     "model.layers.0.mlp.down_proj.bias"},
    {"HeadMissingButNotTied", "llama_llama3", set("tie_word_embeddings", false), Code::missing,
     "lm_head.weight"},
    {"ZeroWindow", "mistral", set("sliding_window", 0), Code::config, "'sliding_window'"},
    {"TooFewLayerTypes", "qwen2", set("layer_types", {"full_attention"}), Code::config,
     "expected 2 entries"},
    {"UnknownLayerType", "qwen2", set("layer_types", {"full_attention", "linear_attention"}),
     Code::unsupported, "layer 1"},
    {"StopTokenBeyondVocabulary", "llama", set("eos_token_id", {2, 40}), Code::config, "found 40"},
    {"MoreChosenThanExperts", "mixtral", set("num_experts_per_tok", 5), Code::config,
     "'num_experts_per_tok': expected at most the 4 experts"},
    {"NoExperts", "mixtral", set("num_local_experts", 0), Code::config, "'num_local_experts'"},
    {"MoreExpertsThanTensors", "mixtral", set("num_local_experts", 65536), Code::shape,
     "block_sparse_moe.gate.weight"},
    {"MissingExpert", "qwen3_moe",
     [](Json& d) { d["tensors"].erase("model.layers.1.mlp.experts.3.up_proj.weight"); },
     Code::missing, "model.layers.1.mlp.experts.3.up_proj.weight"},
    {"MisshapenExpert", "qwen2_moe",
     shape("model.layers.1.mlp.experts.2.down_proj.weight", {24, 32}), Code::shape,
     "asks for 32 x 24"},
    {"SharedExpertOfNoWidth", "qwen2_moe", set("shared_expert_intermediate_size", 0), Code::config,
     "'shared_expert_intermediate_size'"},
    {"Gpt2HeadsDoNotDivide", "gpt2", set("n_head", 5), Code::config, "'n_head'"},
    {"Gpt2CrossAttention", "gpt2", set("add_cross_attention", true), Code::unsupported,
     "'add_cross_attention'"},
    {"Gpt2Misshapen", "gpt2", shape("transformer.h.1.attn.c_attn.weight", {96, 32}), Code::shape,
     "asks for 32 x 96"},
    {"BertWithoutPooling", "bert", [](Json&) {}, Code::usage, "--pooling"},
    {"BertDecoder", "bert", set("is_decoder", true), Code::unsupported, "'is_decoder'"},
    {"BertRelativePositions", "bert", set("position_embedding_type", "relative_key"),
     Code::unsupported, "'position_embedding_type'"},
    {"RobertaPaddingBeyondPositions", "roberta", set("pad_token_id", 19), Code::config,
     "'max_position_embeddings': expected more than 20"},
    {"PicturesWithoutPreprocessor", "vit", [](Json&) {}, Code::missing, "preprocessor_config.json"},
    {"PixelsUpTo255", "vit", pixels({{"do_rescale", false}}), Code::unsupported,
     "'rescale_factor': expected pixels divided by 255"},
    {"MeansOfTwoChannels", "vit", pixels({{"image_mean", {0.5, 0.4}}}), Code::config,
     "'image_mean': expected a number for each of 3 channels, found 2"},
    {"DeviationOfZero", "vit", pixels({{"image_std", {0.5, 0.0, 0.5}}}), Code::config,
     "'image_std'"},
    {"PatchLargerThanThePicture", "vit", set("patch_size", 13), Code::config,
     "'patch_size': patches of 13 pixels in a picture of 12"},
    {"OblongPatches", "vit", set("patch_size", {4, 2}), Code::unsupported, "'patch_size'"},
    {"ClassWithoutName", "vit", set("id2label", {{"0", "a"}, {"2", "b"}}), Code::config,
     "'id2label': 2 names, but none of class 1"},
    {"VitHeadsDoNotDivide", "vit", set("num_attention_heads", 5), Code::config,
     "'num_attention_heads'"},
    {"PositionsOfOtherPatches", "deit",
     [](Json& d) {
       d["preprocessor"] = Json::object();
       d["tensors"]["deit.embeddings.position_embeddings"] = {1, 10, 32};
     },
     Code::shape, "asks for 1 x 11 x 32"},
};

class Refusals : public ::testing::TestWithParam<Refusal> {};

TEST_P(Refusals, NameFileAndField) {
  const TempDirectory folder;
  Json document = golden(GetParam().model);
  GetParam().change(document);
  write_model(document, folder / "model");
  const auto error = error_of([&] { import_hugging_face(folder / "model", folder / "out"); });
  ASSERT_TRUE(error);
  EXPECT_EQ(code_name(error->code()), code_name(GetParam().code)) << error->what();
  EXPECT_THAT(error->what(), ::testing::HasSubstr(GetParam().words));
  EXPECT_THAT(error->what(), ::testing::HasSubstr(folder.path()));
  EXPECT_FALSE(file_exists(folder / "out"));
}

INSTANTIATE_TEST_SUITE_P(Configs, Refusals, ::testing::ValuesIn(kRefusals),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(Import, BrokenFoldersAreNamed) {
  EXPECT_ERROR(import(), Code::missing, "does not exist");
  make_directories(source);
  EXPECT_ERROR(import(), Code::missing, "config.json is not there");
  write("config.json", "[]");
  EXPECT_ERROR(import(), Code::config, "expected a JSON object, found array");
  write("config.json", R"({"architectures": ["LlamaForCausalLM"], "architectures": []})");
  EXPECT_ERROR(import(), Code::format, "config.json");
  write("config.json", golden("llama")["config"].dump());
  EXPECT_ERROR(import(), Code::missing, "neither model.safetensors nor");
  write("model.safetensors", "not this");
  EXPECT_ERROR(import(), Code::limit, "model.safetensors");
  write_text_file(folder / "model.bin", "x");
  EXPECT_ERROR(import_hugging_face(folder / "model.bin", output), Code::unsupported,
               "expected a model's folder or a .safetensors file");
}

TEST_F(Import, ShardNamesStayInTheFolder) {
  write_model(golden("llama"), source, DType::f32, 2);
  Json index = read_json_file(source + "/model.safetensors.index.json");
  const auto expect = [&](Json value, Code code, const char* words) {
    Json changed = index;
    changed["weight_map"]["model.norm.weight"] = std::move(value);
    write("model.safetensors.index.json", changed.dump());
    EXPECT_ERROR(import(), code, words);
  };
  expect("../secret.safetensors", Code::config, "found '../secret.safetensors'");
  expect("/etc/passwd", Code::config, "found '/etc/passwd'");
  expect("..", Code::config, "found '..'");
  expect("", Code::config, "found ''");
  expect("a\n.safetensors", Code::config, "expected the name of a file");
  expect(7, Code::config, "expected the name of a file, found number");
  expect("model-00009-of-00002.safetensors", Code::missing, "model-00009");
  expect("config.json", Code::limit, "config.json");
  Json moved = index;
  moved["weight_map"]["model.norm.weight"] =
      index["weight_map"]["model.norm.weight"] == "model-00001-of-00002.safetensors"
          ? "model-00002-of-00002.safetensors"
          : "model-00001-of-00002.safetensors";
  write("model.safetensors.index.json", moved.dump());
  EXPECT_ERROR(import(), Code::missing, "tensor 'model.norm.weight' is not in");
  write("model.safetensors.index.json", "{}");
  EXPECT_ERROR(import(), Code::config, "'weight_map': expected an object, found nothing");
  write("model.safetensors.index.json", R"({"weight_map": []})");
  EXPECT_ERROR(import(), Code::config, "'weight_map': expected an object");
}

TEST_F(Import, NumbersThatAreNoneAreRefused) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Json document = golden("llama");
    write_model(document, source, dtype);
    std::vector<testing::RawTensor> tensors;
    for (const auto& [name, sizes] : document["tensors"].items()) {
      auto values = golden_values(name, sizes.get<Shape>(), 0.25);
      if (name == "model.layers.1.mlp.up_proj.weight") values[5] = INFINITY;
      tensors.push_back(raw_tensor(name, dtype, sizes.get<Shape>(), values));
    }
    testing::write_tensors(source + "/model.safetensors", tensors);
    EXPECT_ERROR(import(), Code::numeric, "'model.layers.1.mlp.up_proj.weight': element 5 is inf");
  }
}

TEST_F(Import, TypesThatAreNoWeightsAreRefused) {
  const Json document = golden("llama");
  write_model(document, source);
  std::vector<testing::RawTensor> tensors;
  for (const auto& [name, sizes] : document["tensors"].items()) {
    tensors.push_back(raw_tensor(name, DType::f32, sizes.get<Shape>(),
                                 golden_values(name, sizes.get<Shape>(), 0.25)));
    if (name == "model.norm.weight") tensors.back().dtype = DType::i32;
  }
  testing::write_tensors(source + "/model.safetensors", tensors);
  EXPECT_ERROR(import(), Code::dtype, "'model.norm.weight': expected F32, F16 or BF16, found I32");
}

TEST_F(Import, TokenizersMustFitTheVocabulary) {
  write_model(golden("llama"), source);
  const auto expect = [&](const char* text, Code code, const char* words) {
    write("tokenizer.json", text);
    EXPECT_ERROR(import(), code, words);
  };
  expect(R"({"model": {"vocab": {"a": 0, "b": 40}}})", Code::shape,
         "token 'b': expected an id from 0 to 39 (vocab_size), found 40");
  expect(R"({"model": {"vocab": {"a": -1}}})", Code::shape, "found -1");
  expect(R"({"model": {"vocab": {"a": "x"}}})", Code::shape, "token 'a'");
  expect(R"({"model": {"vocab": {}}, "added_tokens": [{"id": 99, "content": "<x>"}]})", Code::shape,
         "token '<x>'");
  expect(R"({"model": {}, "added_tokens": [{"id": 99, "content": 4}]})", Code::config, "'content'");
  expect("{}", Code::config, "'model': expected an object, found nothing");
  expect("[]", Code::config, "expected a JSON object");
}

TEST_F(Import, ModulesThatCannotBeRunAreRefused) {
  write_model(golden("bert"), source);
  const std::string transformer = R"([{"path": "", "type": "a.Transformer"}, )";
  const auto expect = [&](const std::string& modules, Code code, const char* words) {
    write("modules.json", modules);
    EXPECT_ERROR(import(), code, words);
  };
  write_sentence(source, R"({"pooling_mode_max_tokens": true})");
  EXPECT_ERROR(import(), Code::unsupported, "'pooling_mode_max_tokens'");
  write_sentence(source, R"({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true})");
  EXPECT_ERROR(import(), Code::unsupported, "beside mean");
  write_sentence(source, "{}");
  EXPECT_ERROR(import(), Code::config, "no pooling_mode_* is true");
  write_sentence(source, R"({"pooling_mode": "weightedmean"})");
  EXPECT_ERROR(import(), Code::unsupported, "'pooling_mode'");
  expect("{}", Code::config, "expected a list of modules");
  expect("[3]", Code::config, "module 0: expected a JSON object");
  expect(R"([{"path": "../x", "type": "a.Transformer"}])", Code::config, "found '../x'");
  expect(transformer + R"({"path": "2_Dense", "type": "a.Dense"}])", Code::unsupported,
         "found 'a.Dense'");
  expect(R"([{"path": "1_Pooling", "type": "a.Pooling"}])", Code::unsupported,
         "expected Transformer, then Pooling");
}

TEST_F(Import, OptionsThatDoNotFitAreUsage) {
  write_model(golden("llama"), source);
  EXPECT_ERROR(import({.context = 65}), Code::usage, "--context 65");
  EXPECT_ERROR(import({.normalize = true}), Code::usage, "--normalize needs a pooling");
  EXPECT_ERROR(import({.pooling = "max"}), Code::usage, "--pooling: expected mean");
}

}  // namespace hf_test
}  // namespace sluice::bundle
