// What the engine makes of a router: tokens per second, and whether the meter tells the truth.
#pragma once
#include "recipes/dynamic/duo-llm/plan.h"

namespace sluice::recipes::duo_llm {

/// What race_decoding() adds (recipes/engine_race.h) of all-big, and with "_at_B" of the router
/// with budget B; prefill_per_second: tokens of whole windows, one thread. meter_difference of the
/// arm router: the largest difference between the MACs that the lab's meter counted in the slots
/// and those that the engine executed reading a window, over the former.
void measure_routing(RecipeRun& run, const DuoPlan& plan, const lab::Model& model,
                     const std::vector<lab::Model>& routed, const Windows& test);

}  // namespace sluice::recipes::duo_llm
