#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/rows.h"

namespace sluice::engine {
namespace {

void plan_l2_normalize(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  step.inputs = {planner.fetch(group.inputs[0], Layout::plain)};
  const Shape& shape = planner.shape_of(step.inputs[0]);
  const size_t width = static_cast<size_t>(shape.back()),
               each = static_cast<size_t>(numel(shape)) / width;
  const float eps =
      static_cast<float>(bundle::attr_double(planner.node(index).attrs, "eps", 1e-12));
  step.kernel = row_kernel(
      "sluice l2_normalize", planner.options().samples,
      [=](const float* x, const float*, float* out, size_t rows) {
        l2_normalize(x, eps, out, rows * each, width);
      },
      0);
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

std::vector<PlanEntry> text_steps() { return {{"l2_normalize", plan_l2_normalize}}; }

}  // namespace sluice::engine
