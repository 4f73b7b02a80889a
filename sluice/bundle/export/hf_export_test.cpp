// Folders for transformers: what was imported comes back bit by bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/export/export.h"
#include "sluice/bundle/import/gguf.h"
#include "sluice/bundle/import/hf.h"
#include "sluice/bundle/import/testing.h"

namespace sluice::bundle {
namespace hf_export_test {

using ::testing::Contains;
using ::testing::HasSubstr;
using testing::write_model;

Json golden(const std::string& name) {
  return read_json_file(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/huggingface/" + name +
                        ".json");
}

class FolderExport : public ::testing::Test {
 protected:
  void expect_same_tensors(const char* name) {
    const auto before = SafetensorsFile::open(source + "/model.safetensors"),
               after = SafetensorsFile::open(out + "/model.safetensors");
    ASSERT_EQ(before.tensors().size(), after.tensors().size()) << name;
    for (const TensorView& tensor : before.tensors()) {
      const TensorView& other = after.at(tensor.name);
      EXPECT_EQ(tensor.dtype, other.dtype) << name << " " << tensor.name;
      EXPECT_EQ(tensor.shape, other.shape) << name << " " << tensor.name;
      EXPECT_TRUE(std::ranges::equal(tensor.bytes, other.bytes)) << name << " " << tensor.name;
    }
  }
  Json graph(const std::string& path) {
    return Json::parse(graph_to_json(Bundle::open(path).graph()));
  }
  TempDirectory folder;
  const std::string source = folder / "source", model = folder / "model", out = folder / "out";
};

TEST_F(FolderExport, TensorsComeBackBitByBit) {
  for (const char* name : {"llama", "llama_linear", "llama_dynamic", "llama_llama3", "llama_yarn",
                           "mistral", "qwen2", "qwen3"}) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      write_model(golden(name), source, dtype);
      import_hugging_face(source, model);
      const ExportResult result = export_hugging_face(Bundle::open(model), out);
      EXPECT_EQ(result.architecture, golden(name)["config"]["architectures"][0]) << name;
      expect_same_tensors(name);
      import_hugging_face(out, folder / "again");
      EXPECT_EQ(graph(folder / "again"), graph(model)) << name;
    }
  }
}

TEST_F(FolderExport, TheConfigKeepsWhatRunningNeedsNot) {
  Json document = golden("llama_yarn");
  document["config"]["torch_dtype"] = "float32";
  document["config"]["bos_token_id"] = 1;
  write_model(document, source);
  import_hugging_face(source, model);
  export_hugging_face(Bundle::open(model), out);
  const Json config = read_json_file(out + "/config.json");
  EXPECT_EQ(config["torch_dtype"], "float32");
  EXPECT_EQ(config["rope_parameters"], document["config"]["rope_parameters"]);
}

TEST_F(FolderExport, AGgufFileBecomesAFolder) {
  write_model(golden("qwen3"), source);
  import_hugging_face(source, model);
  export_gguf(Bundle::open(model), folder / "model.gguf");
  import_gguf(folder / "model.gguf", model);
  export_hugging_face(Bundle::open(model), out);
  expect_same_tensors("qwen3");
}

TEST_F(FolderExport, MixturesAndGpt2ComeBackBitByBit) {
  for (const char* name : {"mixtral", "qwen2_moe", "qwen3_moe", "gpt2"}) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      write_model(golden(name), source, dtype);
      import_hugging_face(source, model);
      export_hugging_face(Bundle::open(model), out);
      expect_same_tensors(name);
      EXPECT_EQ(read_json_file(out + "/config.json"), golden(name)["config"]);
    }
  }
}

TEST_F(FolderExport, EncodersComeBackAsTheSameFunction) {
  for (const char* name : {"bert", "roberta"}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      write_model(golden(name), source, dtype);
      import_hugging_face(source, model, {.pooling = "mean", .normalize = true});
      const ExportResult result = export_hugging_face(Bundle::open(model), out);
      EXPECT_THAT(result.notes, Contains(HasSubstr("token types")));
      import_hugging_face(out, folder / "again");  // modules.json says how to pool
      EXPECT_EQ(graph(folder / "again"), graph(model)) << name;
    }
  }
}

TEST_F(FolderExport, PictureModelsComeBackBitByBit) {
  for (const char* name : {"vit", "deit", "deit_distilled"}) {
    for (const Json& mean : {Json{0.5, 0.5, 0.5}, Json{0.485, 0.456, 0.406}}) {
      Json document = golden(name);
      document["preprocessor"] = {{"image_mean", mean}, {"size", {{"height", 12}}}};
      write_model(document, source, DType::f32);
      import_hugging_face(source, model);
      export_hugging_face(Bundle::open(model), out);
      expect_same_tensors(name);
      EXPECT_EQ(read_json_file(out + "/config.json"), document["config"]);
      EXPECT_EQ(read_json_file(out + "/preprocessor_config.json"), document["preprocessor"]);
    }
  }
}

