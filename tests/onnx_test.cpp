// sluice import of ONNX files, and what runs them, as a process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/json.h"
#include "sluice/bundle/import/onnx/testing.h"
#include "tests/process.h"

namespace sluice::test {
namespace onnx_test {

using bundle::onnx::testing::Graph;
using testing::HasSubstr;
using testing::StartsWith;

/// Reads columns of pixels: bright is the first character, dark the second, grey none.
std::string reader() {
  Graph graph;
  graph.input("x", {-1, 1, 4, -1}).reals("w", {1, 3}, {0, 1, -1}).integers("s", {3}, {0, -1, 1});
  graph.node("ReduceMean", {"x"}, {"m"}, {{"axes", std::vector<int64_t>{2}}});
  graph.node("Reshape", {"m", "s"}, {"r"}).node("MatMul", {"r", "w"}, {"y"}).output("y");
  return graph.model();
}

class OnnxVerb : public testing::Test {
 protected:
  void SetUp() override {
    write_bytes(source, reader());
    write_bytes(directory / "labels.txt", "a\nb\n");
    write_bytes(directory / "line.pgm",
                "P2\n6 4\n255\n255 255 0 0 255 255\n255 255 0 0 255 255\n255 255 0 0 255 255\n"
                "255 255 0 0 255 255\n");
  }
  Arguments import(std::vector<std::string> more) const {
    Arguments arguments{"import", source, "-o", model, "--input", "x=1x1x4x8"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  TempDirectory directory;
  const std::string source = directory / "net.onnx", model = directory / "net.safetensors";
};

TEST_F(OnnxVerb, SaysWhatItMade) {
  const Json json = json_of(sluice(import({"--json"})));
  EXPECT_EQ(json["opset"], 13);
  EXPECT_EQ(json["outputs"][0]["shape"], Json::array({8, 3}));
  EXPECT_EQ(json["operators"]["linear"], 1);
  const Finished text = sluice(import({}));
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("x (1 x 4 x 8)"));
}

TEST_F(OnnxVerb, NeedsSizesThatFit) {
  const Finished open = sluice({"import", source, "-o", model});
  EXPECT_EQ(open.exit_code, 2);
  EXPECT_THAT(open.err, HasSubstr("--input x="));
  const Finished wrong = sluice({"import", source, "-o", model, "--input", "x=1x2x4x8"});
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_THAT(wrong.err, StartsWith("sluice: error [shape]: " + source));
  for (const char* typed : {"x", "x=", "x=1xax3", "x=0"})
    EXPECT_EQ(sluice({"import", source, "-o", model, "--input", typed}).exit_code, 2) << typed;
  EXPECT_EQ(directory.entries(), (std::vector<std::string>{"labels.txt", "line.pgm", "net.onnx"}));
}

#if SLUICE_WITH_ENGINE
TEST_F(OnnxVerb, ReadsALineOfText) {
  const std::string labels = directory / "labels.txt", line = directory / "line.pgm";
  const Finished made =
      sluice(import({"--task", "read", "--labels", labels, "--mean", "0.5", "--std", "0.5"}));
  ASSERT_EQ(made.exit_code, 0) << made.err;
  const Finished read = sluice({"run", model, line});
  EXPECT_EQ(read.out, "aba\n") << read.err;
  const Json json = json_of(sluice({"run", model, line, "--json"}));
  EXPECT_EQ(json["results"][0]["text"], "aba");
  const Finished few = sluice(import({"--task", "read", "--labels", line}));
  EXPECT_EQ(few.exit_code, 1);
  EXPECT_THAT(few.err, HasSubstr("labels for 3 classes"));
}
#endif

}  // namespace onnx_test
}  // namespace sluice::test
