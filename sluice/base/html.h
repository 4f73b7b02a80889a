// Self-contained HTML reports: headings, text, tables and SVG pictures in one file that opens
// anywhere, offline.
#pragma once
#include <string>
#include <string_view>

#include "sluice/base/table.h"

namespace sluice {

class HtmlReport {
 public:
  HtmlReport(std::string title, std::string subtitle);
  void heading(std::string_view text);
  void paragraph(std::string_view text);  ///< escaped
  void table(const Table& table);
  /// A big number with a caption; consecutive ones stand in one row.
  void fact(std::string_view value, std::string_view caption);
  /// `svg` as render_svg returns it (trusted), with a caption below.
  void picture(std::string_view svg, std::string_view caption);
  std::string text() const;
  /// Written aside, then renamed.
  void write(const std::string& path) const;

 private:
  void close_row();
  std::string title_, subtitle_, body_, row_;
};

}  // namespace sluice
