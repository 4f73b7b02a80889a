// Recording what bricks give during a forward.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "sluice/lab/brick/context.h"

namespace sluice::lab {

/// Keeps the outputs (or inputs) of the slots whose paths match one of the patterns, with their
/// gradients' history; of a slot that runs more than once, the last.
///
///   Recorder recorder({"blocks.*.ffn"});
///   context.watcher = &recorder;
///   model.forward(x, context);
///   recorder.records().at("blocks.0.ffn")
class Recorder final : public SlotWatcher {
 public:
  enum class What : uint8_t { outputs, inputs };
  explicit Recorder(std::vector<std::string> patterns, What what = What::outputs)
      : patterns_(std::move(patterns)), what_(what) {}

  void after(const std::string& path, const Brick& brick, const at::Tensor& x,
             at::Tensor& y) override;
  const std::map<std::string, at::Tensor>& records() const { return records_; }

 private:
  std::vector<std::string> patterns_;
  What what_;
  std::map<std::string, at::Tensor> records_;
  std::map<std::string, bool> wanted_;  ///< by path, once matched
};

}  // namespace sluice::lab
