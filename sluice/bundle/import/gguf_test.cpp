// GGUF in and out: models go over as they are, and what does not fit is refused by name.
#include "sluice/bundle/import/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/export/export.h"
#include "sluice/bundle/gguf/gguf.h"
#include "sluice/bundle/gguf/vocabulary.h"
#include "sluice/bundle/import/testing.h"

namespace sluice::bundle {
namespace gguf_test {

using ::testing::Contains;
using ::testing::HasSubstr;
using Import = ImportOptions::Weights;
using Export = ExportOptions::Weights;

/// A golden model with feed-forwards of 64 columns, which is a multiple of a block.
Json golden(const std::string& name) {
  Json document = read_json_file(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/huggingface/" +
                                 name + ".json");
  document["config"]["intermediate_size"] = 64;
  document["config"].erase("sliding_window");
  document["config"].erase("layer_types");
  document["config"]["use_sliding_window"] = false;
  for (auto& [tensor, shape] : document["tensors"].items())
    if (tensor.find(".mlp.") != tensor.npos)
      for (Json& size : shape)
        if (size == 48) size = 64;
  return document;
}

class GgufModels : public ::testing::Test {
 protected:
  /// Imports a golden model; what export_gguf makes of it is in `file`.
  void make(const std::string& name, const ImportOptions& in = {}, const ExportOptions& out = {},
            DType dtype = DType::f32) {
    testing::write_model(golden(name), folder / "source", dtype);
    import_hugging_face(folder / "source", model, in);
    exported = export_gguf(Bundle::open(model), file, out);
  }
  Json again(const ImportOptions& options = {}) {
    import_gguf(file, folder / "again", options);
    return Json::parse(graph_to_json(Bundle::open(folder / "again").graph()));
  }
  Json graph() { return Json::parse(graph_to_json(Bundle::open(model).graph())); }

