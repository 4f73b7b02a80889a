#include "sluice/bundle/bundle.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace bundle_test {

using testing::as_bytes;
using testing::as_text;
using testing::ramp;
using testing::small_network;

Bundle parse(const std::string& bytes, bool verify = false) {
  return Bundle::parse(as_bytes(bytes), "x.safetensors",
                       {.verify_checksums = verify, .limits = {}});
}

// The small network's file with other metadata.
std::string with_metadata(const std::map<std::string, std::string>& changes,
                          const char* removed = "") {
  const auto bytes = small_network().bytes();
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "x");
  auto metadata = file.metadata();
  for (const auto& [key, value] : changes) metadata[key] = value;
  metadata.erase(removed);
  return as_text(safetensors_bytes(file.tensors(), metadata));
}

TEST(Bundle, RoundTripsThroughAFile) {
  const TempDirectory folder;
  const Builder builder = small_network();
  builder.write(folder / "m.safetensors");
  const Bundle bundle =
      Bundle::open(folder / "m.safetensors", {.verify_checksums = true, .limits = {}});
  EXPECT_EQ(bundle.path(), folder / "m.safetensors");
  EXPECT_EQ(bundle.version(), 1);
  EXPECT_EQ(graph_to_json(bundle.graph()), graph_to_json(builder.graph()));
  EXPECT_EQ(bundle.info().total.params, 51);
  EXPECT_EQ(bundle.task().kind, "classify");
  EXPECT_EQ(bundle.task().data, "fashion-mnist");
  EXPECT_THAT(bundle.task().labels, ::testing::ElementsAre("coat", "bag", "boot"));
  EXPECT_EQ(bundle.task().mean, 0.25);
  EXPECT_EQ(bundle.task().std, 0.5);
  EXPECT_EQ(bundle.model_json(), R"({"type":"resnet","channels":[2]})");
  EXPECT_THAT(bundle.provenance_json(), ::testing::HasSubstr("0.875"));
  EXPECT_THAT(bundle.tensor("head.fc.weight").f32(), ::testing::ElementsAreArray(ramp(6)));
  EXPECT_EQ(bundle.verify(), 8);
  EXPECT_EQ(read_text_file(folder / "m.safetensors"), as_text(builder.bytes()));
}

TEST(Bundle, OptionalPartsMayBeAbsent) {
  Builder b;
  b.output(b.node("flatten", "f", {b.input("x", {2, 3})}));
  const auto bytes = b.bytes();
  const Bundle bundle = Bundle::parse(bytes, "x", {});
  EXPECT_EQ(bundle.task().kind, "");
  EXPECT_EQ(bundle.model_json(), "");
  EXPECT_EQ(bundle.provenance_json(), "[]");
  EXPECT_EQ(bundle.verify(), 0);
}

TEST(Bundle, CopiesShareAndOutliveTheOriginal) {
  const TempDirectory folder;
  small_network().write(folder / "m.safetensors");
  auto bundle = std::make_unique<Bundle>(Bundle::open(folder / "m.safetensors"));
  const Bundle copy = *bundle;
  bundle.reset();
  EXPECT_EQ(copy.verify(), 8);
}

TEST(Bundle, EveryFlippedDataByteIsFoundByName) {
  const std::string good = as_text(small_network().bytes());
  const Bundle bundle = parse(good);
  uint64_t length = 0;
  std::memcpy(&length, good.data(), 8);
  for (size_t at = 8 + length; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] ^= 1;
    expect_error(Code::format, "checksum", [&] { parse(bad).verify(); });
    expect_error(Code::format, "tensor '", [&] { parse(bad, true); });
  }
}

TEST(Bundle, NoFlippedHeaderByteGetsPastAsAnotherException) {
  const std::string good = as_text(small_network().bytes());
  for (size_t at = 0; at < good.size(); ++at) {
    for (const char flip : {'\x01', '\x20', '\x80'}) {
      std::string bad = good;
      bad[at] ^= flip;
      try {
        parse(bad).verify();
      } catch (const Error& error) {
        EXPECT_NE(error.code(), Code::internal) << error.what();
      }
    }
  }
}

