// What the engine makes of a router: tokens per second, and whether the meter tells the truth.
#pragma once
#include "recipes/dynamic/duo-llm/plan.h"

namespace sluice::recipes::duo_llm {

/// Decoding one token at a time on one thread, and reading whole windows: tokens_per_second,
/// prefill_per_second and macs_per_token (executed) of all-big, and with "_at_B" those of the
/// router with budget B. meter_difference of the arm router: the largest difference between the
/// MACs that the lab's meter counted in the slots and those that the engine executed, over the
/// former.
void measure_routing(RecipeRun& run, const DuoPlan& plan, const lab::Model& model,
                     const std::vector<lab::Model>& routed, const Windows& test);

}  // namespace sluice::recipes::duo_llm
