// What `sluice inspect` shows: the bricks as a tree with shapes, formats, parameters, MACs,
// sparsity, provenance.
#pragma once
#include <string>

#include "sluice/base/json_fwd.h"
#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

struct DescribeOptions {
  int depth = -1;        ///< tree levels shown; -1 all
  bool sparsity = true;  ///< reads every weight to count zeros
};

/// Tree of the dotted paths; each inner row sums its children. Works on a bundle...
std::string describe_text(const Bundle& bundle, const DescribeOptions& options = {});
Json describe_json(const Bundle& bundle, const DescribeOptions& options = {});
/// ...and on any safetensors file (tensor names as paths; no MACs).
std::string describe_text(const SafetensorsFile& file, const DescribeOptions& options = {});
Json describe_json(const SafetensorsFile& file, const DescribeOptions& options = {});

}  // namespace sluice::bundle
