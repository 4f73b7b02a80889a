#pragma once
#include "sluice/engine/graph/steps.h"

namespace sluice::engine {

void plan_linear(Planner& planner, size_t index, Step step);

}  // namespace sluice::engine