TEST(Bundle, EveryTruncationIsRefused) {
  const TempDirectory folder;
  const std::string good = as_text(small_network().bytes());
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_THROW(parse(good.substr(0, size)), Error) << size;
  write_text_file(folder / "m.safetensors", good.substr(0, good.size() / 2));
  expect_error(Code::format, "truncated", [&] { Bundle::open(folder / "m.safetensors"); });
}

TEST(Bundle, PlainSafetensorsHasNoGraph) {
  expect_error(Code::missing, "an ordinary safetensors file",
               [] { parse(with_metadata({}, "sluice.graph")); });
  EXPECT_FALSE(is_bundle(SafetensorsFile::parse(as_bytes(testing::raw_file("{}")), "x")));
}

TEST(Bundle, RefusesMetadataThatIsWrong) {
  struct Case {
    const char *key, *value;
    Code code;
    const char* words;
  };
  const std::vector<Case> cases = {
      {"sluice.version", "2", Code::unsupported, "bundle format 2; this Sluice reads up to 1"},
      {"sluice.version", "0", Code::format, "found '0'"},
      {"sluice.version", "-1", Code::format, "found '-1'"},
      {"sluice.version", "1.0", Code::format, "expected a number"},
      {"sluice.version", "", Code::format, "expected a number"},
      {"sluice.version", "99999999999999999999", Code::format, "expected a number"},
      {"sluice.graph", "", Code::format, "x.safetensors: graph"},
      {"sluice.graph", "{}", Code::format, "key 'version' is not there"},
      {"sluice.task", "[]", Code::format, "task: expected an object"},
      {"sluice.task", "{}", Code::format, "key 'kind'"},
      {"sluice.task", R"({"kind":"classify","std":0})", Code::format, "'std' is 0"},
      {"sluice.task", R"({"kind":"classify","std":-1})", Code::format, "'std' is -1"},
      {"sluice.task", R"({"kind":"classify","std":1e999})", Code::format, "task"},
      {"sluice.task", R"({"kind":"classify","mean":"0"})", Code::format,
       "key 'mean': expected a number"},
      {"sluice.task", R"({"kind":"classify","labels":"a"})", Code::format,
       "key 'labels': expected a list"},
      {"sluice.task", R"({"kind":"classify","labels":[1,2,3]})", Code::format,
       "key 'labels': expected a list of texts"},
      {"sluice.task", R"({"kind":"classify","labels":["a","b"]})", Code::shape,
       "2 labels for 3 outputs"},
      {"sluice.task", R"({"kind":"classify","labels":["a","b","c\u001b[2J"]})", Code::format,
       "not plain text"},
      {"sluice.task", R"({"kind":"generate","stop_tokens":3})", Code::format, "a list of integers"},
      {"sluice.task", R"({"kind":"generate","stop_tokens":[1.5]})", Code::format,
       "a list of integers"},
      {"sluice.task", R"({"kind":"generate","stop_tokens":[-2]})", Code::format, "stop token -2"},
      {"sluice.task", R"({"kind":"generate","stop_tokens":[18446744073709551615]})", Code::format,
       "stop token"},
      {"sluice.task", R"({"kind":"embed","tokenizer":"x"})", Code::format, "expected an object"},
      {"sluice.task", R"({"kind":"embed","tokenizer":{}})", Code::format, "'tokenizer.tensor'"},
      {"sluice.task", R"({"kind":"embed","tokenizer":{"tensor":1}})", Code::format,
       "'tokenizer.tensor': expected text"},
      {"sluice.task", R"({"kind":"embed","tokenizer":{"tensor":"t","xxh64":"12"}})", Code::format,
       "16 hexadecimal digits"},
      {"sluice.task", R"({"kind":"embed","tokenizer":{"tensor":"t","size":1}})", Code::format,
       "unknown key 'size'"},
      {"sluice.task", R"({"kind":"embed","tokenizer":{"tensor":"nothing"}})", Code::missing,
       "nothing"},
      {"sluice.task", R"({"kind":"embed","tokenizer":{"tensor":"head.fc.weight"}})", Code::format,
       "a tensor of the graph"},
      {"sluice.task", R"({"kind":"classify","colour":1})", Code::format, "unknown key 'colour'"},
      {"sluice.sizes", "{}", Code::format, "sizes: expected a list"},
      {"sluice.sizes", "[3]", Code::format, "entry 0: expected an object"},
      {"sluice.sizes", "[]", Code::shape, "0 entries; the graph has 1 sizes"},
      {"sluice.sizes", R"([{"name":"a","macs":1.5}])", Code::format, "key 'macs'"},
      {"sluice.sizes", R"([{"name":"a","speed":1}])", Code::format, "key 'speed'"},
      {"sluice.sizes", R"([{"name":"a","quality":{"x":"y"}}])", Code::format, "quality 'x'"},
      {"sluice.sizes", R"([{"name":"a","macs":1}])", Code::format, "the table says 1"},
      {"sluice.model", "{", Code::format, "x.safetensors: model"},
      {"sluice.provenance", "{}", Code::format, "provenance: expected a list"},
      {"sluice.provenance", "[1]", Code::format, "step 0 is not an object"},
      {"sluice.provenance", R"([{"step":"a"},{"name":"b"}])", Code::format,
       "step 1 is not an object with the text 'step'"},
  };
  for (const Case& c : cases)
    expect_error(
        c.code, c.words,
        [&] {
          parse(with_metadata({{c.key, c.value}}));
        },
        c.value);
  expect_error(Code::format, "'sluice.version' is not there",
               [] { parse(with_metadata({}, "sluice.version")); });
  const std::string long_label(5000, 'x');
  expect_error(Code::format, "longer than", [&] {
    parse(with_metadata(
        {{"sluice.task", R"({"kind":"classify","labels":[")" + long_label + R"("]})"}}));
  });
  expect_error(Code::limit, "provenance", [] {
    parse(with_metadata({{"sluice.provenance", std::string(2 << 20, ' ')}}));
  });
}

TEST(Bundle, TensorsOfTheGraphMustBeInTheFileAsTheGraphSays) {
  const auto bytes = small_network().bytes();
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "x");
  const auto reopen = [&](auto change) {
    std::vector<TensorView> tensors = file.tensors();
    change(tensors);
    const std::string bytes = as_text(safetensors_bytes(tensors, file.metadata()));
    return parse(bytes).verify();
  };
  const auto named = [](std::vector<TensorView>& tensors, const char* name) {
    return std::find_if(tensors.begin(), tensors.end(),
                        [&](const TensorView& t) { return t.name == name; });
  };
  expect_error(Code::missing, "no tensor 'head.fc.bias'",
               [&] { reopen([&](auto& t) { t.erase(named(t, "head.fc.bias")); }); });
  expect_error(Code::dtype, "'head.fc.bias': the graph says F32, the file holds I32",
               [&] { reopen([&](auto& t) { named(t, "head.fc.bias")->dtype = DType::i32; }); });
  expect_error(Code::shape, "the graph says 3 x 2, the file holds 2 x 3", [&] {
    reopen([&](auto& t) { named(t, "head.fc.weight")->shape = {2, 3}; });
  });
  // More tensors than the graph uses are fine: a file may carry data for others.
  const std::vector<std::byte> four(4);
  EXPECT_EQ(reopen([&](auto& t) { t.push_back({"extra", DType::i32, {1}, four}); }), 8);
}

TEST(Bundle, GoldenFileOfVersion1KeepsOpening) {
  const std::string path = std::string(SLUICE_SOURCE_DIR) + "/tests/golden/bundle_v1.safetensors";
  const Bundle bundle = Bundle::open(path, {.verify_checksums = true, .limits = {}});
  EXPECT_EQ(bundle.version(), 1);
  EXPECT_EQ(bundle.graph().nodes.size(), 6u);
  EXPECT_EQ(bundle.info().total.macs, 582);
  EXPECT_EQ(bundle.info().total.params, 51);
  EXPECT_EQ(attr_int(bundle.graph().nodes[0].attrs, "padding", 0), 1);
  EXPECT_THAT(bundle.task().labels, ::testing::ElementsAre("coat", "bag", "boot"));
  EXPECT_THAT(bundle.tensor("head.fc.bias").f32(), ::testing::ElementsAreArray(ramp(3)));
}

}  // namespace bundle_test
}  // namespace sluice::bundle
