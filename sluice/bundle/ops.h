// The operator table: one entry per node kind the graph may use. Adding an operator = an entry in
// the table of its family (ops_<family>.cpp: checked shapes and cost), a plan function in
// engine/graph/steps_<family>.cpp, a reference in engine/kernel/reference_<family>.cpp, a line in
// docs/formats.md, which lists inputs, tensors and attributes of all of them.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/bundle/graph.h"

namespace sluice::bundle {

struct OpInput {
  const Node& node;
  std::span<const Shape> inputs;                     ///< per-sample shapes
  const std::map<std::string, TensorSpec>& tensors;  ///< by role, already looked up
};

/// How a node treats the rows of a [T, ..] value: what may stand between compact_rows and
/// scatter_rows (rows.h).
enum class Rows : uint8_t {
  mixed,    ///< looks at several rows, or at all: needs every row in its place
  apart,    ///< each row by itself, the same for all
  ordered,  ///< each row by itself, but with its index in the sequence
  grouped,  ///< told which rows belong to which sample
  pooled    ///< grouped, with one row per sample as the result
};

struct Operator {
  std::string_view name;
  size_t min_inputs, max_inputs;
  std::vector<std::string_view> required_tensors, optional_tensors;
  std::vector<std::string_view> attributes;  ///< known ones; others are refused
  /// Output shape; throws Error{shape} (message without the node's name: the caller adds it).
  Shape (*shape)(const OpInput&);
  int64_t (*macs)(const OpInput&, const Shape& output);
  Rows (*rows)(const OpInput&) = nullptr;  ///< nullptr: mixed
  /// Roles whose tensor may be in any format of packed.h; all others are f32.
  std::vector<std::string_view> packed_tensors = {};
};

/// nullptr when unknown.
const Operator* find_operator(std::string_view name);
std::span<const Operator> all_operators();

}  // namespace sluice::bundle
