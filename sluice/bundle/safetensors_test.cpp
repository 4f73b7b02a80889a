#include "sluice/bundle/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace safetensors_test {

using testing::as_bytes;
using testing::as_text;
using testing::ramp;
using testing::raw_file;

SafetensorsFile parse(const std::string& bytes, const ReadLimits& limits = {}) {
  return SafetensorsFile::parse(as_bytes(bytes), "x.safetensors", limits);
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

TensorView view(const std::string& name, DType dtype, Shape shape, std::string_view bytes) {
  return {name, dtype, std::move(shape), as_bytes(bytes)};
}

TEST(Safetensors, ReadsTensorsInFileOrderAndMetadata) {
  const std::string bytes =
      raw_file(R"({"b":)" + entry("U8", "[2]", "[4,6]") + R"(,"__metadata__":{"k":"v"},"a":)" +
                   entry("F32", "[1,1]", "[0,4]") + "}   \n ",
               std::string_view("\0\0\x80\x3f\x07\x08", 6));
  const SafetensorsFile file = parse(bytes);
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.tensors()[1].name, "b");
  EXPECT_EQ(file.at("a").shape, (Shape{1, 1}));
  EXPECT_EQ(as_text(file.at("b").bytes), "\x07\x08");
  EXPECT_EQ(file.at("b").elements(), 2);
  EXPECT_EQ(file.metadata().at("k"), "v");
  EXPECT_EQ(file.file_bytes(), bytes.size());
}

TEST(Safetensors, AcceptsNoTensorsScalarsAndEmptyTensors) {
  EXPECT_TRUE(parse(raw_file("{}")).tensors().empty());
  const SafetensorsFile file = parse(raw_file(
      R"({"e":)" + entry("F32", "[0,3]", "[1,1]") + R"(,"s":)" + entry("U8", "[]", "[0,1]") + "}",
      "7"));
  EXPECT_EQ(file.at("s").elements(), 1);
  EXPECT_EQ(file.at("e").elements(), 0);
}

