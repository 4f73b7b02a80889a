// sluice export, and sluice import of what it wrote, as a process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/json.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/import/testing.h"
#include "tests/process.h"

namespace sluice::test {
namespace export_test {

using testing::HasSubstr;
using testing::StartsWith;

class ExportVerb : public testing::Test {
 protected:
  void SetUp() override {
    const std::string golden = std::string(SLUICE_SOURCE_DIR) + "/tests/golden/";
    bundle::testing::write_model(read_json_file(golden + "huggingface/llama_llama3.json"), source);
    ASSERT_EQ(sluice({"import", source, "-o", model}).exit_code, 0);
  }
  TempDirectory directory;
  const std::string source = directory / "tiny", model = directory / "tiny.safetensors";
};

TEST_F(ExportVerb, GgufAndFolderComeBackWhateverTheyAreCalled) {
  const std::string gguf = directory / "model.bin", folder = directory / "folder",
                    again = directory / "again.safetensors";
  const Json told = json_of(sluice({"export", model, "-o", gguf, "--format", "gguf", "--json"}));
  EXPECT_EQ(told["architecture"], "llama");
  EXPECT_EQ(told["tokenizer"], false);
  EXPECT_GT(told["file_bytes"].get<int64_t>(), 10000);
  const Json imported = json_of(sluice({"import", gguf, "-o", again, "--json"}));
  EXPECT_EQ(imported["architecture"], "LlamaForCausalLM");
  const auto graph = [](const std::string& path) {
    return bundle::graph_to_json(bundle::Bundle::open(path).graph());
  };
  EXPECT_EQ(graph(again), graph(model));
  const Finished text = sluice({"export", again, "-o", folder, "--format", "hf"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("LlamaForCausalLM"));
  EXPECT_EQ(sluice({"import", folder, "-o", again}).exit_code, 0);
  EXPECT_EQ(graph(again), graph(model));
}

TEST_F(ExportVerb, FailsWithOneLineAndLeavesNothing) {
  const std::string gguf = directory / "model.gguf";
  const Finished odd = sluice({"export", model, "-o", gguf, "--format", "gguf", "--dtype", "q8_0"});
  EXPECT_EQ(odd.exit_code, 1);
  EXPECT_THAT(odd.err, HasSubstr("sluice: error [unsupported]: " + model));
  EXPECT_THAT(odd.err, HasSubstr("rows of 48 columns; Q8_0 stores blocks of 32"));
  EXPECT_EQ(directory.entries(), (std::vector<std::string>{"tiny", "tiny.safetensors"}));
  const std::string classifier = directory / "classifier.safetensors";
  write_linear_bundle(classifier);
  EXPECT_EQ(sluice({"export", classifier, "-o", gguf, "--format", "gguf"}).exit_code, 1);
  EXPECT_EQ(sluice({"export", model, "-o", gguf}).exit_code, 2);
  EXPECT_EQ(sluice({"export", model, "-o", gguf, "--format", "zip"}).exit_code, 2);
}

}  // namespace export_test
}  // namespace sluice::test
