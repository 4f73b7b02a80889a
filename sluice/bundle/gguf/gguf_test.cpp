// The container and its blocks: a file of the reference's writer (tests/golden/gguf/make.py), our
// own files, and a table of malformed ones.
#include "sluice/bundle/gguf/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/gguf/packed_blocks.h"
#include "sluice/bundle/gguf/testing.h"

namespace sluice::bundle::gguf {
namespace gguf_test {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Raw;

const std::string kGolden = std::string(SLUICE_SOURCE_DIR) + "/tests/golden/gguf/blocks.gguf";

std::vector<float> floats(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

TEST(Gguf, ReadsTheMetadataOfTheReference) {
  const File file = File::open(kGolden);
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.text("general.architecture"), "llama");
  EXPECT_EQ(file.integer("test.u32", 0, 10), 7);
  EXPECT_EQ(file.integer("test.i8", -5, 10), -3);
  EXPECT_EQ(file.integer("test.u64", 0, INT64_MAX), int64_t{1} << 40);
  EXPECT_EQ(file.number("test.f32", 0, 1), 1e-5);  // and not the f32 nearest to it
  EXPECT_EQ(file.number("test.f64", 0, 1), 0.1);
  EXPECT_EQ(file.number("test.u32", 0, 10), 7.0);
  EXPECT_TRUE(file.flag("test.bool"));
  EXPECT_EQ(file.text("test.text"), "Grüße");
  EXPECT_THAT(file.texts("test.texts"), ElementsAre("a", "", "bc"));
  EXPECT_THAT(file.integers("test.integers", -5, 5), ElementsAre(3, -1, 4));
  EXPECT_EQ(file.metadata().at("test.nested").count, 2u);
}

TEST(Gguf, WrongTypesAndRangesAreNamed) {
  const File file = File::open(kGolden);
  EXPECT_ERROR(file.integer("test.none", 0, 1), Code::missing, "key 'test.none'");
  EXPECT_ERROR(file.integer("test.u64", 0, 10), Code::config, "from 0 to 10, found 1099511627776");
  EXPECT_ERROR(file.integer("test.text", 0, 10), Code::config, "found 'Grüße'");
  EXPECT_ERROR(file.integer("test.texts", 0, 10), Code::config, "found an array of 3 text");
  EXPECT_ERROR(file.number("test.bool", 0, 1), Code::config, "found true");
  EXPECT_ERROR(file.flag("test.u32"), Code::config, "expected true or false, found 7");
  EXPECT_ERROR(file.text("test.f32"), Code::config, "expected text, found");
  EXPECT_ERROR(file.texts("test.integers"), Code::config, "expected an array of texts");
  EXPECT_ERROR(file.integers("test.integers", 0, 9), Code::config, "entry 1");
  EXPECT_ERROR(file.numbers("test.integers"), Code::config, "expected an array of f32");
  EXPECT_ERROR(file.integers("test.nested", 0, 9), Code::config, "entry 0");
}

TEST(Gguf, BlocksStandForTheNumbersOfTheReference) {
  const File file = File::open(kGolden);
  for (const char* name : {"F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"}) {
    const Tensor& tensor = *file.find_tensor(name);
    EXPECT_EQ(type_name(tensor.type), name);
    EXPECT_EQ(tensor.shape, (Shape{3, 512}));
    std::vector<float> values(3 * 512);
    dequantize(tensor.type, tensor.bytes, values);
    EXPECT_EQ(values, floats(file.find_tensor(std::string(name) + ".f32")->bytes)) << name;
  }
}

TEST(Gguf, PackedBlocksGoOverAndBackWithoutLoss) {
  const File file = File::open(kGolden);
  for (const auto& [name, format] : {std::pair{"Q8_0", Format::i8_group},
                                     {"Q4_0", Format::i4_group},
                                     {"Q4_1", Format::i4_group_min},
                                     {"BF16", Format::bf16}}) {
    const Tensor& tensor = *file.find_tensor(name);
    ASSERT_EQ(format_of(tensor.type), format);
    EXPECT_EQ(type_of(format), tensor.type);
    const auto stored = from_blocks(tensor.type, tensor.bytes, 3, 512);
    ASSERT_TRUE(stored);
    const PackedMatrix matrix = view_packed(format, 3, 512, *stored, name);
    std::vector<float> values(3 * 512);
    unpack(matrix, values);
    EXPECT_EQ(values, floats(file.find_tensor(std::string(name) + ".f32")->bytes)) << name;
    EXPECT_TRUE(std::ranges::equal(to_blocks(matrix), tensor.bytes)) << name;
  }
}

TEST(Gguf, TheCodeThatI8LacksIsSeen) {
  std::vector<std::byte> block(34, std::byte{1});
  EXPECT_TRUE(from_blocks(kQ8_0, block, 1, 32));
  block[20] = std::byte{0x80};
  EXPECT_FALSE(from_blocks(kQ8_0, block, 1, 32));
}

TEST(Gguf, WhatIsWrittenIsRead) {
  const std::vector<float> a{1, 2, 3, 4, 5, 6}, b{7};
  const std::vector<std::string> texts{"x", "", "yz"};
  const std::vector<int32_t> numbers{-1, 5};
  Writer writer;
  writer.set("general.architecture", std::string_view("llama"));
  writer.set("n", uint32_t{3});
  writer.set("x", 0.5f);
  writer.set("yes", true);
  writer.set("texts", std::span<const std::string>(texts));
  writer.set("floats", std::span<const float>(a));
  writer.set("numbers", std::span<const int32_t>(numbers));
  writer.tensor("a", kF32, {2, 3}, std::as_bytes(std::span(a)));
  writer.tensor("b", kF32, {1}, std::as_bytes(std::span(b)));
  const TempDirectory folder;
  writer.write(folder / "x.gguf");
  const File file = File::open(folder / "x.gguf");
  EXPECT_EQ(file.integer("n", 0, 9), 3);
  EXPECT_EQ(file.number("x", 0, 9), 0.5);
  EXPECT_TRUE(file.flag("yes"));
  EXPECT_EQ(file.texts("texts"), texts);
  EXPECT_EQ(file.numbers("floats"), a);
  EXPECT_THAT(file.integers("numbers", -9, 9), ElementsAre(-1, 5));
  EXPECT_EQ(file.find_tensor("a")->shape, (Shape{2, 3}));
  EXPECT_EQ(floats(file.find_tensor("a")->bytes), a);
  EXPECT_EQ(floats(file.find_tensor("b")->bytes), b);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.find_tensor("b")->bytes.data()) % 32, 0u);
  const auto bytes = writer.bytes();
  EXPECT_EQ(File::parse(bytes, "memory").tensors().size(), 2u);
}

