#include "sluice/base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "sluice/base/table.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr auto kLineInterval = std::chrono::seconds(5);
constexpr size_t kBarWidth = 24;

std::atomic<ProgressStyle> g_style{ProgressStyle::automatic};
std::mutex g_output;      // one line at a time, whoever writes
bool g_bar_open = false;  // a bar stands on the current line; guarded by g_output

ProgressStyle effective_style() {
  const ProgressStyle style = g_style.load();
  if (style != ProgressStyle::automatic) {
    return style;
  }
  return ::isatty(STDERR_FILENO) ? ProgressStyle::bar : ProgressStyle::lines;
}

bool terminal_is_utf8() {
  // The process may never have called setlocale, so the environment decides as setlocale would.
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') {
      std::string text = value;
      std::transform(text.begin(), text.end(), text.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      return text.find("utf-8") != std::string::npos || text.find("utf8") != std::string::npos;
    }
  }
  return false;
}

size_t terminal_width() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    return size.ws_col;
  }
  return 100;
}

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

/// The first `width` characters, never half of one.
std::string_view first_characters(std::string_view text, size_t width) {
  size_t seen = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!continues(text[i]) && seen++ == width) {
      return text.substr(0, i);
    }
  }
  return text;
}

std::string draw_bar(double fraction) {
  const bool utf8 = terminal_is_utf8();
  const double cells = std::clamp(fraction, 0.0, 1.0) * kBarWidth;
  const size_t full = static_cast<size_t>(cells);
  std::string bar;
  for (size_t i = 0; i < kBarWidth; ++i) {
    if (i < full) {
      bar += utf8 ? "\u2588" : "#";
    } else if (i == full && utf8 && cells - static_cast<double>(full) >= 0.125) {
      static constexpr const char* kEighths[] = {"",       "\u258F", "\u258E", "\u258D",
                                                 "\u258C", "\u258B", "\u258A", "\u2589"};
      bar += kEighths[static_cast<int>((cells - static_cast<double>(full)) * 8)];
    } else {
      bar += utf8 ? " " : ".";
    }
  }
  return (utf8 ? "\u2595" : "[") + bar + (utf8 ? "\u258F" : "]");
}

std::string clock_text(double seconds) {
  const int64_t s = static_cast<int64_t>(std::min(seconds, 359999.0) + 0.5);
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string rate_text(double rate, const std::string& unit) {
  return rate >= 10 ? fmt::format("{} {}/s", format_count(static_cast<int64_t>(rate + 0.5)), unit)
                    : fmt::format("{:.2f} {}/s", rate, unit);
}

void put(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

void set_progress_style(ProgressStyle style) { g_style = style; }

Progress::Progress(std::string title, int64_t total, std::string unit)
    : title_(std::move(title)), unit_(std::move(unit)), total_(total) {
  start_ = drawn_ = Clock::now();
}

Progress::~Progress() {
  if (!finished_ && first_ >= 0) {
    finished_ = true;
    draw(true);
  }
}

void Progress::update(int64_t done, std::string_view note) {
  if (finished_) {
    return;
  }
  const Clock::time_point now = Clock::now();
  const bool first = first_ < 0;
  if (first) {
    // Resumed work starts in the middle: only what this process did counts for the rate.
    first_ = done <= 1 ? 0 : done;
    if (first_ > 0) {
      start_ = now;
    }
  }
  done_ = done;
  if (!note.empty()) {
    note_ = note;
  }
  const ProgressStyle style = effective_style();
  const auto waited = now - drawn_;
  if (style == ProgressStyle::bar ? (first || waited >= kBarInterval)
                                  : (style == ProgressStyle::lines && waited >= kLineInterval)) {
    drawn_ = now;
    draw(false);
  }
}

void Progress::finish(std::string_view note) {
  if (finished_) {
    return;
  }
  if (!note.empty()) {
    note_ = note;
  }
  if (first_ < 0) {
    first_ = 0;
  }
  if (total_ > 0) {
    done_ = total_;
  }
  finished_ = true;
  draw(true);
}

void Progress::draw(bool last) {
  const ProgressStyle style = effective_style();
  if (style == ProgressStyle::quiet) {
    return;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done_ - first_) / seconds : 0;
  std::string line = title_ + " ";
  if (total_ > 0) {
    const double fraction = static_cast<double>(done_) / static_cast<double>(total_);
    if (style == ProgressStyle::bar) {
      line += draw_bar(fraction) + " ";
    }
    line += fmt::format("{:3.0f}% {}/{} {}", 100 * std::clamp(fraction, 0.0, 1.0), done_, total_,
                        unit_);
  } else {
    line += fmt::format("{} {}", done_, unit_);
  }
  if (rate > 0) {
    line += ", " + rate_text(rate, unit_);
  }
  if (last) {
    line += ", took " + clock_text(seconds);
  } else if (rate > 0 && total_ > done_) {
    line += ", " + clock_text(static_cast<double>(total_ - done_) / rate) + " left";
  }
  if (!note_.empty()) {
    line += ", " + note_;
  }
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');

  const std::lock_guard lock(g_output);
  if (style == ProgressStyle::bar) {
    put(fmt::format("\r{}\x1b[K{}", first_characters(line, terminal_width() - 1),
                    last ? "\n" : ""));
    g_bar_open = !last;
  } else {
    put(line + "\n");
  }
}

void log_line(std::string_view text) {
  if (effective_style() == ProgressStyle::quiet) {
    return;
  }
  const std::lock_guard lock(g_output);
  put(fmt::format("{}{}\n", g_bar_open ? "\r\x1b[K" : "", text));
  g_bar_open = false;
}

}  // namespace sluice
