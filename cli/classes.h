// The most probable classes of an output, as `sluice run` shows them for pictures and texts.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/bundle/bundle.h"

namespace sluice::cli {

struct Class {
  int64_t index;
  std::string label;
  double probability;
};

std::string class_name(const std::vector<std::string>& labels, int64_t index);
/// Logits become probabilities, unless the graph ends in a softmax of its own.
/// The `top` most probable (at least one), most probable first.
std::vector<Class> classes_of(const bundle::Bundle& bundle, std::vector<float> output, int64_t top);
Json classes_json(const std::vector<Class>& classes);
std::string classes_text(const std::vector<Class>& classes);

}  // namespace sluice::cli
