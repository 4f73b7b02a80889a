// Hostile and unlucky files, end to end: every one is an error with a name and exit code 1, never a
// crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "sluice/base/json.h"
#include "tests/process.h"

namespace sluice::test {
namespace files_test {

using testing::HasSubstr;
using testing::StartsWith;

/// Failed with `code`, said so in one line, crashed nowhere.
void expect_error(const Finished& finished, const std::string& code) {
  EXPECT_EQ(finished.signal, 0) << finished.err;
  EXPECT_EQ(finished.exit_code, 1) << finished.out;
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, StartsWith("sluice: error [" + code + "]: "));
  EXPECT_EQ(std::count(finished.err.begin(), finished.err.end(), '\n'), 1) << finished.err;
}

std::string with_header(const std::string& header, size_t data_bytes = 0) {
  uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\0');
}

class Files : public testing::Test {
 protected:
  void SetUp() override { write_linear_bundle(model); }
  TempDirectory directory;
  const std::string model = directory / "model.safetensors";
};

TEST_F(Files, InspectShowsABundleAndChecksIt) {
  const Finished text = sluice({"inspect", model, "--check"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("head"));
  EXPECT_THAT(text.out, HasSubstr("1 of 1 tensors"));
  const Json document = json_of(sluice({"inspect", model, "--check", "--json"}));
  EXPECT_EQ(document["check"]["verified"], 1);
}

TEST_F(Files, InspectTakesAnySafetensorsFile) {
  write_bytes(
      directory / "plain.safetensors",
      with_header(R"({"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})", 16));
  const Finished text = sluice({"inspect", directory / "plain.safetensors", "--check"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("weight"));
  EXPECT_THAT(text.out, HasSubstr("no checksums"));
  json_of(sluice({"inspect", directory / "plain.safetensors", "--check", "--json"}));
}

TEST_F(Files, MissingFileAndDirectoryAreNamed) {
  const Finished missing = sluice({"inspect", directory / "nothing.safetensors"});
  expect_error(missing, "missing");
  EXPECT_THAT(missing.err, HasSubstr("nothing.safetensors"));
  expect_error(sluice({"inspect", directory.path()}), "io");
}

TEST_F(Files, TruncationAnywhereIsAFormatError) {
  const std::string bytes = read_bytes(model);
  for (const size_t length : {size_t{0}, size_t{7}, size_t{100}, bytes.size() - 1}) {
    write_bytes(directory / "cut.safetensors", bytes.substr(0, length));
    const Finished finished = sluice({"inspect", directory / "cut.safetensors"});
    expect_error(finished, "format");
    EXPECT_THAT(finished.err, HasSubstr("cut.safetensors"));
  }
}

TEST_F(Files, LyingHeadersAreErrors) {
  const std::string tensor = R"({"w":{"dtype":"F32","shape":)";
  for (const std::string& bytes :
       {std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10), with_header("not json"),
        with_header("[1,2,3]"), with_header(tensor + R"([4],"data_offsets":[0,99999]}})", 16),
        with_header(tensor + R"([4],"data_offsets":[16,0]}})", 16),
        with_header(tensor + R"([-4],"data_offsets":[0,16]}})", 16),
        with_header(tensor + R"([4294967296,4294967296],"data_offsets":[0,16]}})", 16),
        with_header(R"({"__metadata__":{"sluice.version":"1","sluice.graph":"{\"nodes\":7}"}})"),
        with_header(R"({"__metadata__":{"sluice.version":"999","sluice.graph":"{}"}})"),
        with_header(std::string(200000, '['))}) {
    write_bytes(directory / "lie.safetensors", bytes);
    const Finished finished = sluice({"inspect", directory / "lie.safetensors"});
    EXPECT_EQ(finished.signal, 0);
    EXPECT_EQ(finished.exit_code, 1) << finished.out;
    EXPECT_THAT(finished.err, HasSubstr("lie.safetensors"));
  }
}

TEST_F(Files, FlippedWeightIsFoundByCheck) {
  std::string bytes = read_bytes(model);
  bytes[bytes.size() - 3] ^= 1;
  write_bytes(model, bytes);
  EXPECT_EQ(sluice({"inspect", model}).exit_code, 0);
  const Finished finished = sluice({"inspect", model, "--check"});
  expect_error(finished, "format");
  EXPECT_THAT(finished.err, HasSubstr("head.weight"));
}

TEST_F(Files, FullDiskBehindStdoutIsAnError) {
  const Finished finished = sluice({"inspect", model}, {.stdout_path = "/dev/full"});
  EXPECT_EQ(finished.exit_code, 1);
  EXPECT_THAT(finished.err, StartsWith("sluice: error [io]: "));
}

TEST_F(Files, AReaderThatStopsReadingIsNoError) {
  const std::string command = std::string(SLUICE_BINARY) + " inspect '" + model + "' 2> '" +
                              directory / "err" + "' | true; exit ${PIPESTATUS[0]}";
  const int status = std::system(("bash -c '" +
                                  [&] {
                                    std::string quoted;
                                    for (const char c : command) {
                                      quoted +=
                                          c == '\'' ? std::string("'\\''") : std::string(1, c);
                                    }
                                    return quoted;
                                  }() +
                                  "'")
                                     .c_str());
  EXPECT_EQ(status, 0);
  EXPECT_EQ(read_bytes(directory / "err"), "");
}

#if SLUICE_WITH_ENGINE

std::string pgm(int width, int height) {
  std::string text = "P5\n" + std::to_string(width) + " " + std::to_string(height) + "\n255\n";
  for (int i = 0; i < width * height; ++i) {
    text += static_cast<char>(i * 37 % 251);
  }
  return text;
}

TEST_F(Files, RunClassifiesPicturesOfAnySize) {
  write_bytes(directory / "small.pgm", pgm(5, 3));
  write_bytes(directory / "large.pgm", pgm(64, 48));
  const Json document = json_of(sluice(
      {"run", model, directory / "small.pgm", directory / "large.pgm", "--top", "10", "--json"}));
  ASSERT_EQ(document["results"].size(), 2u);
  double sum = 0;
  for (const Json& entry : document["results"][1]["classes"]) {
    sum += entry["probability"].get<double>();
  }
  EXPECT_NEAR(sum, 1, 1e-4);
  EXPECT_EQ(document["results"][0]["macs"], 1440);
  const Finished text = sluice({"run", model, directory / "small.pgm"});
  EXPECT_THAT(text.out, HasSubstr("class "));
  EXPECT_THAT(text.out, HasSubstr("MACs"));
}

TEST_F(Files, RunInvertChangesWhatTheModelSees) {
  write_bytes(directory / "a.pgm", pgm(12, 12));
  const Json plain = json_of(sluice({"run", model, directory / "a.pgm", "--json"}));
  const Json inverted = json_of(sluice({"run", model, directory / "a.pgm", "--invert", "--json"}));
  EXPECT_NE(plain["results"][0]["classes"], inverted["results"][0]["classes"]);
}

TEST_F(Files, RunOfASampleKnowsTheTruth) {
  const Json document = json_of(sluice({"run", model, "--sample", "3", "--sample", "4", "--json"}));
  ASSERT_EQ(document["results"].size(), 2u);
  EXPECT_TRUE(document["results"][0]["true"]["label"].is_string());
  const Finished beyond = sluice({"run", model, "--sample", "99999999"});
  EXPECT_EQ(beyond.exit_code, 2);
}

TEST_F(Files, CorruptPicturesAreErrors) {
  write_bytes(directory / "a.png", "\x89PNG\r\n\x1a\n and then nothing sensible");
  write_bytes(directory / "b.pgm", "P5\n99999999 99999999\n255\n");
  write_bytes(directory / "c.pgm", "P5\n12 12\n255\nshort");
  write_bytes(directory / "d.png", "");
  write_bytes(directory / "e.txt", "hello");
  for (const char* name : {"a.png", "b.pgm", "c.pgm", "d.png", "e.txt"}) {
    const Finished finished = sluice({"run", model, directory / name});
    EXPECT_EQ(finished.exit_code, 1) << name;
    EXPECT_EQ(finished.signal, 0) << name;
    EXPECT_THAT(finished.err, HasSubstr(name));
  }
}

TEST_F(Files, WeightsThatAreNotNumbersAreRefused) {
  std::string bytes = read_bytes(model);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + bytes.size() - 8, &nan, 4);
  write_bytes(model, bytes);
  const Finished finished = sluice({"eval", model, "--limit", "10"});
  expect_error(finished, "numeric");
  EXPECT_THAT(finished.err, HasSubstr("head.weight"));
}

