// Leaving a network where it is sure enough: thresholds of confidence per depth, and their
// calibration (Sorted LLaMA: Kavehzadeh et al. 2023, arXiv 2309.08968, instance-aware inference).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace sluice::lab {

/// What every depth says of every row: the probability of its first choice, and that choice.
struct DepthTable {
  at::Tensor confidence;  ///< [rows, depths] in 0 .. 1
  at::Tensor choice;      ///< [rows, depths] int64
};

/// Of logits [rows, depths, V].
DepthTable depth_table(const at::Tensor& logits);

/// [rows] int64: the first depth whose confidence is at least its threshold, else the last; one
/// threshold for each depth but the last. Throws Error{shape} for another number.
at::Tensor exit_depths(const DepthTable& table, const std::vector<double>& thresholds);

/// [rows] int64: the choice of the depth that each row leaves at.
at::Tensor exit_choices(const DepthTable& table, const at::Tensor& depths);

/// For each depth but the last the lowest threshold at which at most a share `risk` of the rows
/// that leave there choose otherwise than the last depth does; rows that an earlier depth lets go
/// do not count. Above 1 (nobody leaves) where there is none. Throws Error{config} for a risk
/// outside 0 .. 1, Error{shape} for tables that do not fit.
std::vector<double> calibrate_exits(const DepthTable& table, double risk);

}  // namespace sluice::lab
