// Models imported from Hugging Face's files as bricks: the tiny ones of tests/golden/huggingface,
// whose expected numbers the transformers library computed.
#include <cmath>

#include "sluice/base/json.h"
#include "sluice/bundle/import/hf.h"
#include "sluice/bundle/import/testing.h"
#include "sluice/lab/brick/transformer.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace imported_model_test {

using namespace testing;  // NOLINT: test helpers
using bundle::DType;
using bundle::ImportOptions;

struct Imported {
  TempDirectory folder;
  const std::string path = folder / "model.safetensors";
  Json document;
  Model model;

  explicit Imported(const std::string& name, const ImportOptions& options = {},
                    DType dtype = DType::f32)
      : document(read_json_file(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/huggingface/" +
                                name + ".json")) {
    bundle::testing::write_model(document, folder / "source", dtype);
    bundle::import_hugging_face(folder / "source", path, options);
    model = load_model(path);
    model.root->eval();
  }
  at::Tensor ids() const {
    return torch::tensor(document["ids"].get<std::vector<float>>()).unsqueeze(0);
  }
  at::Tensor expected(const char* key, const at::Tensor& like) const {
    return torch::tensor(document[key].get<std::vector<double>>(), at::kDouble).view_as(like);
  }
};

/// Largest difference over the largest number.
double error(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).abs().max() / expected.abs().max()).item<double>();
}

class ImportedModels : public ::testing::TestWithParam<const char*> {};

TEST_P(ImportedModels, AreBricksThatComputeWhatTransformersComputes) {
  const std::string name = GetParam();
  const bool encoder = name == "bert" || name == "roberta";
  ImportOptions options;
  options.block = 8;
  if (encoder) options = {.pooling = "mean", .normalize = true};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Imported imported(name, options, dtype);
    const at::Tensor y = run(imported.model, imported.ids());
    EXPECT_LT(error(y, imported.expected(encoder ? "normalized" : "logits", y)), 2e-6);
    // The description is what bricks say of themselves, and lowering them gives the same graph.
    const auto bundle = bundle::Bundle::open(imported.path);
    EXPECT_EQ(parse_json(bundle.model_json(), "test")["brick"], spec_of(*imported.model.root));
    bundle::Builder builder;
    lower(imported.model, builder);
    ASSERT_EQ(builder.graph().nodes.size(), bundle.graph().nodes.size());
    std::map<std::string, bundle::Node> nodes;
    const auto spelled_out = [](bundle::Node node) {  // a default said or left unsaid
      if (node.op == "attention") node.attrs.try_emplace("kv_heads", node.attrs.at("heads"));
      return node;
    };
    for (const bundle::Node& node : builder.graph().nodes) nodes[node.path] = spelled_out(node);
    for (const bundle::Node& each : bundle.graph().nodes) {
      const bundle::Node node = spelled_out(each);
      ASSERT_TRUE(nodes.contains(node.path)) << node.path;
      EXPECT_EQ(nodes[node.path].op, node.op) << node.path;
      EXPECT_EQ(nodes[node.path].attrs, node.attrs) << node.path;
      for (const auto& [role, tensor] : node.tensors) {
        if (role == "factors") continue;
        EXPECT_EQ(nodes[node.path].tensors[role], tensor);
      }
    }
#if SLUICE_HAS_ENGINE
    EXPECT_LE(engine_error(imported.model, random_input(imported.model, 2, 3)), 1e-4);
#endif
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, ImportedModels,
                         ::testing::Values("llama", "llama_linear", "llama_llama3", "llama_yarn",
                                           "mistral", "qwen2", "qwen3", "gpt2", "bert", "roberta"));

}  // namespace imported_model_test
}  // namespace sluice::lab
