// Stages: a network cut into parts that are networks themselves, one of them put in place of
// another, and the parts made one again. For training parts alone, distilling a cheaper one for a
// place (lab/train/layerwise.h, distill.h), or combining parts of different networks.
#pragma once
#include "sluice/lab/model/model.h"

namespace sluice::lab {

/// Cuts a sequential before each of the named slots, in their order: a stage for what stands before
/// the first, one from each to the next. Stages are copies with slots of the same names; the first
/// takes the model's input, each other what the one before it gives; the last has its task. Throws
/// Error{unsupported} when the root is no sequential (a transformer has its parts under names:
/// sluice::lab::walk), Error{usage} for a slot that is not there, is named twice or out of order,
/// or is the first one, and for nested networks of several sizes.
std::vector<Model> split(const Model& model, const std::vector<std::string>& before);

/// The stages one after another, their slots in one sequential; a name that was there already gets
/// the number of its stage behind it ("conv1_2"). Input and kind of text are the first one's, task,
/// labels the last one's. assemble(split(model, ...)) is the model bit for bit. Throws Error{usage}
/// for no stages, Error{shape} naming stages and shapes where one does not take what the one before
/// it gives, Error{unsupported} as split().
Model assemble(const std::vector<Model>& stages);

/// Stage `index` of `stages` becomes `replacement`, which must take and give the same shapes
/// (Error{shape}); Error{usage} for an index that is not there.
void substitute(std::vector<Model>& stages, int64_t index, const Model& replacement);

}  // namespace sluice::lab