TEST_F(FolderExport, ADecoderThatEmbedsKeepsItsPooling) {
  write_model(golden("qwen3"), source);
  import_hugging_face(source, model, {.pooling = "last"});
  export_hugging_face(Bundle::open(model), out);
  import_hugging_face(out, folder / "again");
  EXPECT_EQ(graph(folder / "again"), graph(model));
}

TEST_F(FolderExport, WhatWasChangedSinceImportIsNamed) {
  write_model(golden("gpt2"), source);
  import_hugging_face(source, model);
  const Bundle bundle = Bundle::open(model);
  const auto changed = [&](const std::function<void(Node&)>& change) {
    Builder b;
    for (const auto& [name, spec] : bundle.graph().tensors)
      b.tensor(name, spec.dtype, spec.shape, bundle.tensor(name).bytes);
    std::map<std::string, Value> values;
    for (const Value& input : bundle.graph().inputs)
      values[input.name] = b.input(input.name, input.shape);
    for (Node node : bundle.graph().nodes) {
      change(node);
      std::vector<Value> inputs;
      for (const std::string& name : node.inputs) inputs.push_back(values.at(name));
      values[node.output] = b.node(node.op, node.path, inputs, node.attrs, node.tensors);
    }
    b.output(values.at(bundle.graph().outputs[0]));
    b.set_task(bundle.task());
    b.set_provenance_json(bundle.provenance_json());
    b.write(folder / "changed");
  };
  changed([](Node&) {});
  export_hugging_face(Bundle::open(folder / "changed"), out);
  changed([](Node& node) {
    if (node.path == "blocks.1.ffn.act") node.attrs["kind"] = std::string("relu");
  });
  EXPECT_ERROR(export_hugging_face(Bundle::open(folder / "changed"), folder / "none"),
               Code::unsupported,
               "node 'blocks.1.ffn.act' (activation) is not as a GPT2LMHeadModel");
  EXPECT_FALSE(file_exists(folder / "none"));
}

TEST_F(FolderExport, PackedWeightsNeedAType) {
  write_model(golden("llama"), source);
  import_hugging_face(source, model, {.weights = ImportOptions::Weights::i8_32});
  EXPECT_ERROR(export_hugging_face(Bundle::open(model), out), Code::unsupported,
               "'embed.weight' is i8-32, for which this layout has no type");
  EXPECT_FALSE(file_exists(out));
  EXPECT_ERROR(
      export_hugging_face(Bundle::open(model), out, {.weights = ExportOptions::Weights::q8_0}),
      Code::usage, "--dtype");
  export_hugging_face(Bundle::open(model), out, {.weights = ExportOptions::Weights::bf16});
  EXPECT_EQ(SafetensorsFile::open(out + "/model.safetensors").at("lm_head.weight").dtype,
            DType::bf16);
}

TEST_F(FolderExport, LayersOfOtherWidthsAreRefused) {
  Builder b;
  const auto tensor = [&](const std::string& name, Shape shape) {
    b.tensor(name, shape, testing::golden_values(name, shape, 0.25));
    return std::map<std::string, std::string>{{"weight", name}};
  };
  const Value words = b.input("tokens", {4});
  Value x = b.node("embedding", "words", {words}, {}, tensor("words", {8, 16}));
  for (const int64_t inner : {32, 24}) {
    const std::string p = fmt::format("layer{}.", inner);
    const Value h = b.node("rms_norm", p + "n1", {x}, {}, tensor(p + "norm1.weight", {16}));
    const auto linear = [&](const std::string& name, const Value& from, int64_t out) {
      return b.node("linear", p + name, {from}, {}, tensor(p + name, {out, from.shape.back()}));
    };
    const auto rope = [&](const std::string& name) {
      return b.node("rope", p + name + "r", {linear(name, h, 16)}, {{"heads", int64_t{2}}});
    };
    const Value mixed = b.node("attention", p + "attention",
                               {rope("q"), rope("k"), linear("v", h, 16)}, {{"heads", int64_t{2}}});
    x = b.node("add", p + "a1", {x, linear("o", mixed, 16)});
    const Value z = b.node("rms_norm", p + "n2", {x}, {}, tensor(p + "norm2.weight", {16}));
    const Value gate = b.node("activation", p + "act", {linear("gate", z, inner)},
                              {{"kind", std::string("silu")}});
    x = b.node("add", p + "a2",
               {x, linear("down", b.node("mul", p + "mul", {gate, linear("up", z, inner)}), 16)});
  }
  x = b.node("rms_norm", "norm", {x}, {}, tensor("norm.weight", {16}));
  b.output(b.node("linear", "head", {x}, {}, tensor("head", {8, 16})));
  b.write(model);
  const std::string words_expected = "node 'layer32.up' (linear)";
  EXPECT_ERROR(export_hugging_face(Bundle::open(model), out), Code::unsupported,
               words_expected.c_str());
  EXPECT_ERROR(export_gguf(Bundle::open(model), folder / "x.gguf"), Code::unsupported,
               "its width is 32, that of later layers 24");
}

}  // namespace hf_export_test
}  // namespace sluice::bundle
