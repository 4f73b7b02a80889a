// What networks with exits have in common: at which score a row leaves at each exit, by size of the
// network. A size is a vector of thresholds, so that one file offers several costs (run --budget);
// lab/pass/calibrate_exits.cpp chooses them from data.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sluice/lab/brick/brick.h"
#include "sluice/lab/gate/confidence_exit.h"

namespace sluice::lab {

/// By exit: rows whose score is at least that leave, and so do those whose score is not a number;
/// nullopt: the exit is closed, neither its head nor its gate runs.
using ExitThresholds = std::vector<std::optional<double>>;

/// A root whose rows (samples, or the tokens of a decoder) leave at exits.
class ExitNetwork {
 public:
  virtual ~ExitNetwork() = default;
  /// Places where the network may be left before its end; at least one.
  virtual int64_t exit_count() const = 0;
  /// What an exit is called in reports.
  virtual std::string exit_name(int64_t index) const = 0;
  /// What each exit's gate and head, and at the end the last head, say of every row when nobody
  /// leaves: scores and first choices [rows, exits + 1]; the last column of scores is 0.
  virtual DepthTable exit_table(const at::Tensor& x, Context& context) const = 0;
  /// Mean multiply-accumulates of a row of inputs of that shape that leaves at each exit, the last
  /// entry at the end, when the exits in `open` run. Before anything is metered: to choose by.
  virtual std::vector<double> exit_costs(const Shape& input,
                                         const std::vector<bool>& open) const = 0;
  /// Whether exits may be closed one by one, and not only all of them.
  virtual bool closes_single_exits() const { return true; }

  /// One entry per size, the last with every exit closed: the whole network. Empty: not told.
  const std::vector<ExitThresholds>& exit_sizes() const { return sizes_; }
  /// Throws Error{config} for one size or more than 256, entries of another length than
  /// exit_count(), numbers that are not finite, and a last size with an open exit.
  void set_exit_sizes(std::vector<ExitThresholds> sizes);

 protected:
  /// The thresholds that the context's size asks for; of no sizes, null.
  const ExitThresholds* thresholds_for(const Context& context, std::string_view kind) const;
  void check_exit_sizes(const std::vector<ExitThresholds>& sizes) const;
  /// Whether an exit is open at some size.
  bool ever_open(size_t exit) const;
  /// Lists for nodes: 1 where the exit is closed, else 0; what a score's negative is compared with.
  std::vector<int64_t> closed_list(size_t exit) const;
  std::vector<double> threshold_list(size_t exit) const;

  std::vector<ExitThresholds> sizes_;
};

/// "thresholds": [[0.9, null], [null, null]] of a brick's attributes; empty when there are none.
Json exit_sizes_json(const std::vector<ExitThresholds>& sizes);
std::vector<ExitThresholds> read_exit_sizes(const Json& attributes, std::string_view kind);

}  // namespace sluice::lab
