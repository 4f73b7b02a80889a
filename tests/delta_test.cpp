// sluice delta and the pass that applies what it makes, through the binary.
#if SLUICE_WITH_LAB
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/safetensors.h"
#include "tests/process.h"

namespace sluice::test {
namespace delta_test {

using testing::HasSubstr;

const char* const kConfig = R"(
[data]
name = "blobs"
train_limit = 600
test_limit = 200
[model]
name = "mlp"
hidden = [32]
[train]
steps = 40
batch = 20
)";

class Delta : public testing::Test {
 protected:
  void SetUp() override {
    write_bytes(directory / "t.toml", kConfig);
    ASSERT_EQ(run({"train", "t.toml", "-o", "base.safetensors"}).exit_code, 0);
    ASSERT_EQ(run({"train", "t.toml", "--from", "base.safetensors", "-o", "tuned.safetensors",
                   "--set", "train.seed=2"})
                  .exit_code,
              0);
  }
  Finished run(Arguments arguments) { return sluice(arguments, {.directory = directory.path()}); }
  std::string failure(Arguments arguments) {
    const Finished finished = run(std::move(arguments));
    EXPECT_EQ(finished.exit_code, 1) << finished.out;
    EXPECT_EQ(std::count(finished.err.begin(), finished.err.end(), '\n'), 1) << finished.err;
    EXPECT_FALSE(file_exists(directory / "no"));
    return finished.err;
  }
  /// The bytes of every tensor by name.
  std::map<std::string, std::string> weights(const std::string& name) {
    const auto file = bundle::SafetensorsFile::open(directory / name);
    std::map<std::string, std::string> all;
    for (const auto& tensor : file.tensors())
      all[tensor.name] = {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()};
    return all;
  }

  TempDirectory directory;
};

TEST_F(Delta, IsAddedAndTakenAwayBitForBit) {
  const Json made = json_of(run({"delta", "base.safetensors", "tuned.safetensors", "-o",
                                 "d.safetensors", "--density", "0.05", "--json"}));
  const int64_t matrices = 144 * 32 + 32 * 10;
  EXPECT_EQ(made["weights"], matrices);
  EXPECT_EQ(made["kept"], std::llround(0.05 * double(matrices)));
  EXPECT_GT(made["energy"].get<double>(), 0.05);
  EXPECT_LT(made["energy"].get<double>(), 1.0);
  EXPECT_LT(made["bytes"].get<int64_t>(), 4 * matrices / 2);
  EXPECT_EQ(made["digest"].get<std::string>().size(), 16u);
  const Finished added = run({"transform", "base.safetensors", "-o", "with.safetensors", "--pass",
                              "apply-delta:file=d.safetensors"});
  ASSERT_EQ(added.exit_code, 0) << added.err;
  EXPECT_NE(weights("with.safetensors"), weights("base.safetensors"));
  const Finished taken = run({"transform", "with.safetensors", "-o", "again.safetensors", "--pass",
                              "apply-delta:file=d.safetensors,scale=-1"});
  ASSERT_EQ(taken.exit_code, 0) << taken.err;
  EXPECT_EQ(weights("again.safetensors"), weights("base.safetensors"));
  // All of it is the tuned network.
  ASSERT_EQ(run({"delta", "base.safetensors", "tuned.safetensors", "-o", "all.safetensors",
                 "--density", "1"})
                .exit_code,
            0);
  ASSERT_EQ(run({"transform", "base.safetensors", "-o", "same.safetensors", "--pass",
                 "apply-delta:file=all.safetensors"})
                .exit_code,
            0);
  EXPECT_EQ(weights("same.safetensors"), weights("tuned.safetensors"));
  const Finished table = run({"delta", "base.safetensors", "tuned.safetensors", "-o",
                              "l.safetensors", "--scope", "layer", "--layers", "fc1.*"});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("fc1.weight"));
  EXPECT_THAT(table.out, testing::Not(HasSubstr("fc2.weight")));
  EXPECT_THAT(table.out, HasSubstr("apply-delta:file=l.safetensors"));
}

TEST_F(Delta, MistakesAreNamedAndNothingIsWritten) {
  const auto make = [&](Arguments more) {
    Arguments arguments{"delta", "base.safetensors", "tuned.safetensors", "-o", "no"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  };
  EXPECT_EQ(make({"--density", "1.5"}).exit_code, 2);
  EXPECT_EQ(make({"--scope", "block"}).exit_code, 2);
  EXPECT_THAT(make({"--layers", "fd*"}).err, HasSubstr("no tensor matches 'fd*'"));
  EXPECT_FALSE(file_exists(directory / "no"));
  ASSERT_EQ(run({"train", "t.toml", "-o", "other.safetensors", "--set", "train.seed=7"}).exit_code,
            0);
  ASSERT_EQ(
      run({"train", "t.toml", "-o", "wide.safetensors", "--set", "model.hidden=[40]"}).exit_code,
      0);
  EXPECT_THAT(failure({"delta", "base.safetensors", "wide.safetensors", "-o", "no"}),
              HasSubstr("they differ at"));
  ASSERT_EQ(make({"-o", "d.safetensors"}).exit_code, 2) << "two outputs";
  ASSERT_EQ(
      run({"delta", "base.safetensors", "tuned.safetensors", "-o", "d.safetensors"}).exit_code, 0);
  const auto apply = [&](const std::string& model, const std::string& file) {
    return failure({"transform", model, "-o", "no", "--pass", "apply-delta:file=" + file});
  };
  EXPECT_THAT(apply("other.safetensors", "d.safetensors"),
              HasSubstr("it is of another model: its base has the digest"));
  EXPECT_THAT(apply("wide.safetensors", "d.safetensors"), HasSubstr("another model"));
  EXPECT_THAT(apply("base.safetensors", "base.safetensors"), HasSubstr("not a delta"));
  EXPECT_THAT(apply("base.safetensors", "none.safetensors"), HasSubstr("none.safetensors"));
  const std::string bytes = read_bytes(directory / "d.safetensors");
  write_bytes(directory / "short", bytes.substr(0, bytes.size() - 5));
  EXPECT_THAT(apply("base.safetensors", "short"), HasSubstr("short"));
  EXPECT_THAT(failure({"inspect", "short"}), HasSubstr("short"));
  EXPECT_EQ(run({"inspect", "d.safetensors"}).exit_code, 0) << "an ordinary safetensors file";
}

}  // namespace delta_test
}  // namespace sluice::test
#endif
