// The sub-networks of a nested network: which there may be, which a bundle offers, what each costs.
//
// A SubnetSpace says what can be chosen: a share of the units for each group of layers (knob), and
// how many blocks run. A Subnet is one choice. set_sizes() makes a list of them the sizes of a
// network, in the order of their cost; from then on Context::size and RunOptions::size count in
// that list. Nothing of this touches a weight, so that the same trained network can be given other
// sizes at any time, also mixtures that it was never trained as.
#pragma once
#include "sluice/lab/model/model.h"

namespace sluice::lab {

struct PassInput;

struct Subnet {
  std::vector<int64_t> levels;  ///< for each knob an index into SubnetSpace::widths
  int64_t depth = 0;            ///< an entry of SubnetSpace::depths; 0: there are none
  bool operator==(const Subnet&) const = default;
};

struct SubnetSpace {
  std::vector<double> widths = {1.0};       ///< shares of the units, ascending, the last is 1
  std::vector<std::string> knobs = {"**"};  ///< path patterns; a layer follows the first that fits
  std::vector<int64_t> depths;  ///< blocks that run, ascending, the last are all; empty: always all
  int64_t multiple = 1;         ///< units that stay together (groups of a norm, of a kernel)

  /// Throws Error{config} naming the field and the entry when one is out of range or of order.
  void check() const;
  Subnet full() const;
  /// One width for all knobs, every width with every depth.
  std::vector<Subnet> uniform() const;
  /// Mix'n'Match (MatFormer: Devvrit et al. 2023): levels that do not fall from knob to knob and
  /// are neighbours, so that the last k knobs are one level above the others: for every budget the
  /// mixtures with the least slope, uniform ones included, cheapest first where knobs cost alike.
  /// Throws Error{usage} for fewer than two knobs (in the order of the layers), and with depths.
  std::vector<Subnet> graded() const;
  /// Every combination of levels and depths. Throws Error{limit} above 256.
  std::vector<Subnet> all() const;
  /// "w25-d4", "w12.5", and with several knobs a letter for each level: "mabcc-d4".
  std::string encode(const Subnet& subnet) const;
  /// The reverse. Throws Error{usage} naming what there is.
  Subnet decode(const std::string& name) const;
  /// How many of `units` are the share: Error{shape} naming `path` when that is no whole number of
  /// multiples, because it would cut a channel, a head or a group.
  int64_t units(double share, int64_t units, const std::string& path) const;
};

/// One knob for each block of a transformer: "blocks.0.**", ... Throws Error{unsupported} for other
/// networks, Error{limit} for more blocks than there may be knobs.
std::vector<std::string> block_knobs(const Model& model);

/// Gives the nested bricks of `model` these sizes, cheapest first, and fills Model::sizes with
/// their names and with MACs per sample as metered. The whole network must be among them. Batch
/// norm statistics of sizes are not measured here: pass reestimate-norm does it. Throws
/// Error{unsupported} when the model has no nested brick, Error{usage} for a subnet that is there
/// twice or is not in the space, Error{shape} where layers do not fit together. On an exception the
/// model may be half-changed.
void set_sizes(Model& model, const SubnetSpace& space, std::vector<Subnet> subnets);

/// Pass set-sizes {widths=[0.25,0.5,0.75,1], depths=[], multiple=1,
/// knobs="one"|"blocks"|[patterns], mixtures="uniform"|"graded"|"all", sizes=[names]}: another
/// table of sizes for a nested network, over the same weights: widths per block that it was never
/// trained as, say (Mix'n'Match). Knobs "blocks" are block_knobs(); named sizes stand in place of
/// mixtures; the whole network is always one. Pass nest takes knobs and mixtures, too. Report:
/// sizes [{name, macs}].
Json set_sizes(Model& model, const PassInput& input);

/// Which sizes each training step runs; the trainer averages their gradients.
struct SizeSampler {
  std::string kind = "uniform";  ///< "uniform": `draws` at random, each by itself; "all";
                                 ///< "sandwich": smallest, whole, and `draws` - 2 at random
  int64_t sizes = 1;
  int64_t draws = 2;
  uint64_t seed = 1;

  /// Throws Error{config} for another kind, and fewer draws than it needs.
  void check() const;
  /// Ascending, a size may be there twice; a function of (seed, step).
  std::vector<int64_t> at_step(int64_t step) const;
};

}  // namespace sluice::lab
