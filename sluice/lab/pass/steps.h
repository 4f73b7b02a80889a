// Internal: what several passes do.
#pragma once
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

/// Puts every module of a brick into evaluation mode and gives each its own mode back.
class EvaluationMode {
 public:
  explicit EvaluationMode(Brick& root);
  ~EvaluationMode();
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  Brick& root_;
  bool training_;
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, bool>> modes_;
};

/// Calls `visit` for the calibration inputs batch by batch, on the model's device, without
/// gradients. Throws Error{usage} naming `pass` when there are none, Error{shape} when they do not
/// fit.
void for_each_calibration_batch(const Model& model, const PassInput& input, const std::string& pass,
                                const std::function<void(const at::Tensor& x)>& visit);

/// The mode and device of `like`, for a brick that takes its place or sits beside it.
BrickPtr placed_like(BrickPtr brick, const Brick& like);

struct BrickRef {
  std::string path;
  BrickPtr brick;
};
/// `root` (path "") and every brick below it, parents first.
std::vector<BrickRef> all_bricks(const Model& model);

/// Puts units `keep` (int64 indices) of a group, in that order, in place of all: rows of its
/// producers, channels of its carriers, columns of its consumers.
void slice_group(Brick& owner, const ChannelGroup& group, const at::Tensor& keep);

/// The pattern matches the path itself or one of `inner` below it.
bool matches_any(const std::string& pattern, const std::string& path,
                 const std::vector<std::string>& inner);

}  // namespace sluice::lab