  TempDirectory folder;
  const std::string model = folder / "model", file = folder / "model.gguf";
  ExportResult exported;
};

TEST_F(GgufModels, ThereAndBackIsTheSameModel) {
  for (const auto& [name, architecture] : {std::pair{"llama", "llama"},
                                           {"llama_linear", "llama"},
                                           {"llama_llama3", "llama"},
                                           {"mistral", "llama"},
                                           {"qwen2", "qwen2"},
                                           {"qwen3", "qwen3"}}) {
    for (const Import weights :
         {Import::keep, Import::bf16, Import::i8_32, Import::i4_32, Import::i4_32_min}) {
      // The golden Mistral has rows of 48 columns, and the way of packed ones is the same for all.
      if (weights > Import::bf16 && std::string(name) != "llama" && std::string(name) != "qwen3")
        continue;
      make(name, {.weights = weights});
      EXPECT_EQ(exported.architecture, architecture);
      EXPECT_EQ(again(), graph()) << name;  // checksums included
    }
  }
}

TEST_F(GgufModels, TheFileItselfComesBackToo) {
  for (const Export weights : {Export::f32, Export::bf16, Export::q8_0, Export::q4_0}) {
    make("llama", {}, {.weights = weights});
    import_gguf(file, model);
    export_gguf(Bundle::open(model), folder / "second.gguf");
    const gguf::File first = gguf::File::open(file),
                     second = gguf::File::open(folder / "second.gguf");
    ASSERT_EQ(first.tensors().size(), second.tensors().size());
    for (const gguf::Tensor& tensor : first.tensors()) {
      const gguf::Tensor& other = *second.find_tensor(tensor.name);
      EXPECT_EQ(tensor.type, other.type);
      EXPECT_EQ(tensor.shape, other.shape);
      EXPECT_TRUE(std::ranges::equal(tensor.bytes, other.bytes)) << tensor.name;
    }
    for (const auto& [key, value] : first.metadata())
      EXPECT_TRUE(std::ranges::equal(value.bytes, second.metadata().at(key).bytes) ||
                  key == "general.name")
          << key;
  }
}

TEST_F(GgufModels, HalfPrecisionBecomesF32WithTheSameValues) {
  make("llama", {}, {.weights = Export::f16});  // golden values are exact in every type
  EXPECT_EQ(gguf::File::open(file).find_tensor("blk.0.ffn_up.weight")->type, gguf::kF16);
  EXPECT_EQ(again(), graph());
}

TEST_F(GgufModels, ImportRequantizesWhenAsked) {
  make("qwen3", {}, {.weights = Export::q8_0});
  const Json graph = again({.weights = Import::i4_32});
  EXPECT_EQ(graph["tensors"]["blocks.0.ffn.up.weight"]["format"], "i4-32");
  EXPECT_EQ(graph["tensors"]["norm.weight"]["format"], "f32");
}

TEST_F(GgufModels, SizesAreTold) {
  make("llama_linear");
  const gguf::File gguf = gguf::File::open(file);
  EXPECT_EQ(gguf.integer("llama.context_length", 0, 1e9), 64);
  EXPECT_EQ(gguf.integer("llama.attention.head_count_kv", 0, 1e9), 4);
  EXPECT_EQ(gguf.text("llama.rope.scaling.type"), "linear");
  EXPECT_EQ(gguf.number("llama.rope.scaling.factor", 0, 9), 2.5);
  EXPECT_EQ(gguf.text("tokenizer.ggml.model"), "none");
  EXPECT_THAT(exported.notes, Contains(HasSubstr("no tokenizer")));
  EXPECT_EQ(exported.tensors, int64_t(gguf.tensors().size()));
}

TEST_F(GgufModels, WhatGgufCannotSayIsRefused) {
  const auto refused = [&](const char* name, const std::function<void(Json&)>& change,
                           const ImportOptions& in, const ExportOptions& out, Code code,
                           const char* words) {
    Json document = golden(name);
    change(document);
    testing::write_model(document, folder / "source");
    import_hugging_face(folder / "source", model, in);
    EXPECT_ERROR(export_gguf(Bundle::open(model), folder / "none", out), code, words);
    EXPECT_FALSE(file_exists(folder / "none"));
  };
  const auto config = [](const char* field, Json value) {
    return [=](Json& document) { document["config"][field] = value; };
  };
  refused("mistral", config("sliding_window", 5), {}, {}, Code::unsupported,
          "'blocks.0.attn.attention': its window of 5 positions");
  refused("llama", config("hidden_act", "gelu"), {}, {}, Code::unsupported,
          "its activation is gelu; expected silu");
  refused(
      "llama_yarn", [](Json&) {}, {}, {}, Code::unsupported, "products of queries and keys");
  refused(
      "qwen3", [](Json&) {}, {.pooling = "last"}, {}, Code::unsupported,
      "(pool_rows) has no place");
  const auto odd = [](Json& d) {
    d["config"]["intermediate_size"] = 48;
    for (auto& [tensor, shape] : d["tensors"].items())
      if (tensor.find(".mlp.") != tensor.npos)
        for (Json& size : shape)
          if (size == 64) size = 48;
  };
  refused("qwen3", odd, {}, {.weights = Export::q8_0}, Code::unsupported,
          "rows of 48 columns; Q8_0 stores blocks of 32");
}

TEST_F(GgufModels, OtherGraphsHaveNoPlace) {
  Builder builder;
  const std::vector<float> weight(16, 0.5f);
  builder.tensor("w", {4, 4}, weight);
  Value x = builder.input("x", {2, 4});
  x = builder.node("linear", "fc", {x}, {}, {{"weight", "w"}});
  builder.output(builder.node("threshold", "gate", {x}));
  builder.write(model);
  EXPECT_ERROR(export_gguf(Bundle::open(model), file), Code::unsupported,
               "node 'gate' (threshold) has no place in a decoder");
}

struct Change {
  const char* name;
  /// Metadata to write instead (or behind), and tensors to leave out, rename or misshape.
  std::function<void(gguf::Writer&)> metadata;
  std::function<bool(gguf::Tensor&)> tensor;  ///< false: leave it out
  Code code;
  const char* words;
};

void PrintTo(const Change& change, std::ostream* out) { *out << change.name; }

auto number(const char* key, uint32_t value) {
  return [=](gguf::Writer& writer) { writer.set(key, value); };
}
auto text(const char* key, const char* value) {
  return [=](gguf::Writer& writer) { writer.set(key, std::string_view(value)); };
}
auto list(const char* key, std::vector<int32_t> values) {
  return [=](gguf::Writer& writer) { writer.set(key, std::span<const int32_t>(values)); };
}
auto real(const char* key, float value) {
  return [=](gguf::Writer& writer) { writer.set(key, value); };
}
auto without(const char* name) {
  return [=](gguf::Tensor& tensor) { return tensor.name != name; };
}
void nothing(gguf::Writer&) {}
bool all(gguf::Tensor&) { return true; }

const std::vector<std::byte> kZeros(1 << 16);

/// A tensor of another shape and type, all zeros.
auto other(const char* name, Shape shape, uint32_t type = gguf::kF32) {
  return [=](gguf::Tensor& tensor) {
    if (tensor.name != name) return true;
    tensor.shape = shape;
    tensor.type = type;
    const gguf::TensorType& known = *gguf::find_type(type);
    tensor.bytes = std::span(kZeros).first(
        static_cast<size_t>(numel(shape) / shape.back() * gguf::row_bytes(known, shape.back())));
    return true;
  };
}

const Change kChanges[] = {
    {"OtherArchitecture", text("general.architecture", "gemma"), all, Code::unsupported,
     "key 'general.architecture': expected llama, qwen2 or qwen3, found 'gemma'"},
    {"ArchitectureOfNumbers", number("general.architecture", 3), all, Code::config,
     "expected text, found 3"},
    {"ZeroWidth", number("llama.embedding_length", 0), all, Code::config,
     "key 'llama.embedding_length': expected an integer from 1"},
    {"HugeWidth", number("llama.embedding_length", 0xFFFFFFFF), all, Code::config,
     "found 4294967295"},
    {"WidthOfText", text("llama.embedding_length", "32"), all, Code::config, "found '32'"},
    {"OtherWidth", number("llama.embedding_length", 40), all, Code::shape, "the metadata asks for"},
    {"ZeroLayers", number("llama.block_count", 0), all, Code::config, "'llama.block_count'"},
    {"MoreLayersThanTensors", number("llama.block_count", 60000), all, Code::missing,
     "tensor 'blk.2.attn_norm.weight' is not there"},
    {"FewerLayersThanTensors", number("llama.block_count", 1), all, Code::unsupported,
     "has no place in a LlamaForCausalLM"},
    {"NoHeads", number("llama.attention.head_count", 0), all, Code::config,
     "'llama.attention.head_count'"},
    {"HeadsPerLayer", list("llama.attention.head_count_kv", {2, 1}), all, Code::config,
     "expected an integer from 1 to 65536, found an array of 2 i32"},
    {"KeyHeadsDoNotDivide", number("llama.attention.head_count_kv", 3), all, Code::config,
     "key 'llama.attention.head_count_kv': expected a divisor of the 4 heads, found 3"},
    {"OtherHeads", number("llama.attention.head_count", 8), all, Code::shape, "asks for 64 x 32"},
    {"ValuesWider", number("llama.attention.value_length", 16), all, Code::unsupported,
     "'llama.attention.value_length': expected the 8"},
    {"OddRope", number("llama.rope.dimension_count", 7), all, Code::config,
     "'llama.rope.dimension_count': expected an even number"},
    {"RopeWiderThanHeads", number("llama.rope.dimension_count", 4096), all, Code::config,
     "found 4096"},
    {"AbsurdRopeBase", real("llama.rope.freq_base", -5), all, Code::config,
     "key 'llama.rope.freq_base': expected a number from"},
    {"RopeBaseOfNothing", real("llama.rope.freq_base", NAN), all, Code::config, "found nan"},
    {"UnknownScaling", text("llama.rope.scaling.type", "longrope"), all, Code::unsupported,
     "found 'longrope'"},
    {"ScalingWithoutFactor", text("llama.rope.scaling.type", "linear"), all, Code::missing,
     "key 'llama.rope.scaling.factor': it is not there"},
    {"EpsOfNothing", real("llama.attention.layer_norm_rms_epsilon", NAN), all, Code::config,
     "'llama.attention.layer_norm_rms_epsilon'"},
    {"NoPositions", number("llama.context_length", 0), all, Code::config, "'llama.context_length'"},
    {"Experts", number("llama.expert_count", 8), all, Code::unsupported, "'llama.expert_count'"},
    {"VocabularyMismatch", number("llama.vocab_size", 41), all, Code::shape,
     "'llama.vocab_size': 41; 'token_embd.weight' has 40 rows"},
    {"NoEmbedding", nothing, without("token_embd.weight"), Code::missing, "'token_embd.weight'"},
    {"MissingTensor", nothing, without("blk.1.ffn_up.weight"), Code::missing,
     "tensor 'blk.1.ffn_up.weight' is not there"},
    {"MissingNorm", nothing, without("output_norm.weight"), Code::missing, "'output_norm.weight'"},
    {"UnknownTensor", nothing,
     [](gguf::Tensor& t) {
       if (t.name == "output_norm.weight") t.name = "blk.0.attn_sinks.weight";
       return true;
     },
     Code::missing, "'output_norm.weight'"},
    {"MisshapenTensor", nothing, other("blk.0.attn_norm.weight", {31}), Code::shape,
     "tensor 'blk.0.attn_norm.weight': the metadata asks for 32, the file holds 31"},
    {"TransposedMatrix", nothing, other("blk.0.ffn_down.weight", {64, 32}), Code::shape,
     "asks for 32 x 64, the file holds 64 x 32"},
    {"MatrixOfThree", nothing, other("blk.0.ffn_down.weight", {1, 32, 64}), Code::shape,
     "the file holds 1 x 32 x 64"},
    {"FactorsOfZero", nothing,
     [](gguf::Tensor& t) {
       if (t.name == "blk.1.attn_norm.weight") t.name = "rope_freqs.weight";
       return other("rope_freqs.weight", {4})(t);
     },
     Code::numeric, "'rope_freqs.weight': element 0: expected a number above 0"},
    {"TokensWithoutModel", text("tokenizer.ggml.model", "bert"), all, Code::unsupported,
     "key 'tokenizer.ggml.model': expected gpt2 or llama, found 'bert'"},
    {"NoTokens", text("tokenizer.ggml.model", "gpt2"), all, Code::missing,
     "key 'tokenizer.ggml.tokens'"},
};

class Refused : public ::testing::TestWithParam<Change> {};

TEST_P(Refused, IsNamed) {
  const TempDirectory folder;
  testing::write_model(golden("llama"), folder / "source");
  import_hugging_face(folder / "source", folder / "model");
  export_gguf(Bundle::open(folder / "model"), folder / "good.gguf");
  const gguf::File good = gguf::File::open(folder / "good.gguf");
  gguf::Writer writer;
  GetParam().metadata(writer);
  for (const auto& [key, value] : good.metadata()) {
    try {
      if (value.type == gguf::ValueType::u32)
        writer.set(key, uint32_t(good.integer(key, 0, UINT32_MAX)));
      if (value.type == gguf::ValueType::f32) writer.set(key, float(good.number(key, -1e9, 1e9)));
      if (value.type == gguf::ValueType::text) writer.set(key, std::string_view(good.text(key)));
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), Code::usage);  // the change has set it
    }
  }
  for (gguf::Tensor tensor : good.tensors())
    if (GetParam().tensor(tensor))
      writer.tensor(tensor.name, tensor.type, tensor.shape, tensor.bytes);
  writer.write(folder / "bad.gguf");
  const auto error = error_of([&] { import_gguf(folder / "bad.gguf", folder / "out"); });
  ASSERT_TRUE(error);
  EXPECT_EQ(code_name(error->code()), code_name(GetParam().code)) << error->what();
  EXPECT_THAT(error->what(), HasSubstr(GetParam().words));
  EXPECT_THAT(error->what(), HasSubstr("bad.gguf"));
  EXPECT_FALSE(file_exists(folder / "out"));
}

INSTANTIATE_TEST_SUITE_P(Files, Refused, ::testing::ValuesIn(kChanges),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace gguf_test
}  // namespace sluice::bundle
