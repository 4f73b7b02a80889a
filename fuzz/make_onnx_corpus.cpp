// Writes the seeds that onnx_fuzz starts from, always the same: small valid models of each kind of
// lowering.
#include <cstdio>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/bundle/import/onnx/testing.h"

using namespace sluice;
using namespace sluice::bundle::onnx;
using sluice::bundle::onnx::testing::Graph;

namespace {

std::vector<float> some(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = 0.25f * static_cast<float>(i % 7) - 0.5f;
  return values;
}

using Ints = std::vector<int64_t>;

std::string convolutions() {
  Graph g;
  g.input("x", {-1, 2, 6, 6}).reals("w", {2, 2, 3, 3}, some(36)).reals("b", {2}, some(2));
  g.node("Conv", {"x", "w", "b"}, {"c"}, {{"pads", Ints{1, 1, 1, 1}}, {"strides", Ints{2, 2}}});
  g.node("MaxPool", {"c"}, {"m"}, {{"kernel_shape", Ints{2, 2}}, {"ceil_mode", int64_t{1}}});
  g.reals("s", {1, 2, 1, 1}, some(2))
      .node("Mul", {"m", "s"}, {"n"})
      .node("HardSigmoid", {"n"}, {"h"});
  g.node("ConvTranspose", {"h", "w"}, {"t"}, {{"auto_pad", std::string("SAME_UPPER")}});
  g.node("GlobalAveragePool", {"t"}, {"p"}).node("Flatten", {"p"}, {"y"}).output("y");
  return g.model(11);
}

std::string shapes() {
  Graph g;
  g.input("x", {1, 6}).integers("i", {1}, {1}).integers("two", {1}, {2}).integers("m", {1}, {-1});
  g.node("Shape", {"x"}, {"s"}).node("Gather", {"s", "i"}, {"w"}).node("Div", {"w", "two"}, {"h"});
  g.node("Concat", {"two", "h"}, {"t"}, {{"axis", int64_t{0}}}).node("Reshape", {"x", "t"}, {"r"});
  g.node("Slice", {"r", "m", "two", "i", "m"}, {"c"}).node("Transpose", {"c"}, {"u"});
  g.integers("e", {2}, {2, 2}).node("Tile", {"u", "e"}, {"v"});
  g.node("Unsqueeze", {"v", "two"}, {"y"}).output("y");
  return g.model(13);
}

std::string recurrent(const char* op, int64_t gates) {
  Graph g;
  g.input("x", {3, 1, 2}).reals("w", {1, 2 * gates, 2}, some(size_t(4 * gates)));
  g.reals("r", {1, 2 * gates, 2}, some(size_t(4 * gates)));
  g.node(op, {"x", "w", "r"}, {"y", "h"}, {{"hidden_size", int64_t{2}}}).output("y").output("h");
  return g.model(14);
}

std::string attention() {
  Graph g;
  g.input("x", {1, 3, 4}).reals("w", {4, 4}, some(16)).reals("mask", {3, 3}, some(9));
  g.node("MatMul", {"x", "w"}, {"q"}).node("Transpose", {"x"}, {"k"}, {{"perm", Ints{0, 2, 1}}});
  g.node("MatMul", {"q", "k"}, {"s"}).node("Add", {"s", "mask"}, {"m"});
  g.node("Softmax", {"m"}, {"p"}).node("MatMul", {"p", "x"}, {"a"});
  g.node("ReduceMean", {"a"}, {"r"}, {{"axes", Ints{-1}}}).node("Sub", {"a", "r"}, {"d"});
  g.node("Where", {"d", "a", "d"}, {"y"}).output("y");
  return g.model(13);
}

std::string resize() {
  Graph g;
  g.input("x", {1, 1, 2, 3}).reals("none", {0}, {}).reals("by", {4}, {1, 1, 2, 1.5f});
  g.node("Resize", {"x", "none", "by"}, {"r"}, {{"mode", std::string("linear")}});
  g.integers("pads", {8}, {0, 0, 1, 1, 0, 0, 0, 1});
  g.node("Pad", {"r", "pads"}, {"y"}, {{"mode", std::string("reflect")}}).output("y");
  return g.model(13);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 2) fail(Code::usage, "expected one argument, the folder fuzz/corpus");
    const std::string folder = std::string(argv[1]) + "/onnx";
    make_directories(folder);
    const auto seed = [&](const char* name, const std::string& bytes) {
      write_text_file(folder + "/" + name, bytes);
    };
    seed("convolutions", convolutions());
    seed("shapes", shapes());
    seed("lstm", recurrent("LSTM", 4));
    seed("gru", recurrent("GRU", 3));
    seed("attention", attention());
    seed("resize", resize());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make_onnx_corpus: %s\n", error.what());
    return 1;
  }
}
