// Internal: what Gate checks between its parts.
#pragma once
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

/// Throws Error{config} when a decision's k exceeds `units`.
void require_units(const Json& decision, int64_t units);

}  // namespace sluice::lab
