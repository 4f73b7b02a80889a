// Starts the real binary and looks at what a user would see: stdout, stderr, exit code, files.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/base/temp_directory.h"

namespace sluice::test {

struct Finished {
  int exit_code = -1;  ///< -1 when a signal ended it
  int signal = 0;
  std::string out, err;
};

struct ProcessOptions {
  std::string directory{};  ///< working directory; empty: the temporary one of this call
  std::optional<int64_t> file_size_limit{};  ///< RLIMIT_FSIZE, bytes: what a full disk looks like
  std::string stdout_path{};                 ///< instead of capturing
  std::string stdin_path{};                  ///< empty: nothing
  std::vector<std::string> launcher{};       ///< a program and its arguments that starts sluice
  std::optional<std::string> programs{};     ///< PATH of the process; as here when not given
  std::vector<std::pair<std::string, std::string>> environment{};  ///< besides what is here
  /// Asked every few milliseconds while the process runs; once true, `send` goes to it.
  std::function<bool()> when{};
  int send = 0;
};

using Arguments = std::vector<std::string>;

/// Runs `sluice arguments...`; one that takes over two minutes is killed and fails the test.
Finished sluice(const Arguments& arguments, const ProcessOptions& options = {});

/// The one JSON document on stdout; adds a test failure when it is anything else.
Json json_of(const Finished& finished);

std::string read_bytes(const std::string& path);
void write_bytes(const std::string& path, const std::string& bytes);

/// A linear classifier of blobs (1 x 12 x 12 -> 10) with fixed weights, as a bundle. `head` is the
/// name of its layer.
void write_linear_bundle(const std::string& path, float scale = 0.05f);

}  // namespace sluice::test
