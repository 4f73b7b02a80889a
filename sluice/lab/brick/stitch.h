// Stitched networks: trained networks of different sizes with layers between them, so that a run
// may begin in one and end in the next (SN-Net: Pan, Cai & Zhuang, CVPR 2023, arXiv 2302.06586).
// lab/pass/stitch.h makes them.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// What leads from the features of one network to those of another: y = W x + b for each row of
/// [.., inputs], or, over "pixels", for each place of [inputs, H, W] (a 1 x 1 convolution).
class Stitch final : public Brick {
 public:
  Stitch(int64_t inputs, int64_t outputs, bool pixels);
  std::string kind() const override { return "stitch"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  /// The same under another path of the node; the tensors keep `path`. A stitch may stand at
  /// several places.
  bundle::Value lower_at(bundle::Builder& builder, const bundle::Value& x, const std::string& path,
                         const std::string& node) const;
  /// W [outputs, inputs] and b [outputs], of any type and device.
  void set_values(const at::Tensor& w, const at::Tensor& b);
  int64_t inputs() const { return weight.size(1); }
  int64_t outputs() const { return weight.size(0); }
  bool pixels() const { return weight.dim() == 4; }

  at::Tensor weight, bias;  ///< [outputs, inputs] or [outputs, inputs, 1, 1]; [outputs]
};

/// A network as a chain: what comes before its blocks, the blocks, what comes after them. A vision
/// transformer (patches and positions; blocks; norm, pooling, head), a transformer for text (table
/// and positions; blocks; norm, head or pooling), or a sequential whose residual blocks follow each
/// other, in nested sequentials ("stage0") or not.
class BlockChain {
 public:
  /// Throws Error{unsupported} naming `name` and the kind for a network without such a chain.
  BlockChain(const Brick& network, const std::string& name);
  int64_t length() const { return static_cast<int64_t>(blocks_.size()); }

  at::Tensor front(const at::Tensor& x, Context& context) const;
  at::Tensor block(int64_t index, const at::Tensor& x, Context& context) const;
  at::Tensor tail(const at::Tensor& x, Context& context) const;
  Shape front_shape(const Shape& input) const;
  Shape block_shape(int64_t index, const Shape& input) const;
  Shape tail_shape(const Shape& input) const;
  Cost front_cost(const Shape& input) const;
  Cost block_cost(int64_t index, const Shape& input) const;
  Cost tail_cost(const Shape& input) const;
  /// `path`: of the network.
  bundle::Value lower_front(bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) const;
  bundle::Value lower_block(int64_t index, bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) const;
  bundle::Value lower_tail(bundle::Builder& builder, const bundle::Value& x,
                           const std::string& path) const;
  /// What flows: [0] the first block's input, [k + 1] what block k gives.
  std::vector<Shape> shapes(const Shape& input) const;

 private:
  struct Step {
    std::string prefix;  ///< path of the slot's owner below the network
    const Slot* slot;
  };
  void collect(const Brick& owner, const std::string& prefix, std::vector<Step>& steps) const;
  const class VisionTransformer* vision_ = nullptr;
  const class TextRoot* text_ = nullptr;
  std::vector<Step> front_, blocks_, tail_;
};

/// One way through: `from` up to and with block `out`, the stitch, `to` from block `into` on. Or
/// one network alone: from = to, the others -1.
struct StitchPath {
  int64_t from = 0, to = 0, out = -1, into = -1, stitch = -1;
  bool alone() const { return from == to; }
  /// "a1", or "a0b2-a1b3": out of block 2 of network 0 into block 3 of network 1 (counted from 0).
  std::string name() const;
  bool operator==(const StitchPath&) const = default;
};

/// Slots anchor0, anchor1, ... (networks that BlockChain knows) and stitch0, stitch1, ...
/// Context::size chooses the path; what is not on it does not run, here and in the engine, where
/// size_switch nodes stand before every block that can be entered from another network.
class StitchedModel final : public Brick {
 public:
  /// Throws Error{config} for no path, more than 256, or a path that leads backwards (to a network
  /// before its own).
  explicit StitchedModel(std::vector<StitchPath> paths);
  std::string kind() const override { return "stitched"; }
  /// That of every anchor.
  int64_t vocabulary() const override;
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  /// Parameters and bytes of everything; MACs of the dearest path.
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void adopt(const std::string& name, BrickPtr child) override;
  void check_slots() const override;

  const std::vector<StitchPath>& paths() const { return paths_; }
  int64_t anchors() const;
  BlockChain anchor(int64_t index) const;
  Stitch& stitch(int64_t index) const;
  int64_t path_macs(const StitchPath& path, const Shape& input) const;
  /// Throws Error{shape} naming path, blocks and shapes where the stitch does not fit between them.
  Shape path_shape(const StitchPath& path, const Shape& input) const;

 private:
  std::vector<StitchPath> paths_;
};

}  // namespace sluice::lab
