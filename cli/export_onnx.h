// sluice export --format onnx.
#pragma once
#include <string>

#include "cli/verb.h"

namespace sluice::cli {

int export_onnx_model(const std::string& source, const std::string& output, const Globals& globals);

}  // namespace sluice::cli