TEST(Safetensors, HostileFilesAreRefusedByName) {
  struct Case {
    const char* name;
    std::string bytes;
    Code code;
    const char* words;
  };
  const auto one = [](const std::string& dtype, const std::string& shape,
                      const std::string& offsets, std::string_view data) {
    return raw_file(R"({"t.w":)" + entry(dtype, shape, offsets) + "}", data);
  };
  const auto two = [](const std::string& first, const std::string& second, std::string_view data) {
    return raw_file(
        R"({"a":)" + entry("U8", "[2]", first) + R"(,"b":)" + entry("U8", "[2]", second) + "}",
        data);
  };
  const std::string nested(100000, '[');
  const std::vector<Case> cases = {
      {"no bytes", "", Code::format, "0 bytes; a safetensors file has at least 8"},
      {"short", "1234567", Code::format, "7 bytes"},
      {"header behind the end", std::string("\x10\0\0\0\0\0\0\0{}", 10), Code::format,
       "header length at byte 0: 16 bytes, the file has 2"},
      {"header over the limit", std::string("\0\0\0\x7f\0\0\0\0{}", 10), Code::limit,
       "header length at byte 0"},
      {"header length of all ones", std::string(8, '\xff') + "{}", Code::limit,
       "18446744073709551615"},
      {"empty header", raw_file(""), Code::format, "expected '{', found nothing"},
      {"spaces", raw_file("   "), Code::format, "expected '{'"},
      {"space before", raw_file(" {}"), Code::format, "expected '{'"},
      {"list", raw_file("[]"), Code::format, "expected '{', found '['"},
      {"gzip", raw_file("\x1f\x8b"), Code::format, "\\x1f"},
      {"cut JSON", raw_file("{\"a"), Code::format, "not valid JSON at byte"},
      {"text behind", raw_file("{} x"), Code::format, "not valid JSON at byte"},
      {"zero bytes as padding", raw_file(std::string_view("{}\0\0", 4)), Code::format,
       "zero byte in the header at byte 10"},
      {"not UTF-8", raw_file("{\"\xff\":1}"), Code::format, "not valid JSON"},
      {"tensor is a number", raw_file(R"({"t":1})"), Code::format,
       "tensor 't': expected an object, found 1"},
      {"tensor is null", raw_file(R"({"t":null})"), Code::format, "expected an object, found null"},
      {"tensor is a list", raw_file(R"({"t":[]})"), Code::format,
       "expected an object, found a list"},
      {"deep nesting", raw_file("{\"t\":" + nested), Code::format,
       "expected an object, found a list"},
      {"nested shape", one("U8", "[[1]]", "[0,1]", "1"), Code::format,
       "field 'shape': expected a whole number, found a list"},
      {"object in tensor", raw_file(R"({"t":{"dtype":{}}})"), Code::format,
       "field 'dtype': expected text, found an object"},
      {"missing dtype", raw_file(R"({"t":{"shape":[],"data_offsets":[0,0]}})"), Code::format,
       "field 'dtype' is not there"},
      {"missing shape", raw_file(R"({"t":{"dtype":"U8","data_offsets":[0,0]}})"), Code::format,
       "field 'shape' is not there"},
      {"missing offsets", raw_file(R"({"t":{"dtype":"U8","shape":[]}})"), Code::format,
       "field 'data_offsets' is not there"},
      {"unknown field", raw_file(R"({"t":{"type":"U8"}})"), Code::format,
       "field 'type': unknown field"},
      {"field twice", raw_file(R"({"t":{"dtype":"U8","dtype":"U8"}})"), Code::format,
       "field 'dtype': the field appears twice"},
      {"tensor twice",
       raw_file(R"({"t":)" + entry("U8", "[1]", "[0,1]") + R"(,"t":)" +
                    entry("U8", "[1]", "[1,2]") + "}",
                "12"),
       Code::format, "tensor 't' appears twice"},
      {"unknown dtype", one("FLOAT", "[1]", "[0,4]", "1234"), Code::format,
       "unknown element type 'FLOAT'"},
      {"unsupported dtype", one("F4", "[2]", "[0,1]", "1"), Code::unsupported, "F4"},
      {"dtype is a number", raw_file(R"({"t":{"dtype":5}})"), Code::format,
       "field 'dtype': expected text, found 5"},
      {"negative size", one("U8", "[-1]", "[0,1]", "1"), Code::format,
       "field 'shape': -1 is not a whole number"},
      {"fraction", one("U8", "[1.0]", "[0,1]", "1"), Code::format, "1.0 is not a whole number"},
      {"exponent", one("U8", "[1e0]", "[0,1]", "1"), Code::format, "1e0 is not a whole number"},
      {"size of 2^63", one("U8", "[9223372036854775808]", "[0,1]", "1"), Code::format,
       "9223372036854775808 is not"},
      {"size of 30 digits", one("U8", "[100000000000000000000000000000]", "[0,1]", "1"),
       Code::format, "is not a whole number"},
      {"text in shape", one("U8", "[\"1\"]", "[0,1]", "1"), Code::format,
       "field 'shape': expected a whole number, found text"},
      {"overflowing shape", one("U8", "[4294967296,4294967296]", "[0,0]", ""), Code::format,
       "does not fit 63 bits"},
      {"overflow by element size", one("F64", "[4611686018427387904]", "[0,0]", ""), Code::format,
       "does not fit"},
      {"overflow hidden by a zero", one("U8", "[4294967296,4294967296,0]", "[0,0]", ""),
       Code::format, "does not fit"},
      {"rank", one("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]", "1"), Code::limit,
       "more than 16 dimensions"},
      {"one offset", one("U8", "[1]", "[0]", "1"), Code::format, "expected 2 numbers, found 1"},
      {"three offsets", one("U8", "[1]", "[0,1,2]", "1"), Code::format,
       "expected 2 numbers, found more"},
      {"negative offset", one("U8", "[1]", "[-1,0]", "1"), Code::format,
       "field 'data_offsets': -1"},
      {"begin behind end", one("U8", "[1]", "[1,0]", "1"), Code::format, "begin 1 is behind end 0"},
      {"end behind the file", one("U8", "[2]", "[0,2]", "1"), Code::format, "the file at byte"},
      {"huge offsets", one("U8", "[1]", "[9223372036854775806,9223372036854775807]", "1"),
       Code::format, "the file at byte"},
      {"size mismatch", one("F32", "[2]", "[0,4]", "1234"), Code::format,
       "takes 8 bytes, data_offsets give 4"},
      {"overlap", two("[0,2]", "[1,3]", "123"), Code::format, "tensor 'b' at byte"},
      {"the same bytes twice", two("[0,2]", "[0,2]", "12"), Code::format, "overlaps tensor 'a'"},
      {"hole between", two("[0,2]", "[3,5]", "12345"), Code::format, "hole of 1 bytes at byte"},
      {"hole before", one("U8", "[1]", "[1,2]", "12"), Code::format, "hole of 1 bytes"},
      {"left over", one("U8", "[1]", "[0,1]", "12"), Code::format, "1 bytes left over at byte"},
      {"data without tensors", raw_file("{}", "1"), Code::format, "left over"},
      {"metadata is text", raw_file(R"({"__metadata__":"x"})"), Code::format,
       "'__metadata__': expected an object"},
      {"metadata value is a number", raw_file(R"({"__metadata__":{"k":1}})"), Code::format,
       "key 'k': expected text, found 1"},
      {"metadata value is an object", raw_file(R"({"__metadata__":{"k":{}}})"), Code::format,
       "expected text, found an object"},
      {"metadata key twice", raw_file(R"({"__metadata__":{"k":"1","k":"2"}})"), Code::format,
       "key 'k': the key appears twice"},
      {"metadata twice", raw_file(R"({"__metadata__":{},"__metadata__":{}})"), Code::format,
       "appears twice"},
      {"line break in a name", raw_file(R"({"a\nb":1})"), Code::format, "tensor 'a\\x0ab'"},
  };
  for (const Case& c : cases) {
    expect_error(
        c.code, c.words, [&] { parse(c.bytes); }, c.name);
    expect_error(
        c.code, "x.safetensors: ", [&] { parse(c.bytes); }, c.name);
  }
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = as_text(testing::small_network().bytes());
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_THROW(parse(whole.substr(0, size)), Error) << size;
  EXPECT_NO_THROW(parse(whole));
}

