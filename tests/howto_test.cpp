// The commands of docs/howto/ work as written, one page after the other, at tiny size: they see
// configurations of the same names whose networks train in a second.
#if SLUICE_WITH_LAB && SLUICE_WITH_ENGINE
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/import/onnx/testing.h"
#include "sluice/bundle/import/testing.h"
#include "tests/process.h"
#include "tests/tiny_models.h"

namespace sluice::test {
namespace howto_test {

namespace fs = std::filesystem;

std::vector<fs::path> pages() {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(fs::path(SLUICE_SOURCE_DIR) / "docs/howto")) {
    if (entry.path().extension() == ".md") found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

/// The lines of code blocks that begin with "sluice ".
std::vector<std::string> commands(const fs::path& page) {
  std::istringstream lines(read_bytes(page.string()));
  std::vector<std::string> found;
  std::string line;
  bool code = false;
  while (std::getline(lines, line)) {
    if (line.starts_with("```")) code = !code;
    if (code && line.starts_with("sluice ")) found.push_back(line);
  }
  return found;
}

/// Words as a shell would see them; quotes of both kinds, nothing else.
Arguments words(const std::string& command) {
  Arguments result;
  std::string word;
  char quote = 0;
  bool any = false;
  for (const char c : command + " ") {
    if (quote != 0) {
      if (c == quote) {
        quote = 0;
      } else {
        word += c;
      }
    } else if (c == '\'' || c == '"') {
      quote = c;
      any = true;
    } else if (c != ' ') {
      word += c;
    } else if (!word.empty() || any) {
      result.push_back(word);
      word.clear();
      any = false;
    }
  }
  return result;
}

const char* const kTinyMlp = R"(
[data]
name = "blobs"
train_limit = 600
test_limit = 200
[model]
name = "mlp"
hidden = [64, 40]
[train]
steps = 60
batch = 20
)";

/// The sizes of configs/resnet-fashion-nested.toml, of a network that trains in seconds.
const char* const kTinyNested = R"(
[data]
name = "blobs"
train_limit = 600
test_limit = 200
[model]
name = "resnet"
widths = [4, 8, 8]
blocks = 2
[train]
steps = 20
batch = 20
[nest]
widths = [0.25, 0.5, 0.75, 1.0]
depths = [3, 4, 6]
scope = "all"
calibration = 100
)";

/// What docs/howto/train-a-decoder.md trains on, at the size of a test.
void write_tiny_decoder(const TempDirectory& directory) {
  make_directories(directory / "my-texts");
  for (int file = 0; file < 12; ++file) {
    std::string text;
    for (int line = 0; line < 30; ++line) {
      text += "the cat of house " + std::to_string(file * 7 + line) + " sat on the mat and saw " +
              std::to_string(line) + " mice\n";
    }
    write_bytes(directory / ("my-texts/" + std::to_string(file) + ".txt"), text);
  }
  write_bytes(directory / "configs/decoder-tiny.toml", R"(
[data]
text = "my-texts"
held_out = 0.3
[tokenizer]
vocab = 300
[model]
name = "decoder"
layers = 2
width = 32
heads = 2
ffn = 64
context = 32
[train]
steps = 20
batch = 8
log_every = 5
validate_every = 10
[train.optimizer]
kind = "muon"
rate = 5e-3
)");
}

/// The same of configs/decoder-tiny-nested.toml.
void write_tiny_nested_decoder(const TempDirectory& directory) {
  const std::string plain = read_bytes(directory / "configs/decoder-tiny.toml");
  write_bytes(directory / "configs/decoder-tiny-nested.toml",
              plain + "[nest]\nwidths = [0.25, 0.5, 1.0]\ndepths = [1, 2]\n");
}

/// A tiny model of the names in bring-your-model.md: its feed-forward is a multiple of a block
/// wide.
void write_models(const TempDirectory& directory) {
  Json document = read_json_file(std::string(SLUICE_SOURCE_DIR) +
                                 "/tests/golden/huggingface/llama_llama3.json");
  document["config"]["intermediate_size"] = 64;
  for (auto& [name, shape] : document["tensors"].items())
    for (Json& size : shape)
      if (size == 48) size = 64;
  const std::string source = directory / "Llama-3.2-1B", bundle = directory / "bundle";
  bundle::testing::write_model(document, source);
  ASSERT_EQ(sluice({"import", source, "-o", bundle}).exit_code, 0);
  const std::string gguf = directory / "model.gguf";
  ASSERT_EQ(sluice({"export", bundle, "-o", gguf, "--format", "gguf"}).exit_code, 0);
}

/// "net.onnx", a convolution and a linear layer with an open batch.
void write_onnx(const TempDirectory& directory) {
  bundle::onnx::testing::Graph graph;
  graph.input("x", {-1, 3, 224, 224}).reals("w", {2, 3, 1, 1}, {1, 2, 3, -1, 0, 1});
  graph.node("Conv", {"x", "w"}, {"c"}).node("Relu", {"c"}, {"r"});
  graph.node("GlobalAveragePool", {"r"}, {"p"}).node("Flatten", {"p"}, {"f"});
  graph.reals("fc", {2, 2}, {1, 2, 3, 4}).output("y");
  graph.node("Gemm", {"f", "fc"}, {"y"}, {{"transB", int64_t{1}}});
  write_bytes(directory / "net.onnx", graph.model());
}

/// "random", a tiny decoder by the script that the page runs.
void write_random_decoder(const TempDirectory& directory) {
  const std::string command = "python3 '" SLUICE_SOURCE_DIR "/scripts/make-random-decoder.py' '" +
                              (directory / "random") +
                              "' --layers 2 --width 64 --inner 128 --heads 4 --kv-heads 2 "
                              "--vocabulary 400 --context 64 > /dev/null";
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

class Howto : public testing::TestWithParam<fs::path> {};

TEST_P(Howto, EveryCommandWorks) {
  const TempDirectory directory("howto");
  make_directories(directory / "configs");
  write_bytes(directory / "configs/lenet-fashion.toml", kTinyMlp);
  write_bytes(directory / "configs/resnet-fashion-nested.toml", kTinyNested);
  write_tiny_decoder(directory);
  write_tiny_nested_decoder(directory);
  write_tiny_model("qwen3", directory / "Qwen3-0.6B", 2048);
  write_tiny_model("bert", directory / "all-MiniLM-L6-v2");
  write_tiny_retrieval_set(directory / "glosses");
  std::string book;
  for (int i = 0; i < 200; ++i) book += "w" + std::to_string(3 + i * i % 30) + " ";
  write_bytes(directory / "book.txt", book);
  if (GetParam().stem() == "bring-your-model") write_models(directory);
  if (GetParam().stem() == "import-onnx") write_onnx(directory);
  if (GetParam().stem() == "compare-with-llama-cpp") {
    if (std::system("command -v python3 > /dev/null") != 0)
      GTEST_SKIP() << "no python3 for scripts/make-random-decoder.py";
    write_random_decoder(directory);
    ASSERT_FALSE(HasFatalFailure());
  }
  const std::vector<std::string> all = commands(GetParam());
  EXPECT_FALSE(all.empty());
  for (const std::string& command : all) {
    Arguments arguments = words(command);
    arguments.erase(arguments.begin());
    if (arguments.front() == "bench") {
      arguments.insert(arguments.end(), {"--rounds", "1", "--threads", "1"});
    }
    const Finished finished = sluice(arguments, {.directory = directory.path()});
    ASSERT_EQ(finished.exit_code, 0) << command << "\n" << finished.err;
  }
}

INSTANTIATE_TEST_SUITE_P(Pages, Howto, testing::ValuesIn(pages()), [](const auto& page) {
  std::string name = page.param.stem().string();
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace howto_test
}  // namespace sluice::test
#endif
