// Which rows the values of a graph have. compact_rows(x, keep) packs the rows with keep > 0 to the
// front; from there to scatter_rows the others are gone, and how many are left is known only at run
// time. All values made from one `keep` have the same rows in the same order: a row set, named
// after that value.
//
// A row of a set is a row of [T, ..] where keep has T numbers, and a whole sample where it has one.
// Between samples that left every operator may stand; between rows only those that take each row by
// itself or are told whose rows they are (Operator::rows).
#pragma once
#include <map>
#include <string>

#include "sluice/bundle/ops.h"

namespace sluice::bundle {

struct RowSet {
  std::string parent;      ///< the set that was compacted; empty: all rows
  int64_t per_sample = 1;  ///< rows of a sample when none has left; 1: the rows are samples
};

struct RowSets {
  std::map<std::string, RowSet> sets;     ///< by name of the keep value
  std::map<std::string, std::string> of;  ///< value -> set; values that are not here have all rows
};

/// `attention` whose queries are some of the keys' rows (input 4 is the `keep` that left them).
bool attends_from_some(const Node& node);

/// The rule of a node whose shapes and tensors have been checked.
Rows rows_rule(const Node& node, const std::map<std::string, Shape>& shapes,
               const std::map<std::string, TensorSpec>& tensors);

/// Enters the node's output. Throws Error{shape} naming `what` and the node when it mixes rows that
/// are not together any more; then nothing is changed.
void add_rows(const Node& node, const std::map<std::string, Shape>& shapes,
              const std::map<std::string, TensorSpec>& tensors, const std::string& what,
              RowSets& rows);

/// Outputs of a graph have all rows. Throws Error{shape}.
void require_all_rows(const std::string& output, const std::string& what, const RowSets& rows);

}  // namespace sluice::bundle
