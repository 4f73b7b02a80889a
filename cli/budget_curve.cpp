#if SLUICE_HAS_ENGINE
#include "cli/budget_curve.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "cli/model_data.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/html.h"
#include "sluice/base/json.h"
#include "sluice/base/plot.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/engine/text/embedder.h"

namespace sluice::cli {
namespace {

// Of a text; more where each token decides by itself what it costs.
constexpr size_t kTriedTokens = 48, kTriedBytes = 4096;
constexpr size_t kDecidingTokens = 2048, kDecidingBytes = size_t{1} << 15;

std::vector<std::string> models_of(const std::vector<Subject>& subjects) {
  std::vector<std::string> models;
  for (const Subject& each : subjects)
    if (models.empty() || models.back() != each.model) models.push_back(each.model);
  return models;
}

/// One line per model, its sizes by ascending cost.
Figure curve(const std::vector<Subject>& subjects, const Json& rows, const std::string& x,
             const std::string& y, double scale) {
  Figure figure;
  const std::vector<std::string> models = models_of(subjects);
  for (const std::string& model : models) {
    std::vector<std::pair<double, double>> points;
    for (size_t i = 0; i < subjects.size(); ++i) {
      if (subjects[i].model != model) continue;
      points.emplace_back(scale * rows[i].at(x).get<double>(), rows[i].at(y).get<double>());
    }
    std::sort(points.begin(), points.end());
    Series series{short_name(model, models)};
    for (const auto& [cost, quality] : points) {
      series.x.push_back(cost);
      series.y.push_back(quality);
    }
    figure.series.push_back(std::move(series));
  }
  figure.y_label = y;
  return figure;
}

void draw(const std::string& path, const std::vector<Subject>& subjects, const CurveKeys& keys,
          const Json& rows) {
  Figure cost = curve(subjects, rows, "share", keys.quality, 1);
  cost.title = keys.quality + " against metered cost";
  cost.x_label = "multiply-accumulates over those of the largest size";
  if (path.ends_with(".svg")) return write_text_file(path, render_svg(cost));
  Figure time = curve(subjects, rows, keys.seconds, keys.quality, 1e3);
  time.title = keys.quality + " against measured time";
  time.x_label = "ms a " + keys.unit;
  HtmlReport page("What each size costs and gives", "sluice eval --budget-curve");
  page.picture(render_svg(cost), cost.title);
  page.picture(render_svg(time), time.title);
  Table table({"size", keys.quality, "cost of the largest", "time"});
  for (size_t i = 0; i < subjects.size(); ++i)
    table.row({label_of(subjects, i), fmt::format("{:.4g}", rows[i].at(keys.quality).get<double>()),
               fmt::format("{:.3f}", rows[i].at("share").get<double>()),
               format_seconds(rows[i].at(keys.seconds).get<double>())});
  page.table(table);
  page.write(path);
}

void save(const std::string& path, const std::vector<Subject>& subjects, const CurveKeys& keys,
          const Json& rows) {
  const bundle::Bundle& bundle = subjects.front().network.bundle();
  std::vector<bundle::SizeEntry> sizes = bundle.sizes();
  for (size_t i = 0; i < subjects.size(); ++i) {
    bundle::SizeEntry& entry = sizes[static_cast<size_t>(subjects[i].size)];
    for (const std::string& key : keys.kept) entry.quality[key] = rows[i].at(key).get<double>();
    // Of another length of text attention has another part of the cost.
    const double most = bundle::rows_leave(bundle.graph())
                            ? 1
                            : bundle::most_share(sizes, static_cast<size_t>(subjects[i].size));
    entry.quality[bundle::kCostShare] = std::min(most, rows[i].at("share").get<double>());
    // An expectation where inputs decide, and then of what was measured here.
    const bool exact = i + 1 == subjects.size() || !entry.quality.contains(bundle::kCostRows);
    if (!exact) entry.quality[bundle::kCostRows] = static_cast<double>(keys.measured);
    entry.quality[bundle::kSeconds] = rows[i].at(keys.seconds).get<double>();
  }
  bundle::write_with_sizes(bundle, sizes, path);
  log_line(path + ": the model with what was measured in its table of sizes");
}

}  // namespace

void add_curve_options(CLI::App& app, CurveOptions& options) {
  auto* curve = app.add_flag("--budget-curve", options.wanted,
                             "A row for every size of each model: quality against metered cost and "
                             "measured time");
  app.add_option("--picture", options.picture, "Draw the curve: a file that ends in .svg or .html")
      ->needs(curve)
      ->type_name("FILE");
  app.add_option("--save", options.save,
                 "Write the model with qualities, cost shares and times in its table of sizes, "
                 "for sluice run --budget")
      ->needs(curve)
      ->type_name("FILE");
}

std::vector<Subject> subjects_of(const std::vector<std::string>& models,
                                 const CurveOptions& options) {
  if (!options.picture.empty() && !options.picture.ends_with(".svg") &&
      !options.picture.ends_with(".html"))
    fail(Code::usage, "--picture {}: expected a file that ends in .svg or .html", options.picture);
  if (!options.save.empty() && models.size() > 1)
    fail(Code::usage, "--save takes one model, found {}", models.size());
  std::vector<Subject> subjects;
  for (const std::string& model : models) {
    const auto network = engine::Network::open(model);
    if (!options.wanted) {
      subjects.push_back({model, network, -1, ""});
      continue;
    }
    const auto& sizes = network.bundle().sizes();
    bundle::require_sizes(sizes, model);
    for (size_t i = 0; i < sizes.size(); ++i)
      subjects.push_back({model, network, static_cast<int64_t>(i), sizes[i].name});
  }
  return subjects;
}

std::string label_of(const std::vector<Subject>& subjects, size_t index) {
  const std::vector<std::string> models = models_of(subjects);
  const Subject& subject = subjects[index];
  if (subject.size < 0) return short_name(subject.model, models);
  return models.size() == 1 ? subject.name : short_name(subject.model, models) + " " + subject.name;
}

std::vector<double> shares_of(const std::vector<Subject>& subjects,
                              const std::vector<double>& costs) {
  std::vector<double> shares;
  if (costs.empty() || subjects.front().size < 0) return shares;
  for (size_t first = 0; first < subjects.size();) {  // a model's sizes stand together
    size_t end = first;
    while (end < subjects.size() && subjects[end].model == subjects[first].model) ++end;
    const std::vector<double> own = bundle::relative_costs(
        subjects[first].network.bundle().graph(),
        {costs.begin() + std::ptrdiff_t(first), costs.begin() + std::ptrdiff_t(end)});
    shares.insert(shares.end(), own.begin(), own.end());
    first = end;
  }
  return shares;
}

bool tokens_decide(const engine::Network& network) {
  return std::ranges::any_of(network.bundle().graph().nodes, [](const bundle::Node& node) {
    return node.op == "compact_rows" || node.op == "gathered_linear" || node.op == "sparse_ffn";
  });
}

std::vector<float> first_ids(const engine::Network& network, const std::string& text) {
  const bool decides = tokens_decide(network);
  size_t bytes = std::min(text.size(), decides ? kDecidingBytes : kTriedBytes);
  while (bytes > 0 && bytes < text.size() && (static_cast<uint8_t>(text[bytes]) & 0xC0) == 0x80)
    --bytes;
  auto ids = engine::text_ids(network, text.substr(0, bytes));
  ids.resize(std::min(ids.size(), decides ? kDecidingTokens : kTriedTokens));
  return {ids.begin(), ids.end()};
}

double decode_macs(const Subject& subject, const std::vector<float>& ids, int threads) {
  engine::Session session(subject.network,
                          {.batch = 1, .threads = threads, .sequences = true, .last_rows = 1});
  std::vector<float> logits(static_cast<size_t>(subject.network.output_shape().back()));
  Meter meter;
  const int64_t one = 1;
  for (const float& id : ids) {
    if (session.position(0) == session.capacity()) session.reset();
    session.run_tokens({&id, 1}, logits, {&one, 1}, {.meter = &meter, .size = subject.size});
  }
  return static_cast<double>(meter.macs()) / static_cast<double>(ids.size());
}

void finish_curve(const CurveOptions& options, const std::vector<Subject>& subjects,
                  const std::vector<double>& shares, const CurveKeys& keys, Json& rows) {
  if (!options.wanted) return;
  for (size_t i = 0; i < subjects.size(); ++i) {
    rows[i]["size"] = subjects[i].name;
    rows[i]["share"] = shares[i];
  }
  if (!options.picture.empty()) draw(options.picture, subjects, keys, rows);
  if (!options.save.empty()) save(options.save, subjects, keys, rows);
}

}  // namespace sluice::cli
#endif
