// sluice import for ONNX files.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cli/verb.h"

namespace sluice::cli {

struct OnnxChoice {
  std::vector<std::string> inputs, values, carries, outputs;  ///< as typed
  std::string task, labels, weights = "f32";
  std::string activations = "f32";  ///< --activations, which all kinds of files have
  std::optional<double> mean, std;
  bool bgr = false;
  bool given() const;
};

void add_onnx_options(CLI::App& app, OnnxChoice& choice);
int import_onnx_model(const std::string& source, const std::string& output,
                      const OnnxChoice& choice, const Globals& globals);

}  // namespace sluice::cli
