// Imported transformers as the bricks of training code: names of nodes and tensors become the paths
// that docs/architecture.md lists, and sluice.model says how the bricks are rebuilt.
#pragma once
#include <cstdint>
#include <string>

#include "sluice/base/json_fwd.h"
#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

/// "model.layers.3.self_attn.q_proj" -> "blocks.3.attn.q". Names of no known family stay.
std::string brick_path(const std::string& name);

/// The same for tensors: "wte.weight" -> "embed.weight".
std::string brick_tensor(const std::string& name);

/// Renames all nodes and tensors of a graph whose importer kept the names of Hugging Face.
void rename_to_brick_paths(Builder& builder);

/// The description of a graph that is a decoder or a text encoder of brick paths, as
/// sluice.model holds it; null when it has a node that no brick stands for. `context`: most
/// positions of a sequence.
Json describe_bricks(const Builder& builder, int64_t context);

}  // namespace sluice::bundle
