#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/bundle.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace builder_test {

using testing::ramp;
using testing::small_network;

TEST(Builder, NodesGetTheirOutputShapeAndAName) {
  Builder b;
  const Value x = b.input("x", {2, 3});
  const Value y = b.node("flatten", "f", {x});
  EXPECT_EQ(y.shape, Shape{6});
  EXPECT_EQ(y.name, "v0");
  EXPECT_EQ(b.node("softmax", "s", {y}).name, "v1");
}

TEST(Builder, TensorsLieInTheFileAsAdded) {
  const auto bytes = small_network().bytes();
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "x");
  EXPECT_EQ(file.tensors().front().name, "block.norm.running_var");
  EXPECT_EQ(file.tensors().back().name, "head.fc.bias");
}

TEST(Builder, RefusesTensorsThatCannotBe) {
  Builder b;
  b.tensor("w", {2, 2}, ramp(4));
  EXPECT_NO_THROW(b.tensor("w", {2, 2}, ramp(4)));
  expect_error(Code::usage, "another shape or other values", [&] { b.tensor("w", {4}, ramp(4)); });
  expect_error(Code::usage, "another shape or other values", [&] {
    b.tensor("w", {2, 2}, ramp(4, 1));
  });
  expect_error(Code::shape, "takes 16 bytes, 12 were given", [&] {
    b.tensor("v", {2, 2}, ramp(3));
  });
  expect_error(Code::shape, "negative", [&] { b.tensor("v", {-1}, ramp(1)); });
  expect_error(Code::usage, "not a possible name", [&] { b.tensor("", {1}, ramp(1)); });
  expect_error(Code::usage, "not a possible name", [&] { b.tensor("__metadata__", {1}, ramp(1)); });
  expect_error(Code::usage, "UTF-8", [&] { b.tensor("\xff", {1}, ramp(1)); });
  const std::vector<std::byte> four(4);
  expect_error(Code::unsupported, "format 'i8-channel'",
               [&] { b.tensor("q", DType::i8, {4}, four, "i8-channel"); });
  expect_error(Code::dtype, "expected dtype F32, found I8",
               [&] { b.tensor("q", DType::i8, {4}, four); });
  EXPECT_EQ(b.graph().tensors.size(), 1u);
}

TEST(Builder, RefusesNodesThatDoNotFitAndKeepsWhatItHad) {
  Builder b;
  const Value x = b.input("x", {4});
  b.tensor("w", {3, 5}, ramp(15));
  const Value y = b.node("softmax", "a", {x});
  const std::string before = graph_to_json(b.graph());
  expect_error(Code::usage, "the name is taken", [&] { b.input("x", {1}); });
  expect_error(Code::shape, "dimensions must be >= 1", [&] { b.input("z", {0}); });
  expect_error(Code::unsupported, "unknown operator", [&] { b.node("conv9d", "b", {y}); });
  expect_error(Code::usage, "the path is taken", [&] { b.node("softmax", "a", {y}); });
  expect_error(Code::missing, "made by no earlier node", [&] {
    b.node("softmax", "b", {{"foreign", {4}}});
  });
  expect_error(Code::usage, "has shape 4, not 5", [&] { b.node("softmax", "b", {{"x", {5}}}); });
  expect_error(Code::missing, "tensor 'nope'", [&] {
    b.node("linear", "b", {y}, {}, {{"weight", "nope"}});
  });
  expect_error(Code::shape, "node 'b' (linear): weight 'w': expected [O,4], found 3 x 5", [&] {
    b.node("linear", "b", {y}, {}, {{"weight", "w"}});
  });
  expect_error(Code::numeric, "'value'", [&] {
    b.node("threshold", "b", {y}, {{"value", std::numeric_limits<double>::infinity()}});
  });
  expect_error(Code::usage, "no value of this graph", [&] { b.output({"foreign", {4}}); });
  expect_error(Code::usage, "is an input", [&] { b.output(x); });
  EXPECT_EQ(graph_to_json(b.graph()), before);
  b.output(y);
  expect_error(Code::usage, "added before", [&] { b.output(y); });
  EXPECT_NO_THROW(b.bytes());
}

TEST(Builder, InputNamedLikeAnOutputIsExplained) {
  Builder b;
  const Value x = b.input("v0", {4});
  expect_error(Code::usage, "'v0'", [&] { b.node("softmax", "a", {x}); });
}

TEST(Builder, WritingWithoutAnOutputIsRefused) {
  Builder b;
  b.node("softmax", "a", {b.input("x", {4})});
  expect_error(Code::state, "call output()", [&] { b.bytes(); });
}

TEST(Builder, NumbersThatAreNotFiniteAreRefusedByName) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    Builder b = small_network();
    auto values = ramp(5);
    values[3] = bad;
    b.tensor("loose", {5}, values);
    expect_error(Code::numeric, "tensor 'loose': element 3", [&] { b.bytes(); });
  }
}

