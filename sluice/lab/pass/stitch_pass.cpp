// Pass stitch: this network and others, one network that runs at every size in between.
#include <algorithm>

#include "sluice/base/json.h"
#include "sluice/lab/pass/stitch.h"

namespace sluice::lab {
namespace {

const std::string kStitch = "pass stitch";

std::vector<std::string> files_of(const Json& options) {
  const auto with = options.find("with");
  if (with == options.end()) {
    fail(Code::usage, "{}: with is missing: the file of another network, or a list of files",
         kStitch);
  }
  std::vector<std::string> files;
  if (with->is_string()) {
    files.push_back(with->get<std::string>());
  } else {
    files = json_get<std::vector<std::string>>(options, "with", kStitch);
  }
  if (files.empty()) fail(Code::usage, "{}: with: expected one file or more", kStitch);
  return files;
}

}  // namespace

Json stitch_pass(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"with", "window", "stride", "seed", "ridge"}, kStitch);
  StitchOptions options;
  options.window = json_get_or<int64_t>(input.options, "window", options.window, kStitch);
  options.stride = json_get_or<int64_t>(input.options, "stride", options.stride, kStitch);
  options.seed = static_cast<uint64_t>(json_get_or<int64_t>(input.options, "seed", 1, kStitch));
  const auto ridge = json_get_or<double>(input.options, "ridge", 1e-4, kStitch);
  if (!(ridge >= 0 && ridge <= 1e6)) {
    fail(Code::config, "{}: ridge: expected 0 or more, found {}", kStitch, ridge);
  }
  struct Anchor {
    std::string name;
    Model model;
  };
  std::vector<Anchor> anchors;
  anchors.push_back({"the network itself", std::move(model)});
  for (const std::string& file : files_of(input.options)) {
    anchors.push_back({file, load_model(file)});
    anchors.back().model.root->to(device_of(*anchors.front().model.root));
    anchors.back().model.root->train(anchors.front().model.root->is_training());
  }
  for (const Anchor& anchor : anchors) {
    if (!anchor.model.sizes.empty()) {
      fail(Code::usage, "{}: {} has {} sizes already; keep one of it first (pass pick-size)",
           kStitch, anchor.name, anchor.model.sizes.size());
    }
  }
  std::stable_sort(anchors.begin(), anchors.end(), [](const Anchor& a, const Anchor& b) {
    return a.model.cost().macs < b.model.cost().macs;
  });
  Json names = Json::array();
  std::string order;
  std::vector<Model> models;
  for (Anchor& anchor : anchors) {
    order += fmt::format("{}anchor {} is {}", names.empty() ? "" : ", ", names.size(), anchor.name);
    names.push_back(anchor.name);
    models.push_back(std::move(anchor.model));
  }
  Model stitched;
  std::map<std::string, double> residuals;
  try {
    stitched = stitch(models, options);
    residuals = fit_stitches(stitched, input, ridge);
  } catch (const Error& error) {
    fail(error.code(), "{}: {} ({})", kStitch, error.what(), order);
  }
  Json paths = Json::object();
  for (const bundle::SizeEntry& size : stitched.sizes) {
    const auto found = residuals.find(size.name);
    paths[size.name] = {{"macs", size.macs},
                        {"residual", found == residuals.end() ? 0.0 : found->second}};
  }
  const auto count = stitched.sizes.size();
  model = std::move(stitched);
  return {{"anchors", std::move(names)},
          {"sizes", count},
          {"samples", input.calibration.size(0)},
          {"layers", std::move(paths)}};
}

}  // namespace sluice::lab
