#include "sluice/base/html.h"

#include <fmt/format.h>

#include "sluice/base/file.h"

namespace sluice {
namespace {

constexpr std::string_view kStyle = R"(
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #f6f7f9; margin: 0; }
main { max-width: 1060px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { margin: 0; font-size: 30px; } h2 { margin: 36px 0 8px; font-size: 20px; }
.sub { color: #5b6675; margin: 4px 0 24px; }
.row { display: flex; flex-wrap: wrap; gap: 14px; margin: 18px 0; }
.fact { background: #fff; border: 1px solid #e1e5ea; border-radius: 10px; padding: 14px 20px; flex: 1 1 150px; }
.fact b { display: block; font-size: 28px; } .fact span { color: #5b6675; font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e1e5ea; width: 100%; font-size: 14px; }
th, td { padding: 7px 10px; border-bottom: 1px solid #e9ecf0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #eef1f5; }
figure { background: #fff; border: 1px solid #e1e5ea; border-radius: 10px; margin: 0; padding: 12px; flex: 1 1 460px; }
figure svg { max-width: 100%; height: auto; display: block; margin: auto; }
figcaption { color: #5b6675; font-size: 14px; margin-top: 6px; }
)";

}  // namespace

HtmlReport::HtmlReport(std::string title, std::string subtitle)
    : title_(std::move(title)), subtitle_(std::move(subtitle)) {}

void HtmlReport::close_row() {
  if (row_.empty()) return;
  body_ += "<div class=\"row\">" + row_ + "</div>\n";
  row_.clear();
}

void HtmlReport::heading(std::string_view text) {
  close_row();
  body_ += fmt::format("<h2>{}</h2>\n", html_escape(std::string(text)));
}

void HtmlReport::paragraph(std::string_view text) {
  close_row();
  body_ += fmt::format("<p>{}</p>\n", html_escape(std::string(text)));
}

void HtmlReport::table(const Table& table) {
  close_row();
  body_ += "<div class=\"scroll\">" + table.html() + "</div>\n";
}

void HtmlReport::fact(std::string_view value, std::string_view caption) {
  row_ += fmt::format("<div class=\"fact\"><b>{}</b><span>{}</span></div>",
                      html_escape(std::string(value)), html_escape(std::string(caption)));
}

void HtmlReport::picture(std::string_view svg, std::string_view caption) {
  // Inside HTML an XML declaration or DOCTYPE would be text.
  const size_t start = svg.find("<svg");
  if (start != std::string_view::npos) svg.remove_prefix(start);
  row_ += fmt::format("<figure>{}<figcaption>{}</figcaption></figure>", svg,
                      html_escape(std::string(caption)));
}

std::string HtmlReport::text() const {
  HtmlReport closed = *this;
  closed.close_row();
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, "
      "initial-scale=1\"><title>{0}</title><style>{1}</style></head>\n"
      "<body><main><h1>{0}</h1><p class=\"sub\">{2}</p>\n{3}</main></body></html>\n",
      html_escape(title_), kStyle, html_escape(subtitle_), closed.body_);
}

void HtmlReport::write(const std::string& path) const { write_text_file(path, text()); }

}  // namespace sluice