TEST(Safetensors, LimitsAreTheCallers) {
  const std::string two = raw_file(R"({"a":)" + entry("U8", "[0]", "[0,0]") + R"(,"b":)" +
                                   entry("U8", "[0]", "[0,0]") + "}");
  expect_error(Code::limit, "more than 1 tensors", [&] { parse(two, {.max_tensors = 1}); });
  expect_error(Code::limit, "at most 20", [&] { parse(two, {.max_header_bytes = 20}); });
}

TEST(Safetensors, MissingTensorSuggestsTheNearestName) {
  const std::string bytes = raw_file(R"({"fc.weight":)" + entry("U8", "[0]", "[0,0]") + "}");
  const SafetensorsFile file = parse(bytes);
  EXPECT_EQ(file.find("fc.weigth"), nullptr);
  expect_error(Code::missing, "did you mean 'fc.weight'", [&] { file.at("fc.weigth"); });
}

TEST(TensorView, F32RefusesOtherTypesAndMisalignedData) {
  alignas(8) char data[12] = {};
  EXPECT_EQ(view("t", DType::f32, {2}, {data, 8}).f32().size(), 2u);
  expect_error(Code::dtype, "expected F32, found I32", [&] {
    view("t", DType::i32, {2}, {data, 8}).f32();
  });
  expect_error(Code::format, "multiple of 4", [&] {
    view("t", DType::f32, {2}, {data + 1, 8}).f32();
  });
}

TEST(WriteSafetensors, RoundTripsEveryTypeAndAlignsElements) {
  const std::string data(64, '\x2a');
  std::vector<TensorView> tensors;
  std::map<std::string, std::string> metadata = {{"k\n\"", "v\t界"}, {"empty", ""}};
  for (const char* type : {"U8", "F32", "F64", "BF16", "I8", "U64", "F16", "BOOL", "I16", "I64",
                           "U16", "I32", "U32"}) {
    const DType dtype = *dtype_from_name(type);
    tensors.push_back(view(std::string("t.") + type, dtype, {3, 1},
                           std::string_view(data).substr(0, 3 * dtype_size(dtype))));
  }
  tensors.push_back(view("nothing", DType::f32, {0}, ""));
  const auto bytes = safetensors_bytes(tensors, metadata);
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "x");
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), tensors.size());
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ((8 + length) % 64, 0u);
  for (const TensorView& t : tensors) {
    const TensorView& stored = file.at(t.name);
    EXPECT_EQ(stored.dtype, t.dtype);
    EXPECT_EQ(stored.shape, t.shape);
    EXPECT_EQ(as_text(stored.bytes), as_text(t.bytes));
    EXPECT_EQ((stored.bytes.data() - bytes.data()) % dtype_size(t.dtype), 0) << t.name;
  }
  // Largest elements first, equal sizes as given.
  std::vector<std::string> names;
  for (const TensorView& t : file.tensors()) names.push_back(t.name);
  EXPECT_THAT(
      names, ::testing::ElementsAre("t.F64", "t.U64", "t.I64", "t.F32", "t.I32", "t.U32", "nothing",
                                    "t.BF16", "t.F16", "t.I16", "t.U16", "t.U8", "t.I8", "t.BOOL"));
}

