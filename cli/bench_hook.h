// How bench, which never sees LibTorch, times LibTorch's forward of the same model beside the
// engine's: the lab side of the CLI registers a factory when it is linked in.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace sluice::cli {

struct LabForward {
  std::function<void()> run;  ///< one forward of the batch
  std::vector<float> output;  ///< of that batch, for comparison
};

/// An empty `run` when the bundle does not say how to rebuild its bricks.
using LabForwardFactory = LabForward (*)(const std::string& path, std::span<const float> input,
                                         int64_t batch, int threads);

bool register_lab_forward(LabForwardFactory factory);
/// nullptr in an engine-only build.
LabForwardFactory lab_forward();

}  // namespace sluice::cli
