// Internal: how much the units of a channel group matter, for pruning and for the order of nesting.
#pragma once
#include <map>

#include "sluice/lab/pass/steps.h"

namespace sluice::lab {

/// [channels] double, CPU: mean |w| of a unit in the producers, so that layers of different fan-in
/// compare. Of neurons and heads, which act through a product, times that in what reads them; of
/// the producers of a head only the values count: queries and keys choose, they do not carry.
at::Tensor magnitude_importance(const Brick& owner, const ChannelGroup& group);

/// Paths of the layers that read the group. Throws Error{unsupported} for one that is not linear.
std::vector<std::string> reader_paths(const BrickRef& owner, const ChannelGroup& group);
/// Mean squares of the inputs of the layers at `paths`, column by column, over the calibration
/// inputs. Throws as for_each_calibration_batch, naming `pass`.
std::map<std::string, at::Tensor> input_squares(Model& model, const PassInput& input,
                                                const std::vector<std::string>& paths,
                                                const std::string& pass);
/// [channels] double, CPU: what a unit adds to the layers that read it, by calibration inputs: root
/// of its mean square times the norm of its columns there (structured Wanda: Sun et al. 2024).
/// `squares` has reader_paths().
at::Tensor activation_importance(const BrickRef& owner, const ChannelGroup& group,
                                 const std::map<std::string, at::Tensor>& squares);

}  // namespace sluice::lab
