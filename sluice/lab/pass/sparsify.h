// Activation sparsity without training: each projection of attention and feed-forward layers reads
// only the inputs that matter for the token. WINA (arXiv 2505.19427) scores an input by |x_j| times
// the norm of the weight's column j, TEAL (arXiv 2408.14690) by |x_j| alone.
#pragma once
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "sluice/lab/gate/selector.h"
#include "sluice/lab/inspect/histogram.h"
#include "sluice/lab/pass/allocate.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

class Linear;
class SparseLinear;

inline constexpr char kSparsify[] = "sparsify-activations",
                      kSparsifyPass[] = "pass sparsify-activations";

/// The slot of the only brick whose path is `path`.
Slot& slot_of(Model& model, const std::string& path);

/// [inputs] factors >= 0 of a projection's input scores; undefined: all 1.
using InputFactors = std::function<at::Tensor(const std::string& path, const Linear& layer)>;

/// ||W[:, j]||_2 of a layer: [inputs].
at::Tensor column_norms(const Linear& layer);

/// The sparsity itself. Throws Error{config} unless it is at least 0 and below 1.
double require_sparsity(double sparsity);

struct SparsifyOptions {
  std::string slots = "**";  ///< which projections, by path pattern
  bool exact = false;        ///< top-k per token; else a threshold per projection
  int64_t dense_first = 1;   ///< tokens at the front of a text that keep everything
  GreedyOptions greedy;
  int64_t greedy_samples = 20;  ///< calibration runs that the greedy search looks at
  double greedy_tail = 0.25;    ///< share of their last positions in the error
};

/// Sparsifies clones of one model at any number of levels; what calibration has to see is looked at
/// once.
class ActivationSparsifier {
 public:
  /// Finds the projections (q, k, v, o of attention, gate, up, down of feed-forward layers) and
  /// runs the calibration inputs. Throws Error{usage} when there are none under options.slots or no
  /// calibration inputs, Error{unsupported} for projections that are no ordinary linear layers or
  /// whose inputs are masked by a gate, Error{numeric} for scores that are NaN.
  ActivationSparsifier(const Model& model, const PassInput& input, SparsifyOptions options,
                       const InputFactors& factors);

  /// In the order of the model.
  const std::vector<std::string>& paths() const { return paths_; }
  const std::vector<double>& sizes() const { return sizes_; }  ///< weights of each
  const std::map<std::string, at::Tensor>& factors() const { return factors_; }

  /// One level for all. Throws Error{config} outside [0, 1).
  std::vector<double> uniform(double sparsity) const;
  /// Levels per target, each of mean `target` over the sizes of every block's projections: in each
  /// block by greedy allocation so that the block's output changes least. Targets ascend.
  std::vector<std::vector<double>> greedy(std::span<const double> targets) const;

  /// A clone of the model with sparse layers where the level is above 0: level p leaves out a share
  /// p of the inputs. Top-k keeps floor((1 - p) n), at least one.
  Model at(std::span<const double> levels) const;
  /// One clone with a size per entry of `levels`, the last 0 everywhere: the whole network. Sizes
  /// are called "keepNN" by their share of inputs in percent, `keep` giving it, the last "dense".
  /// Throws Error{unsupported} for a model that has sizes already.
  Model at_sizes(const std::vector<std::vector<double>>& levels,
                 const std::vector<double>& keep) const;

 private:
  struct Block;
  std::vector<Block> blocks() const;
  Selector selector(size_t index, int64_t inputs, double level) const;
  std::shared_ptr<SparseLinear> sparse(const Linear& layer, size_t index, double level) const;

  Model model_;  ///< a clone, in evaluation mode
  PassInput input_;
  SparsifyOptions options_;
  std::vector<std::string> paths_;
  std::vector<double> sizes_;
  std::map<std::string, at::Tensor> factors_;
  std::map<std::string, ScoreHistogram> histograms_;
};

/// Share of the inputs that each sparse layer of the model keeps on the calibration inputs, by path
/// (dense_first included), metered at that size of the network.
std::map<std::string, double> kept_shares(Model& model, const PassInput& input,
                                          const std::string& pass, int64_t size = -1);
/// Writes into the table of a model's sizes what each spends on the calibration inputs, metered, of
/// what the last spends.
void measure_shares(Model& model, const PassInput& input, const std::string& pass);

}  // namespace sluice::lab
