// Training of decoders through the binary: text in, bundle out, one process and two, and what
// happens when something goes wrong.
#if SLUICE_WITH_LAB
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <thread>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "tests/process.h"

namespace sluice::test {
namespace train_text_test {

using testing::ElementsAre;
using testing::HasSubstr;

const char* const kConfig = R"(
[data]
text = "./texts"
held_out = 0.3
[tokenizer]
vocab = 280
[model]
name = "decoder"
layers = 1
width = 16
heads = 2
ffn = 32
context = 16
[train]
steps = 12
batch = 8
log_every = 2
checkpoint_every = 2
[train.optimizer]
kind = "muon"
rate = 1e-2
)";

class TrainText : public testing::Test {
 protected:
  void SetUp() override {
    write_bytes(directory / "t.toml", kConfig);
    make_directories(directory / "texts");
    for (int file = 0; file < 10; ++file) {
      std::string text;
      for (int line = 0; line < 8; ++line)
        text += "so " + std::to_string(file) + " cats met the " + std::to_string(line) + " hats\n";
      write_bytes(directory / ("texts/" + std::to_string(file)), text);
    }
  }

  Finished run(Arguments arguments, ProcessOptions options = {}) {
    options.directory = directory.path();
    return sluice(arguments, options);
  }
  /// The error of a run that has to fail with exit code 1.
  std::string failure(Arguments arguments, ProcessOptions options = {}) {
    const Finished finished = run(std::move(arguments), std::move(options));
    EXPECT_EQ(finished.exit_code, 1) << finished.out;
    return finished.err;
  }
  /// Two processes that train together; `second` changes those of process 1.
  std::pair<Finished, Finished> run_two(const Arguments& arguments, ProcessOptions second = {}) {
    const std::string port = std::to_string(free_port());
    const auto environment = [&](const char* rank) {
      return std::vector<std::pair<std::string, std::string>>{
          {"RANK", rank}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", port}};
    };
    std::pair<Finished, Finished> result;
    second.environment = environment("1");
    std::thread other([&] { result.second = run(arguments, second); });
    result.first = run(arguments, {.environment = environment("0")});
    other.join();
    return result;
  }
  static int free_port() {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
    ::close(fd);
    return ntohs(address.sin_port);
  }

  TempDirectory directory;
};

TEST_F(TrainText, PacksTrainsAndWritesABundleWithItsTokenizer) {
  const Json packed = json_of(run({"train", "t.toml", "--pack-only", "--json"}));
  EXPECT_EQ(packed["output"], "t.tokens");
  EXPECT_EQ(packed["vocabulary"], 280);
  EXPECT_EQ(packed["train_documents"].get<int>() + packed["held_out_documents"].get<int>(), 10);
  EXPECT_THAT(directory.entries(), ElementsAre("t.tokens", "t.toml", "texts"));

  const Json trained = json_of(run({"train", "t.toml", "-o", "m.safetensors", "--tokens",
                                    "t.tokens", "--events", "events", "--json"}));
  EXPECT_EQ(trained["steps"], 12);
  EXPECT_EQ(trained["curve"].size(), 6u);
  EXPECT_LT(trained["curve"].back()["loss"], trained["curve"].front()["loss"]);
  EXPECT_NEAR(trained["held_out"]["perplexity"].get<double>(),
              std::exp(trained["held_out"]["loss"].get<double>()), 1e-6);
  EXPECT_THAT(directory.entries(),
              ElementsAre("events", "m.safetensors", "t.tokens", "t.toml", "texts"));
  const Finished inspected = run({"inspect", "m.safetensors", "--check"});
  EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
}

TEST_F(TrainText, AKilledRunContinuesToTheSameBytes) {
  ASSERT_EQ(run({"train", "t.toml", "-o", "whole.safetensors", "--json"}).exit_code, 0);
  const std::string checkpoint = directory / "c";
  const Arguments arguments{"train",    "t.toml",       "-o",    "m.safetensors",
                            "--tokens", "whole.tokens", "--set", "train.checkpoint=c"};
  const Finished killed =
      run(arguments, {.when = [&] { return file_exists(checkpoint); }, .send = SIGKILL});
  Arguments again = arguments;
  again.insert(again.end(), {"--resume", "--json"});
  const Finished resumed = run(again);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  if (killed.signal != SIGKILL) GTEST_SKIP() << "trained faster than it was killed";
  EXPECT_EQ(read_bytes(directory / "m.safetensors"), read_bytes(directory / "whole.safetensors"));

  EXPECT_THAT(failure({"train", "t.toml", "-o", "m.safetensors", "--tokens", "whole.tokens",
                       "--resume", "--set", "train.checkpoint=c", "--set", "model.width=32"}),
              HasSubstr("fingerprint"));
}

TEST_F(TrainText, TwoProcessesTrainAsOneWithTheDoubledBatch) {
  const Json one = json_of(run({"train", "t.toml", "-o", "one.safetensors", "--json"}));
  const auto [first, second] =
      run_two({"train", "t.toml", "-o", "two.safetensors", "--tokens", "one.tokens", "--json"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_EQ(second.out, "");
  const Json two = json_of(first);
  EXPECT_EQ(two["processes"], 2);
  ASSERT_EQ(one["curve"].size(), two["curve"].size());
  for (size_t i = 0; i < one["curve"].size(); ++i) {
    EXPECT_NEAR(one["curve"][i]["loss"].get<double>(), two["curve"][i]["loss"].get<double>(), 1e-4);
    EXPECT_NEAR(one["curve"][i]["accuracy"].get<double>(),
                two["curve"][i]["accuracy"].get<double>(), 0.02);
  }
}

TEST_F(TrainText, MpirunStartsTheProcesses) {
  if (std::system("command -v mpirun >/dev/null") != 0)
    GTEST_SKIP() << "mpirun is not installed (openmpi-bin)";
  const Json one = json_of(run({"train", "t.toml", "-o", "one.safetensors", "--json"}));
  // As root and with fewer cores than processes it asks to be told that this is meant.
  const Finished finished = run(
      {"train", "t.toml", "-o", "two.safetensors", "--tokens", "one.tokens", "--json"},
      {.launcher = {"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"},
       .environment = {{"MASTER_PORT", std::to_string(free_port())}, {"OMP_NUM_THREADS", "1"}}});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  const Json two = parse_json(finished.out, "stdout of mpirun");
  EXPECT_EQ(two["processes"], 2);
  ASSERT_EQ(one["curve"].size(), two["curve"].size());
  for (size_t i = 0; i < one["curve"].size(); ++i)
    EXPECT_NEAR(one["curve"][i]["loss"].get<double>(), two["curve"][i]["loss"].get<double>(), 1e-4);
}

TEST_F(TrainText, ALostProcessEndsTheRunWithAnErrorAndAUsableCheckpoint) {
  ASSERT_EQ(run({"train", "t.toml", "--pack-only", "--json"}).exit_code, 0);
  const std::string checkpoint = directory / "c";
  const Arguments arguments{"train",    "t.toml",
                            "-o",       "m.safetensors",
                            "--tokens", "t.tokens",
                            "--set",    "train.checkpoint=c",
                            "--set",    "train.steps=100000"};
  const auto [first, second] =
      run_two(arguments, {.when = [&] { return file_exists(checkpoint); }, .send = SIGKILL});
  EXPECT_EQ(second.signal, SIGKILL);
  EXPECT_EQ(first.exit_code, 1);
  EXPECT_THAT(first.err, HasSubstr("sluice: error [io]: process 0 of 2: lost another process"));
  EXPECT_THAT(first.err, HasSubstr("c holds the state after step"));
  Arguments again = arguments;
  again.push_back("--resume");
  // It has read the checkpoint once it writes the next one.
  const std::string before = read_bytes(checkpoint);
  const Finished resumed = run(
      again, {.when = [&] { return file_exists(checkpoint) && read_bytes(checkpoint) != before; },
              .send = SIGINT});
  EXPECT_THAT(resumed.err, testing::Not(HasSubstr("error [")));
  EXPECT_NE(read_bytes(checkpoint), before);
}

TEST_F(TrainText, MistakesAreNamed) {
  EXPECT_THAT(failure({"train", "t.toml", "--set", "tokenizer.vocab=5000"}),
              HasSubstr("vocabulary of 5000 tokens: the text fills only"));
  EXPECT_THAT(failure({"train", "t.toml", "--set", "data.text=./none"}),
              HasSubstr("no such file or folder of texts"));
  EXPECT_THAT(failure({"train", "t.toml", "--set", "data.txt=texts"}), HasSubstr("text"));
  EXPECT_THAT(failure({"train", "t.toml", "--set", "model.context=4000"}),
              HasSubstr("a window of context 4000 needs 4001"));
  EXPECT_THAT(failure({"train", "t.toml", "--set", "train.precision=f16"}),
              HasSubstr("it has to be f32 or bf16"));
  EXPECT_THAT(failure({"train", "t.toml", "--set", "train.precision=bf16"}), HasSubstr("CUDA"));
  EXPECT_THAT(failure({"train", "t.toml", "--tokens", "t.toml"}), HasSubstr("not a token file"));
  EXPECT_THAT(failure({"train", "t.toml"}, {.environment = {{"WORLD_SIZE", "two"}}}),
              HasSubstr("WORLD_SIZE='two'"));
  write_bytes(directory / "texts/picture", std::string("\x89PNG\0\0", 6));
  EXPECT_THAT(failure({"train", "t.toml"}), HasSubstr("picture: byte 0x89 at offset 0"));
  make_directories(directory / "empty");
  EXPECT_THAT(failure({"train", "t.toml", "--set", "data.text=./empty"}),
              HasSubstr("no text in it"));
  EXPECT_EQ(run({"train", "t.toml", "--gated", "g"}).exit_code, 2);
}

TEST_F(TrainText, AFullDiskKeepsTheOldCheckpoint) {
  ASSERT_EQ(run({"train", "t.toml", "--pack-only", "--json"}).exit_code, 0);
  const Arguments arguments{"train",    "t.toml",   "-o",    "m.safetensors",
                            "--tokens", "t.tokens", "--set", "train.checkpoint=c"};
  ASSERT_EQ(run(arguments).exit_code, 0);
  const std::string good = read_bytes(directory / "c");
  EXPECT_THAT(failure(arguments, {.file_size_limit = 4096}), HasSubstr("error [io]"));
  EXPECT_EQ(read_bytes(directory / "c"), good);
}

}  // namespace train_text_test
}  // namespace sluice::test
#endif
