// sluice bench kernels: the engine's kernels against libraries and the limits of the machine.
#pragma once
#include "cli/verb.h"

namespace sluice::cli {

/// Declares `kernels` below `bench`; the returned action runs it when it was asked for.
CLI::App* add_bench_kernels(CLI::App& bench, Action& action);

}  // namespace sluice::cli