TEST(WriteSafetensors, TensorsOfWholePagesStartAtPages) {
  const std::string data(size_t{1} << 17, '\x2a');
  const std::string_view bytes = data;
  const std::vector<TensorView> tensors = {
      view("odd", DType::u8, {70001}, bytes.substr(0, 70001)),
      view("page", DType::u8, {4096}, bytes.substr(0, 4096)),  // too small to matter
      view("codes", DType::u8, {4, 16384}, bytes.substr(0, 65536)),
      view("scale", DType::f64, {3}, bytes.substr(0, 24)),
      view("wide", DType::f32, {32768}, bytes.substr(0, 131072))};
  const auto written = safetensors_bytes(tensors, {{"k", "v"}});
  const SafetensorsFile file = SafetensorsFile::parse(written, "x");
  std::vector<std::string> names;
  for (const TensorView& t : file.tensors()) names.push_back(t.name);
  EXPECT_THAT(names, ::testing::ElementsAre("wide", "codes", "scale", "odd", "page"));
  for (const char* name : {"wide", "codes"})
    EXPECT_EQ((file.at(name).bytes.data() - written.data()) % 4096, 0) << name;
  for (const TensorView& t : tensors)
    EXPECT_EQ(as_text(file.at(t.name).bytes), as_text(t.bytes)) << t.name;
}

TEST(WriteSafetensors, FileAndMemoryHoldTheSameBytes) {
  const TempDirectory folder;
  const auto values = ramp(100);
  const std::vector<TensorView> tensors = {
      {"a", DType::f32, {10, 10}, std::as_bytes(std::span(values))}};
  write_safetensors(folder / "a.safetensors", tensors, {{"k", "v"}});
  const SafetensorsFile file = SafetensorsFile::open(folder / "a.safetensors");
  EXPECT_EQ(file.at("a").f32()[99], values[99]);
  EXPECT_EQ(read_text_file(folder / "a.safetensors"),
            as_text(safetensors_bytes(tensors, {{"k", "v"}})));
}

TEST(WriteSafetensors, FailureKeepsTheGoodFile) {
  const TempDirectory folder;
  const std::string path = folder / "a.safetensors";
  write_text_file(path, "good");
  const std::vector<TensorView> wrong = {view("a", DType::f32, {2}, "1234")};
  expect_error(Code::shape, "tensor 'a'", [&] { write_safetensors(path, wrong, {}); });
  EXPECT_EQ(read_text_file(path), "good");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(WriteSafetensors, RefusesWhatCouldNotBeReadBack) {
  const auto write = [](std::vector<TensorView> tensors,
                        std::map<std::string, std::string> metadata = {}) {
    safetensors_bytes(tensors, metadata);
  };
  expect_error(Code::usage, "two tensors are called 'a'", [&] {
    write({view("a", DType::u8, {1}, "1"), view("a", DType::u8, {1}, "2")});
  });
  expect_error(Code::usage, "__metadata__",
               [&] { write({view("__metadata__", DType::u8, {1}, "1")}); });
  expect_error(Code::shape, "does not match its 1 bytes",
               [&] { write({view("a", DType::u8, {-1}, "1")}); });
  expect_error(Code::shape, "does not match", [&] {
    write({view("a", DType::u8, {1LL << 40, 1LL << 40}, "1")});
  });
  expect_error(Code::limit, "dimensions",
               [&] { write({view("a", DType::u8, Shape(17, 1), "1")}); });
  expect_error(Code::usage, "UTF-8", [&] { write({view("\xff", DType::u8, {1}, "1")}); });
  expect_error(Code::usage, "UTF-8", [&] { write({}, {{"k", "\xc0"}}); });
}

TEST(SafetensorsFile, OpeningReadsOnlyTheHeader) {
  // A sparse file of 64 GiB: reading its data would take minutes.
  const TempDirectory folder;
  const std::string path = folder / "large.safetensors";
  const uint64_t size = uint64_t{1} << 36;
  const std::string head =
      raw_file(R"({"t":)" + entry("U8", "[68719476736]", "[0,68719476736]") + "}");
  write_text_file(path, head);
  if (::truncate(path.c_str(), static_cast<off_t>(head.size() + size)) != 0)
    GTEST_SKIP() << "no sparse files here";
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.at("t").bytes.size(), size);
}

TEST(SafetensorsFile, CopiesKeepTheMapping) {
  const TempDirectory folder;
  const std::string path = folder / "a.safetensors";
  write_text_file(path, raw_file(R"({"t":)" + entry("U8", "[3]", "[0,3]") + "}", "abc"));
  auto file = std::make_unique<SafetensorsFile>(SafetensorsFile::open(path));
  const SafetensorsFile copy = *file;
  file.reset();
  EXPECT_EQ(as_text(copy.at("t").bytes), "abc");
}

TEST(SafetensorsFile, AbsentFileIsMissing) {
  expect_error(Code::missing, "nothing.safetensors",
               [] { SafetensorsFile::open("/nonexistent/nothing.safetensors"); });
}

}  // namespace safetensors_test
}  // namespace sluice::bundle
