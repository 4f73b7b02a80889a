#include "cli/model_data.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/table.h"

namespace sluice::cli {

std::string data_name(const DataChoice& choice, const bundle::Bundle& model) {
  if (!choice.name.empty()) {
    return choice.name;
  }
  if (!model.task().data.empty()) {
    return model.task().data;
  }
  std::string known;
  for (const std::string& name : data::image_set_names()) {
    known += (known.empty() ? "" : ", ") + name;
  }
  fail(Code::usage, "{} does not name the data it was trained on; choose with --data ({})",
       model.path(), known);
}

LabelledData load_data(const std::string& name, const DataChoice& choice) {
  const bool test = choice.split == "test";
  data::LoadOptions options{.directory = choice.directory};
  // The unused split costs time and memory to read.
  options.train_limit = test ? 1 : choice.limit;
  options.test_limit = test ? choice.limit : 1;
  data::ImageSet set = data::load_image_set(name, options);
  return {set.name, choice.split, std::move(set.labels),
          test ? std::move(set.test) : std::move(set.train)};
}

std::string short_name(const std::string& path, const std::vector<std::string>& paths) {
  const std::string name = std::filesystem::path(path).filename().string();
  const auto same = std::count_if(paths.begin(), paths.end(), [&](const std::string& other) {
    return std::filesystem::path(other).filename().string() == name;
  });
  return same > 1 ? path : name;
}

std::string format_macs(double macs) { return format_count(std::llround(macs)); }

}  // namespace sluice::cli
