// What eval, run and bench share: a model with its name, and the labelled data it is tried on.
#pragma once
#include <string>

#include "sluice/bundle/bundle.h"
#include "sluice/data/dataset.h"

namespace sluice::cli {

struct DataChoice {
  std::string name;       ///< "": what the bundle's task names
  std::string directory;  ///< "": the data set's own place
  std::string split = "test";
  int64_t limit = 0;  ///< first n samples; 0 all
};

struct LabelledData {
  std::string name, split_name;
  std::vector<std::string> labels;
  data::Split split;
};

/// Name of the data set to use for `model`; throws Error{usage} when neither says.
std::string data_name(const DataChoice& choice, const bundle::Bundle& model);
LabelledData load_data(const std::string& name, const DataChoice& choice);

/// "model.safetensors" of a path, or the whole path when another of `paths` has the same file name.
std::string short_name(const std::string& path, const std::vector<std::string>& paths);

/// 123456 -> "123 k"; fractions of metered averages kept short.
std::string format_macs(double macs);

}  // namespace sluice::cli
