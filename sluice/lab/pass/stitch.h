// Trained networks of different sizes made one (SN-Net: Pan, Cai & Zhuang, CVPR 2023, arXiv
// 2302.06586): every way from a smaller into the next larger one is a size of the result, which the
// trainer draws from (SizeSampler) and the engine runs by number.
#pragma once
#include "sluice/lab/brick/stitch.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

struct StitchOptions {
  /// Blocks of a window that slides over both networks of a pair; a block of the first leads into
  /// each block of the second in its window. Positions that first appear in the same window share a
  /// stitch.
  int64_t window = 2, stride = 1;
  uint64_t seed = 1;  ///< of the stitches' first values: uniform in +-1/sqrt(inputs), bias 0
};

/// From a block of one network into a block of the next, within one stage; blocks count from 0.
struct StitchPosition {
  int64_t out = 0, into = 0, group = 0;  ///< positions of one group share a stitch
  bool operator==(const StitchPosition&) const = default;
};
/// Positions of a stage with `front` blocks in one network and `end` in the other. As many: by
/// sliding windows, |out - into| < window. Else blocks of the second are mapped to those of the
/// first by the nearest index; (i, j) where j is mapped to i and i < j, a stitch each. Throws
/// Error{config} for a window below 1 or above the blocks, or a stride outside 1 .. window.
std::vector<StitchPosition> stitch_positions(int64_t front, int64_t end,
                                             const StitchOptions& options);

/// Anchors in order of their cost, all of one task, input, tokenizer and kind; copies of them go
/// into a StitchedModel with fresh stitches, each leading into the next (small to large). Stages
/// are runs of blocks over the same places (rows of a transformer, height and width of a picture),
/// and only blocks of the same stage are stitched, where the places that a block gives are those
/// that the other takes. Model::sizes has a path each: by MACs, the largest anchor alone last.
/// Throws Error{usage} for fewer than two anchors or another order, Error{shape} naming both where
/// inputs, classes, stages or places differ, Error{config} for a window or stride that no stage has
/// room for, Error{unsupported} for networks that have no chain of blocks (BlockChain).
Model stitch(const std::vector<Model>& anchors, const StitchOptions& options = {});

/// Sets every stitch to the least-squares map from what its block gives to what the other network's
/// block takes, over input.calibration; of several positions that share a stitch, to the mean of
/// their maps. Returns by name of the path what the map of this position alone leaves (residual:
/// LinearFit). Throws Error{usage} without calibration, Error{unsupported} for a model that is not
/// stitched.
std::map<std::string, double> fit_stitches(Model& model, const PassInput& input,
                                           double ridge = 1e-4);

/// Pass stitch {with, window=2, stride=1, seed=1, ridge=1e-4}: this network and those of the file
/// or files `with` become one, whose sizes are each of them and every way from a cheaper into the
/// next dearer one: ordered by cost, stitches fitted over the calibration inputs. Report: anchors
/// (by cost), sizes, samples, layers {size: {macs, residual: what the map leaves of the features}}.
Json stitch_pass(Model& model, const PassInput& input);

/// The root of a stitched model; Error{unsupported} for another.
StitchedModel& stitched_root(const Model& model);

}  // namespace sluice::lab
