// Tables for people: aligned text, and the same as Markdown or HTML.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

class Table {
 public:
  explicit Table(std::vector<std::string> header);
  /// Rows shorter than the header are padded with empty cells; longer ones are a bug.
  void row(std::vector<std::string> cells);
  std::string text()
      const;  ///< columns aligned; a column whose cells are all numbers is right-aligned
  std::string markdown() const;
  std::string html() const;  ///< escaped

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

std::string format_count(int64_t n);   ///< 1234567 -> "1.23 M"
std::string format_bytes(int64_t n);   ///< 1536 -> "1.50 KiB"
std::string format_seconds(double s);  ///< 0.000123 -> "123 us"
std::string html_escape(const std::string& text);

}  // namespace sluice
