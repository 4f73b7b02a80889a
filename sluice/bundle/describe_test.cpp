#include "sluice/bundle/describe.h"

#include <gtest/gtest.h>

#include "sluice/base/json.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/describe_tree.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace describe_test {

using testing::as_bytes;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::raw_file;
using testing::small_network;

TEST(Describe, BundleShowsTaskStepsAndTree) {
  const auto bytes = small_network().bytes();
  const std::string text = describe_text(Bundle::parse(bytes, "m.safetensors", {}));
  EXPECT_THAT(text, HasSubstr("m.safetensors"));
  EXPECT_THAT(text, HasSubstr("classify fashion-mnist"));
  EXPECT_THAT(text, HasSubstr("3: coat, bag, boot"));
  EXPECT_THAT(text, HasSubstr("image 2 x 4 x 4, (pixel / 255 - 0.25) / 0.5"));
  EXPECT_THAT(text, HasSubstr("1. train: epochs 3, test.accuracy 0.875"));
  EXPECT_THAT(text, HasSubstr("2. compact"));
  EXPECT_THAT(text, HasSubstr("├─ block"));
  EXPECT_THAT(text, HasSubstr("│  ├─ conv"));
  EXPECT_THAT(text, HasSubstr("   └─ fc"));
  EXPECT_THAT(text, HasSubstr("conv2d 3x3"));
}

TEST(Describe, DepthCollapsesInnerRows) {
  const auto bytes = small_network().bytes();
  const Bundle bundle = Bundle::parse(bytes, "m", {});
  const std::string one = describe_text(bundle, {.depth = 1});
  EXPECT_THAT(one, HasSubstr("├─ block  4 nodes"));
  EXPECT_THAT(one, Not(HasSubstr("conv2d")));
  const std::string none = describe_text(bundle, {.depth = 0});
  EXPECT_THAT(none, HasSubstr("total"));
  EXPECT_THAT(none, Not(HasSubstr("block ")));
  EXPECT_EQ(describe_json(bundle, {.depth = 1})["tree"][0]["children"].size(), 0u);
}

TEST(Describe, JsonHoldsTheSameNumbers) {
  const auto bytes = small_network().bytes();
  const Json json = describe_json(Bundle::parse(bytes, "m", {}));
  EXPECT_EQ(json["format_version"], 1);
  EXPECT_EQ(json["task"]["labels"].size(), 3u);
  EXPECT_EQ(json["total"]["macs"], 582);
  EXPECT_EQ(json["total"]["params"], 51);
  EXPECT_EQ(json["total"]["bytes"], 220);
  const Json& block = json["tree"][0];
  EXPECT_EQ(block["path"], "block");
  EXPECT_EQ(block["nodes"], 4);
  EXPECT_EQ(block["params"], 42);
  EXPECT_EQ(block["output"], (Shape{2, 4, 4}));
  EXPECT_EQ(block["children"][0]["path"], "block.conv");
  EXPECT_EQ(block["children"][0]["op"], "conv2d");
  EXPECT_EQ(block["children"][0]["zeros"], 1);  // the weight's ramp passes 0
}

TEST(Describe, ASharedTensorCountsOnceInTheTotal) {
  Builder b;
  b.tensor("w", {2, 2}, std::vector<float>{0, 1, -0.0f, 2});
  Value x = b.input("x", {2});
  x = b.node("linear", "a.one", {x}, {}, {{"weight", "w"}});
  x = b.node("linear", "a.two", {x}, {}, {{"weight", "w"}});
  b.output(x);
  const auto bytes = b.bytes();
  const Json json = describe_json(Bundle::parse(bytes, "m", {}));
  EXPECT_EQ(json["tree"][0]["params"], 8);
  EXPECT_EQ(json["total"]["params"], 4);
  EXPECT_EQ(json["total"]["zeros"], 2);
}

TEST(Describe, ANodeMayAlsoBeAFolder) {
  Builder b;
  Value x = b.input("x", {2});
  x = b.node("softmax", "a", {x});
  x = b.node("flatten", "a.b", {x});
  b.output(x);
  const auto bytes = b.bytes();
  const Json tree = describe_json(Bundle::parse(bytes, "m", {}))["tree"];
  ASSERT_EQ(tree.size(), 1u);
  EXPECT_EQ(tree[0]["op"], "softmax");
  EXPECT_EQ(tree[0]["children"][0]["op"], "flatten");
}

TEST(Describe, OrdinarySafetensorsShowTypesSizesAndZeros) {
  const std::string bytes = raw_file(
      R"({"__metadata__":{"format":"pt"},"a.w":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},)"
      R"("a.b":{"dtype":"I8","shape":[4],"data_offsets":[8,12]}})",
      std::string_view("\0\0\0\x80\x01\0\0\x3c\0\x80\0\x01", 12));
  const SafetensorsFile file = SafetensorsFile::parse(as_bytes(bytes), "plain.safetensors");
  const std::string text = describe_text(file);
  EXPECT_THAT(text, HasSubstr("safetensors without a graph"));
  EXPECT_THAT(text, HasSubstr("format = pt"));
  EXPECT_THAT(text, HasSubstr("2 x 2"));
  EXPECT_THAT(text, HasSubstr("50.0 %"));
  const Json json = describe_json(file);
  EXPECT_EQ(json["total"]["params"], 8);
  EXPECT_EQ(json["tree"][0]["zeros"], 4);
  EXPECT_EQ(json["tree"][0]["children"][0]["dtype"], "F16");
  EXPECT_FALSE(describe_json(file, {.depth = -1, .sparsity = false})["total"].contains("zeros"));
}

TEST(Describe, HostileNamesNeitherBreakLinesNorTheStack) {
  std::string deep = "a";
  for (int i = 0; i < 100000; ++i) deep += ".a";
  const std::string bytes =
      raw_file(R"({"x\n\u001b[2J":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"..":)"
               R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]},")" +
               deep + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})");
  const SafetensorsFile file = SafetensorsFile::parse(as_bytes(bytes), "bad\xff\n.safetensors");
  const std::string text = describe_text(file);
  EXPECT_THAT(text, HasSubstr("x\\x0a\\x1b[2J"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_LT(text.size(), 20000u);
  EXPECT_NO_THROW(describe_json(file).dump());
}

TEST(CountZeros, IgnoresTheSignOfFloatsButNotOfIntegers) {
  const auto zeros = [](DType dtype, std::string_view bytes) {
    return count_zeros(
        {"t", dtype, {static_cast<int64_t>(bytes.size()) / dtype_size(dtype)}, as_bytes(bytes)});
  };
  const std::string_view words("\0\0\0\0\0\0\0\x80\0\0\0\0\0\0\0\0", 16);
  EXPECT_EQ(zeros(DType::f32, words), 4);
  EXPECT_EQ(zeros(DType::i32, words), 3);
  EXPECT_EQ(zeros(DType::f64, words), 2);
  EXPECT_EQ(zeros(DType::u64, words), 1);
  EXPECT_EQ(zeros(DType::bf16, words), 8);
  EXPECT_EQ(zeros(DType::i16, words), 7);
  EXPECT_EQ(zeros(DType::f8_e4m3, words), 16);
  EXPECT_EQ(zeros(DType::i8, words), 15);
  EXPECT_EQ(zeros(DType::boolean, words), 15);
}

}  // namespace describe_test
}  // namespace sluice::bundle