TEST(Gguf, ATypeThatIsNotReadStillHasItsPlace) {
  Raw raw;
  raw.head(1, 0).tensor("t", {256}, 13, 0).pad().zeros(176);
  const File file = File::parse(raw.view(), "memory");
  EXPECT_EQ(find_type(file.tensors()[0].type), nullptr);
  EXPECT_EQ(type_name(13), "Q5_K");
  EXPECT_EQ(type_name(7), "Q5_1");
  EXPECT_EQ(type_name(10), "Q2_K");
  EXPECT_EQ(type_name(77), "type 77");
}

struct Broken {
  const char* name;
  std::function<void(Raw&)> make;
  Code code;
  const char* words;
};

void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }

Raw& alignment(Raw& raw, uint32_t value) {
  return raw.head(1, 1).key("general.alignment", ValueType::u32).put(value);
}

const Broken kBroken[] = {
    {"Empty", [](Raw&) {}, Code::format, "does not begin with the letters GGUF"},
    {"OtherMagic", [](Raw& r) { r.bytes = "GGML0123456789"; }, Code::format, "letters GGUF"},
    {"OnlyMagic", [](Raw& r) { r.bytes = "GGUF"; }, Code::format, "version at byte 4: 4 bytes"},
    {"VersionOne", [](Raw& r) { r.head(0, 0, 1); }, Code::unsupported, "expected 2 or 3, found 1"},
    {"BigEndian", [](Raw& r) { r.head(0, 0, 0x03000000); }, Code::unsupported, "big-endian"},
    {"NoCounts", [](Raw& r) { r.bytes = std::string("GGUF\3\0\0\0\1", 9); }, Code::format,
     "count of tensors at byte 8"},
    {"HugeTensorCount", [](Raw& r) { r.head(uint64_t{1} << 63, 0); }, Code::limit,
     "count of tensors at byte 8: 9223372036854775808"},
    {"HugeKeyCount", [](Raw& r) { r.head(0, UINT64_MAX); }, Code::limit, "count of keys"},
    {"MoreTensorsThanBytes", [](Raw& r) { r.head(9, 0).zeros(100); }, Code::format,
     "9, which do not fit"},
    {"MoreKeysThanBytes", [](Raw& r) { r.head(0, 60000).zeros(100); }, Code::format,
     "60000, which do not fit"},
    {"KeyLengthWraps", [](Raw& r) { r.head(0, 1).put(UINT64_MAX - 3).zeros(64); }, Code::format,
     "key at byte 32: 18446744073709551612 bytes"},
    {"EmptyKey", [](Raw& r) { r.head(0, 1).key("", ValueType::u32).zeros(64); }, Code::format,
     "key at byte 24: expected 1 to 1024 bytes"},
    {"ControlInKey", [](Raw& r) { r.head(0, 1).key("a\nb", ValueType::u32).zeros(64); },
     Code::format, "plain text, found 'a\\x0ab'"},
    {"LongKey", [](Raw& r) { r.head(0, 1).key(std::string(2000, 'k'), ValueType::u32).zeros(64); },
     Code::limit, "(2000 bytes)"},
    {"KeyTwice",
     [](Raw& r) { r.head(0, 2).key("k", ValueType::u32).put(1u).key("k", ValueType::u32).put(2u); },
     Code::format, "key 'k' at byte 41: it is there twice"},
    {"ValueOfNoType", [](Raw& r) { r.head(0, 1).key("k", ValueType(13)).zeros(64); }, Code::format,
     "key 'k': type at byte 33: expected a type from 0 to 12, found 13"},
    {"ValueCutOff", [](Raw& r) { r.head(0, 1).key("key", ValueType::u64).put(uint32_t{0}); },
     Code::format, "key 'key' at byte 39: 8 bytes, the file has 4 left"},
    {"BoolOfTwo", [](Raw& r) { r.head(0, 1).key("k", ValueType::boolean).put(uint8_t{2}); },
     Code::format, "expected a bool, 0 or 1, found 2"},
    {"TextLengthWraps",
     [](Raw& r) { r.head(0, 1).key("k", ValueType::text).put(UINT64_MAX).zeros(8); }, Code::format,
     "key 'k' at byte 45: 18446744073709551615 bytes"},
    {"ArrayCountWraps",
     [](Raw& r) {
       r.head(0, 1).key("k", ValueType::array).put(10u).put(uint64_t{1} << 61).zeros(64);
     },
     Code::format, "key 'k': count"},
    {"ArrayOfTextsTooLong",
     [](Raw& r) { r.head(0, 1).key("k", ValueType::array).put(8u).put(uint64_t{9}).zeros(64); },
     Code::format, "9, which do not fit into the 64 bytes"},
    {"ArrayOfNoType",
     [](Raw& r) { r.head(0, 1).key("k", ValueType::array).put(99u).put(uint64_t{0}); },
     Code::format, "type of its elements"},
    {"ArraysNestDeep",
     [](Raw& r) {
       r.head(0, 1).key("k", ValueType::array);
       for (int i = 0; i < 2000; ++i) r.put(9u).put(uint64_t{1});
       r.zeros(64);
     },
     Code::limit, "arrays nest deeper than 4"},
    {"AlignmentZero", [](Raw& r) { alignment(r, 0).tensor("t", {1}, 0, 0).pad().zeros(4); },
     Code::config, "key 'general.alignment': expected an integer from 1"},
    {"AlignmentOdd", [](Raw& r) { alignment(r, 48).tensor("t", {1}, 0, 0).pad().zeros(4); },
     Code::config, "expected a power of two, found 48"},
    {"AlignmentHuge",
     [](Raw& r) { alignment(r, 0x80000000u).tensor("t", {1}, 0, 0).pad().zeros(4); }, Code::config,
     "found 2147483648"},
    {"AlignmentOfText",
     [](Raw& r) { r.head(1, 1).key("general.alignment", ValueType::text).text("32").zeros(99); },
     Code::config, "found '32'"},
    {"NoDimensions", [](Raw& r) { r.head(1, 0).tensor("t", {}, 0, 0).zeros(64); }, Code::format,
     "tensor 't': expected 1 to 4 dimensions, found 0"},
    {"FiveDimensions",
     [](Raw& r) {
       r.head(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).zeros(64);
     },
     Code::format, "found 5"},
    {"ZeroDimension",
     [](Raw& r) {
       r.head(1, 0).tensor("t", {4, 0}, 0, 0).zeros(64);
     },
     Code::format, "dimension 1: expected a size from 1 to 2^63-1, found 0"},
    {"NegativeDimension", [](Raw& r) { r.head(1, 0).tensor("t", {UINT64_MAX}, 0, 0).zeros(64); },
     Code::format, "found 18446744073709551615"},
    {"SizesWrap",
     [](Raw& r) {
       r.head(1, 0).tensor("t", {uint64_t{1} << 31, uint64_t{1} << 31, 4}, 0, 0).zeros(64);
     },
     Code::format, "too large for any file"},
    {"RowsOfHalfBlocks",
     [](Raw& r) {
       r.head(1, 0).tensor("t", {48, 2}, kQ8_0, 0).zeros(200);
     },
     Code::format, "rows of 48 columns; Q8_0 stores blocks of 32"},
    {"OffsetBetween", [](Raw& r) { r.head(1, 0).tensor("t", {1}, 0, 4).pad().zeros(64); },
     Code::format, "offset 4 is no multiple of the alignment, 32"},
    {"OffsetBehindTheEnd", [](Raw& r) { r.head(1, 0).tensor("t", {1}, 0, 4096).pad().zeros(64); },
     Code::format, "4 bytes at offset 4096 leave the file"},
    {"OffsetWraps",
     [](Raw& r) { r.head(1, 0).tensor("t", {1}, 0, UINT64_MAX - 31).pad().zeros(64); },
     Code::format, "leave the file"},
    {"DataCutOff", [](Raw& r) { r.head(1, 0).tensor("t", {64}, 0, 0).pad().zeros(255); },
     Code::format, "256 bytes at offset 0 leave the file, which has 255"},
    {"NoDataAtAll", [](Raw& r) { r.head(1, 0).tensor("t", {64}, 0, 0); }, Code::format,
     "which has 0 for tensors"},
    {"TensorTwice",
     [](Raw& r) { r.head(2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 32).pad().zeros(64); },
     Code::format, "tensor 't': it is there twice"},
    {"TensorsOverlap",
     [](Raw& r) { r.head(2, 0).tensor("a", {16}, 0, 0).tensor("b", {1}, 0, 32).pad().zeros(64); },
     Code::format, "tensor 'b' at offset 32 overlaps tensor 'a', 64 bytes at 0"},
};

class Malformed : public ::testing::TestWithParam<Broken> {};

TEST_P(Malformed, IsNamed) {
  Raw raw;
  GetParam().make(raw);
  const auto error = error_of([&] { File::parse(raw.view(), "bad.gguf"); });
  ASSERT_TRUE(error);
  EXPECT_EQ(code_name(error->code()), code_name(GetParam().code)) << error->what();
  EXPECT_THAT(error->what(), HasSubstr(GetParam().words));
  EXPECT_THAT(error->what(), HasSubstr("bad.gguf"));
}

INSTANTIATE_TEST_SUITE_P(Files, Malformed, ::testing::ValuesIn(kBroken),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace gguf_test
}  // namespace sluice::bundle::gguf
