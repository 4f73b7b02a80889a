#include "sluice/base/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "sluice/base/error.h"

namespace sluice {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Length of the number that `text` starts with: 12, -0.5, +1e-3, 1,234; 0 if none.
size_t number_length(std::string_view text) {
  size_t i = 0;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) {
    ++i;
  }
  const size_t begin = i;
  size_t digits = 0;
  for (; i < text.size() && (is_digit(text[i]) || text[i] == '.' || text[i] == ','); ++i) {
    digits += is_digit(text[i]);
  }
  if (digits == 0 || !(is_digit(text[begin]) || text[begin] == '.')) {
    return 0;
  }
  if (i + 1 < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    size_t e = i + 1;
    e += text[e] == '-' || text[e] == '+';
    if (e < text.size() && is_digit(text[e])) {
      while (e < text.size() && is_digit(text[e])) {
        ++e;
      }
      i = e;
    }
  }
  return i;
}

/// "93.1", "1.23 M", "12 %", "93.1 ± 0.4", "3.2 GB/s", "nan", "-": what reads better right-aligned.
bool is_number(std::string_view cell) {
  if (cell == "-" || cell == "nan" || cell == "inf" || cell == "-inf") {
    return true;
  }
  const size_t length = number_length(cell);
  if (length == 0) {
    return false;
  }
  std::string_view rest = cell.substr(length);
  constexpr std::string_view kPlusMinus = " \u00B1 ";
  if (rest.starts_with(kPlusMinus)) {
    rest.remove_prefix(kPlusMinus.size());
    const size_t spread = number_length(rest);
    if (spread == 0) {
      return false;
    }
    rest.remove_prefix(spread);
  }
  if (rest.starts_with(' ')) {
    rest.remove_prefix(1);
  }
  return rest.size() <= 8 && std::none_of(rest.begin(), rest.end(), [](char c) {
           return is_digit(c) || c == ' ' || c == '-' || c == '.';
         });
}

std::vector<bool> numeric_columns(size_t columns,
                                  const std::vector<std::vector<std::string>>& rows) {
  std::vector<bool> numeric(columns, false);
  for (size_t c = 0; c < columns; ++c) {
    bool any = false, all = true;
    for (const auto& row : rows) {
      if (!row[c].empty()) {
        any = any || row[c] != "-";
        all = all && is_number(row[c]);
      }
    }
    numeric[c] = any && all;
  }
  return numeric;
}

/// Characters, not bytes; wide East Asian ones are taken as one.
size_t display_width(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r' || c == '\t'; }, ' ');
  return text;
}

std::string three_digits(double value) {
  const double size = std::abs(value);
  const int decimals = size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}", value, decimals);
}

template <size_t N>
std::string scaled(double value, double step, const std::array<const char*, N>& units) {
  size_t unit = 0;
  // 0.9995: what would print as 1000 becomes 1.00 of the next unit.
  const double limit = step == 1000 ? 999.5 : step - 0.5;
  while (std::abs(value) >= limit && unit + 1 < N) {
    value /= step;
    ++unit;
  }
  return fmt::format("{} {}", three_digits(value), units[unit]);
}

}  // namespace

Table::Table(std::vector<std::string> header) : header_(std::move(header)) {
  std::transform(header_.begin(), header_.end(), header_.begin(), one_line);
}

void Table::row(std::vector<std::string> cells) {
  SLUICE_CHECK(cells.size() <= header_.size());
  cells.resize(header_.size());
  std::transform(cells.begin(), cells.end(), cells.begin(), one_line);
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  const size_t columns = header_.size();
  const std::vector<bool> numeric = numeric_columns(columns, rows_);
  std::vector<size_t> width(columns);
  for (size_t c = 0; c < columns; ++c) {
    width[c] = display_width(header_[c]);
    for (const auto& row : rows_) {
      width[c] = std::max(width[c], display_width(row[c]));
    }
  }
  std::string result;
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string out;
    for (size_t c = 0; c < columns; ++c) {
      const std::string padding(width[c] - display_width(cells[c]), ' ');
      out += c == 0 ? "" : "  ";
      out += numeric[c] ? padding + cells[c] : cells[c] + padding;
    }
    out.erase(out.find_last_not_of(' ') + 1);
    result += out + "\n";
  };
  line(header_);
  std::vector<std::string> rule;
  for (const size_t w : width) {
    rule.emplace_back(w, '-');
  }
  line(rule);
  for (const auto& row : rows_) {
    line(row);
  }
  return result;
}

std::string Table::markdown() const {
  const std::vector<bool> numeric = numeric_columns(header_.size(), rows_);
  std::string result;
  const auto line = [&](const std::vector<std::string>& cells) {
    result += "|";
    for (const std::string& cell : cells) {
      result += ' ';
      for (const char c : cell) {
        result += c == '|' ? "\\|" : std::string(1, c);
      }
      result += " |";
    }
    result += "\n";
  };
  line(header_);
  result += "|";
  for (size_t c = 0; c < header_.size(); ++c) {
    result += numeric[c] ? " ---: |" : " --- |";
  }
  result += "\n";
  for (const auto& row : rows_) {
    line(row);
  }
  return result;
}

std::string Table::html() const {
  const std::vector<bool> numeric = numeric_columns(header_.size(), rows_);
  std::string result = "<table>\n";
  const auto line = [&](const std::vector<std::string>& cells, const char* tag) {
    result += "<tr>";
    for (size_t c = 0; c < cells.size(); ++c) {
      result += fmt::format("<{}{}>{}</{}>", tag, numeric[c] ? " style=\"text-align:right\"" : "",
                            html_escape(cells[c]), tag);
    }
    result += "</tr>\n";
  };
  result += "<thead>\n";
  line(header_, "th");
  result += "</thead>\n<tbody>\n";
  for (const auto& row : rows_) {
    line(row, "td");
  }
  return result + "</tbody>\n</table>\n";
}

std::string format_count(int64_t n) {
  if (n > -1000 && n < 1000) {
    return fmt::format("{}", n);
  }
  constexpr std::array<const char*, 6> kUnits{"k", "M", "G", "T", "P", "E"};
  return scaled(static_cast<double>(n) / 1000, 1000, kUnits);
}

std::string format_bytes(int64_t n) {
  if (n > -1024 && n < 1024) {
    return fmt::format("{} B", n);
  }
  constexpr std::array<const char*, 6> kUnits{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  return scaled(static_cast<double>(n) / 1024, 1024, kUnits);
}

std::string format_seconds(double s) {
  if (!std::isfinite(s)) {
    return fmt::format("{} s", s);
  }
  if (s == 0) {
    return "0 s";
  }
  const double size = std::abs(s);
  if (size < 59.95) {
    if (size >= 0.9995) {
      return three_digits(s) + " s";
    }
    if (size >= 0.9995e-3) {
      return three_digits(s * 1e3) + " ms";
    }
    return size >= 0.9995e-6 ? three_digits(s * 1e6) + " us" : three_digits(s * 1e9) + " ns";
  }
  if (size > 9e15) {
    return fmt::format("{:.3g} s", s);
  }
  const int64_t whole = std::llround(size);
  const char* sign = s < 0 ? "-" : "";
  return whole < 3600 ? fmt::format("{}{} min {} s", sign, whole / 60, whole % 60)
                      : fmt::format("{}{} h {} min", sign, whole / 3600, whole % 3600 / 60);
}

std::string html_escape(const std::string& text) {
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

}  // namespace sluice