TEST_F(Files, EvalComparesModelsInOneTable) {
  write_linear_bundle(directory / "other.safetensors", -0.03f);
  const Arguments arguments{"eval", model, directory / "other.safetensors", "--limit", "200"};
  const Finished text = sluice(arguments);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("model.safetensors"));
  EXPECT_THAT(text.out, HasSubstr("other.safetensors"));
  Arguments json = arguments;
  json.push_back("--json");
  const Json document = json_of(sluice(json));
  ASSERT_EQ(document["models"].size(), 2u);
  for (const Json& row : document["models"]) {
    EXPECT_EQ(row["samples"], 200);
    EXPECT_EQ(row["macs_per_sample"], 1440);
    EXPECT_EQ(row["parameters"], 1440);
    EXPECT_GE(row["accuracy"].get<double>(), 0);
    EXPECT_LE(row["accuracy"].get<double>(), 1);
  }
}

TEST_F(Files, EvalRefusesWhatDoesNotFit) {
  expect_error(sluice({"eval", model, "--limit", "10", "--budget-macs", "1000"}), "limit");
  EXPECT_EQ(sluice({"eval", model, "--limit", "10", "--budget-macs", "1440"}).exit_code, 0);
  const Finished unknown = sluice({"eval", model, "--data", "fashion-mnis"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("fashion-mnist"));
  expect_error(sluice({"eval", model, "--data", "fashion-mnist", "--data-dir", directory.path()}),
               "missing");
}

TEST_F(Files, CorruptDataIsAnError) {
  for (const char* name : {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
                           "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"}) {
    write_bytes(directory / name, "\x1f\x8b\x08 not gzip at all");
  }
  const Finished finished =
      sluice({"eval", model, "--data", "fashion-mnist", "--data-dir", directory.path()});
  expect_error(finished, "format");
  EXPECT_THAT(finished.err, HasSubstr("ubyte.gz"));
}

TEST_F(Files, BenchPrintsATableAndAReport) {
  const Arguments arguments{"bench",     model, model,      "--batch", "1,3",
                            "--threads", "1",   "--rounds", "2",       "--nodes"};
  const Finished text = sluice(arguments);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("of peak"));
  EXPECT_THAT(text.out, HasSubstr("kernel"));
  Arguments json = arguments;
  json.push_back("--json");
  const Json report = json_of(sluice(json));
  for (const char* key :
       {"slug", "id", "family", "scale", "date", "commit", "command", "machine", "data", "seeds",
        "arms", "bars", "controls", "limits", "figures", "notes", "verdict"}) {
    EXPECT_TRUE(report.contains(key)) << key;
  }
  ASSERT_EQ(report["arms"].size(), 4u);
  EXPECT_EQ(report["arms"][0]["role"], "baseline");
  EXPECT_EQ(report["arms"][1]["role"], "system");
  EXPECT_EQ(report["arms"][0]["metrics"]["macs_ratio"]["mean"], 1.0);
  EXPECT_GT(report["arms"][3]["metrics"]["seconds"]["median"].get<double>(), 0);
  EXPECT_GT(report["limits"]["f32_gflops_threads_1"].get<double>(), 0);
}

#endif  // SLUICE_WITH_ENGINE

}  // namespace files_test
}  // namespace sluice::test
