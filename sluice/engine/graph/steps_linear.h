#pragma once
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/block_sparse.h"

namespace sluice::engine {

void plan_linear(Planner& planner, size_t index, Step step);

/// How the zeros of the group's weight [out, in] are best skipped over `rows` rows of `in` values.
SparseChoice pruned_choice(const Planner& planner, size_t index, int64_t rows, int64_t in);
/// Plans that, `choice` not dense: the step's input is fetched already and lies, as addend and
/// output will, in `layout`.
void plan_pruned(Planner& planner, size_t index, Step step, int64_t rows, int64_t in, Layout layout,
                 SparseChoice choice);

}  // namespace sluice::engine