TEST(Builder, FailedWriteKeepsTheGoodFile) {
  const TempDirectory folder;
  const std::string path = folder / "m.safetensors";
  small_network().write(path);
  const std::string good = read_text_file(path);
  Builder bad = small_network();
  bad.tensor("loose", {1}, std::vector<float>{std::numeric_limits<float>::quiet_NaN()});
  EXPECT_THROW(bad.write(path), Error);
  EXPECT_EQ(read_text_file(path), good);
  EXPECT_NO_THROW(Bundle::open(path));
  expect_error(Code::io, "does not exist",
               [&] { small_network().write(folder / "none/m.safetensors"); });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(Builder, OpenBundleSurvivesBeingOverwritten) {
  const TempDirectory folder;
  const std::string path = folder / "m.safetensors";
  small_network().write(path);
  const Bundle open = Bundle::open(path);
  Builder other;
  other.output(other.node("flatten", "f", {other.input("x", {2})}));
  other.write(path);
  EXPECT_EQ(open.verify(), 8);
}

TEST(Builder, TokenizerLiesBesideTheTensorsOfTheGraphWithAChecksum) {
  const TempDirectory folder;
  const std::string path = folder / "m.safetensors";
  Builder b = small_network();
  Task task;
  task.kind = "generate";
  task.stop_tokens = {2, 5};
  b.set_task(task);
  b.set_tokenizer(R"({"model": "a b c"})");
  b.write(path);
  const Bundle bundle = Bundle::open(path);
  EXPECT_EQ(bundle.tokenizer_json(), R"({"model": "a b c"})");
  EXPECT_EQ(bundle.task().stop_tokens, (std::vector<int64_t>{2, 5}));
  EXPECT_EQ(bundle.graph().tensors.count("tokenizer.json"), 0u);
  EXPECT_EQ(bundle.verify(), 9);
  std::string bytes = read_text_file(path);
  bytes[bytes.find("a b c")] = 'x';
  write_text_file(path, bytes);
  expect_error(Code::format, "tensor 'tokenizer.json': checksum",
               [&] { Bundle::open(path).verify(); });
}

TEST(Builder, ViewsAreWrittenWithoutACopy) {
  std::vector<float> values{1, 2, 3, 4};
  Builder b;
  b.tensor_view("w", DType::f32, {2, 2}, std::as_bytes(std::span(values)));
  b.output(b.node("linear", "l", {b.input("x", {2})}, {}, {{"weight", "w"}}));
  const Builder copy = b;
  const auto bytes = copy.bytes();
  const Bundle bundle = Bundle::parse(bytes, "m", Bundle::Options{});
  EXPECT_EQ(bundle.tensor("w").f32()[3], 4);
  EXPECT_EQ(bundle.verify(), 1);
}

TEST(Builder, DescriptionsThatCouldNotBeReadAreRefused) {
  const auto expect = [](Code code, const char* words, auto change) {
    Builder b = small_network();
    change(b);
    expect_error(code, words, [&] { b.bytes(); });
  };
  expect(Code::format, "model", [](Builder& b) { b.set_model_json("{"); });
  expect(Code::format, "provenance", [](Builder& b) { b.set_provenance_json("{}"); });
  expect(Code::format, "'std'", [](Builder& b) { b.set_task({"classify", "d", {}, 0, 0}); });
  expect(Code::state, "set_tokenizer", [](Builder& b) {
    Task task;
    task.kind = "embed";
    task.tokenizer = "tokenizer.json";
    b.set_task(task);
  });
  expect(Code::format, "stop token -1", [](Builder& b) {
    Task task;
    task.kind = "generate";
    task.stop_tokens = {-1};
    b.set_task(task);
  });
  expect(Code::shape, "1 labels for 3 outputs", [](Builder& b) {
    b.set_task({"classify", "d", {"a"}, 0, 1});
  });
}

TEST(Builder, RenamesNodesAndTensors) {
  Builder builder;
  const Value x = builder.input("x", {2});
  builder.tensor("a.weight", {3, 2}, std::vector<float>{1, 2, 3, 4, 5, 6});
  const Value y = builder.node("linear", "a", {x}, {}, {{"weight", "a.weight"}});
  builder.output(builder.node("activation", "b", {y}, {{"kind", std::string("relu")}}));
  const auto prefixed = [](const std::string& name) { return "new." + name; };
  builder.rename(prefixed, prefixed);
  const std::vector<std::byte> bytes = builder.bytes();
  const Bundle bundle = Bundle::parse(bytes, "test", {});
  EXPECT_EQ(bundle.graph().nodes[0].path, "new.a");
  EXPECT_EQ(bundle.graph().nodes[0].tensors.at("weight"), "new.a.weight");
  EXPECT_EQ(bundle.tensor("new.a.weight").f32()[5], 6);
  EXPECT_EQ(bundle.verify(), 1);
  EXPECT_EQ(builder.stored("new.a.weight").size(), 24u);
  expect_error(Code::missing, "'a.weight' was not added", [&] { builder.stored("a.weight"); });
  const auto same = [](const std::string&) { return std::string("same"); };
  expect_error(Code::usage, "two nodes would be named 'same'",
               [&] { builder.rename(same, prefixed); });
}

}  // namespace builder_test
}  // namespace sluice::bundle
