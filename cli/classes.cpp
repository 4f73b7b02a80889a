#include "cli/classes.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sluice/base/json.h"
#include "sluice/base/table.h"

namespace sluice::cli {
namespace {

void to_probabilities(std::vector<float>& values, const bundle::Graph& graph) {
  if (!graph.nodes.empty() && graph.nodes.back().op == "softmax") {
    return;
  }
  const float largest = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (float& value : values) {
    value = std::exp(value - largest);
    sum += value;
  }
  for (float& value : values) {
    value = static_cast<float>(value / sum);
  }
}

}  // namespace

std::string class_name(const std::vector<std::string>& labels, int64_t index) {
  return index < static_cast<int64_t>(labels.size()) ? labels[static_cast<size_t>(index)]
                                                     : fmt::format("class {}", index);
}

std::vector<Class> classes_of(const bundle::Bundle& bundle, std::vector<float> output,
                              int64_t top) {
  to_probabilities(output, bundle.graph());
  std::vector<int64_t> order(output.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return output[static_cast<size_t>(a)] > output[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(std::max<int64_t>(1, top))));
  std::vector<Class> classes;
  for (const int64_t index : order)
    classes.push_back(
        {index, class_name(bundle.task().labels, index), output[static_cast<size_t>(index)]});
  return classes;
}

Json classes_json(const std::vector<Class>& classes) {
  Json json = Json::array();
  for (const Class& each : classes)
    json.push_back(
        {{"index", each.index}, {"label", each.label}, {"probability", each.probability}});
  return json;
}

std::string classes_text(const std::vector<Class>& classes) {
  Table table({"class", "probability"});
  for (const Class& each : classes)
    table.row({each.label, fmt::format("{:.1f} %", 100 * each.probability)});
  return table.text();
}

}  // namespace sluice::cli
