#include "tests/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#include "sluice/base/json.h"
#include "sluice/bundle/bundle.h"

namespace sluice::test {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kLimit{120};

[[noreturn]] void become(const std::vector<char*>& argv, const ProcessOptions& options,
                         const std::string& out, const std::string& err) {
  const int out_fd = ::open(out.c_str(), O_WRONLY | O_CREAT, 0600);
  const int err_fd = ::open(err.c_str(), O_WRONLY | O_CREAT, 0600);
  const int in_fd =
      ::open(options.stdin_path.empty() ? "/dev/null" : options.stdin_path.c_str(), O_RDONLY);
  if (out_fd < 0 || err_fd < 0 || ::dup2(in_fd, 0) < 0 || ::dup2(out_fd, 1) < 0 ||
      ::dup2(err_fd, 2) < 0 || ::chdir(options.directory.c_str()) != 0) {
    ::_exit(126);
  }
  if (options.file_size_limit) {
    const rlim_t limit = static_cast<rlim_t>(*options.file_size_limit);
    const rlimit both{limit, limit};
    ::setrlimit(RLIMIT_FSIZE, &both);
  }
  if (options.programs) {
    ::setenv("PATH", options.programs->c_str(), 1);
  }
  for (const auto& [name, value] : options.environment) {
    ::setenv(name.c_str(), value.c_str(), 1);
  }
  ::signal(SIGPIPE, SIG_DFL);
  ::execvp(argv.front(), argv.data());
  ::_exit(127);
}

}  // namespace

Finished sluice(const Arguments& arguments, const ProcessOptions& given) {
  const TempDirectory scratch;
  ProcessOptions options = given;
  if (options.directory.empty()) {
    options.directory = scratch.path();
  }
  const std::string out = options.stdout_path.empty() ? scratch / "stdout" : options.stdout_path;
  const std::string err = scratch / "stderr";
  std::vector<std::string> words = options.launcher;
  words.emplace_back(SLUICE_BINARY);
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) {
    argv.push_back(word.data());
  }
  argv.push_back(nullptr);

  const pid_t child = ::fork();
  if (child == 0) {
    become(argv, options, out, err);
  }
  Finished finished;
  int status = 0;
  bool sent = false;
  const Clock::time_point start = Clock::now();
  while (::waitpid(child, &status, WNOHANG) == 0) {
    if (!sent && options.when && options.when()) {
      ::kill(child, options.send);
      sent = true;
    }
    if (Clock::now() - start > kLimit) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
      ADD_FAILURE() << "took more than " << kLimit.count() << " s";
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  if (WIFEXITED(status)) {
    finished.exit_code = WEXITSTATUS(status);
  } else {
    finished.signal = WTERMSIG(status);
  }
  if (options.stdout_path.empty()) {
    finished.out = read_bytes(out);
  }
  finished.err = read_bytes(err);
  return finished;
}

Json json_of(const Finished& finished) {
  EXPECT_TRUE(finished.err.empty()) << "stderr: " << finished.err;
  try {
    return parse_json(finished.out, "stdout");
  } catch (const std::exception& error) {
    ADD_FAILURE() << error.what() << "\nstdout: " << finished.out << "\nstderr: " << finished.err;
    return Json::object();
  }
}

std::string read_bytes(const std::string& path) {
  const std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void write_linear_bundle(const std::string& path, float scale) {
  constexpr int64_t kInputs = 144, kClasses = 10;
  std::vector<float> weight(static_cast<size_t>(kInputs * kClasses));
  for (size_t i = 0; i < weight.size(); ++i) {
    weight[i] = scale * static_cast<float>(static_cast<int>(i * 7919 % 21) - 10);
  }
  bundle::Builder builder;
  const bundle::Value image = builder.input("image", {1, 12, 12});
  const bundle::Value flat = builder.node("flatten", "flat", {image});
  builder.tensor("head.weight", {kClasses, kInputs}, weight);
  const bundle::Value logits =
      builder.node("linear", "head", {flat}, {}, {{"weight", "head.weight"}});
  builder.output(logits);
  bundle::Task task;
  task.kind = "classify";
  task.data = "blobs";
  task.mean = 0.3;
  task.std = 0.4;
  for (int64_t i = 0; i < kClasses; ++i) {
    task.labels.push_back("class " + std::to_string(i));
  }
  builder.set_task(task);
  builder.write(path);
}

}  // namespace sluice::test
