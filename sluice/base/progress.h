// Progress of long work: a bar with rate and time left on a terminal, a plain line now and then
// otherwise, nothing when quiet. Writes to stderr only, so that stdout stays for results.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice {

enum class ProgressStyle { automatic, bar, lines, quiet };

/// Process-wide choice, made once by the CLI (quiet with --json). automatic: bar if stderr is a
/// terminal.
void set_progress_style(ProgressStyle style);

class Progress {
 public:
  /// `unit` names what is counted: "steps", "images".
  Progress(std::string title, int64_t total, std::string unit = "steps");
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// `note` is shown behind the bar: "loss 0.412".
  void update(int64_t done, std::string_view note = {});
  void finish(std::string_view note = {});

 private:
  void draw(bool last);
  std::string title_, unit_, note_;
  int64_t total_, done_ = 0, first_ = -1;
  bool finished_ = false;
  std::chrono::steady_clock::time_point start_, drawn_;
};

/// One line to stderr unless quiet.
void log_line(std::string_view text);

}  // namespace sluice
