// Nested layers: one set of weights, of which every size of the network runs a leading part
// (slimmable networks, Yu et al. 2019; SortedNet, Valipour et al. 2023). A size is an index into
// the lists of all nested bricks of a network; Context::size chooses one per forward. What flows
// between nested bricks is as narrow as the size: channels that it leaves out are neither computed
// nor stored. In a bundle they are prefix_linear, prefix_conv2d and size_switch nodes
// (docs/formats.md). lab/pass/subnet.h sets the sizes of a whole network.
#pragma once
#include "sluice/lab/brick/layers.h"

namespace sluice::lab {

/// What a layer runs, by size.
struct NestedSizes {
  int64_t count = 1;             ///< of the network: 1 to 256
  std::vector<int64_t> rows;     ///< leading outputs, one per size; empty: always all
  std::vector<int64_t> columns;  ///< leading inputs that come in, one per size; empty: not told
};

/// A layer whose weight has leading rows and columns for each size.
class NestedLayer {
 public:
  virtual ~NestedLayer() = default;
  virtual int64_t inputs() const = 0;
  virtual int64_t outputs() const = 0;
  const NestedSizes& sizes() const { return sizes_; }
  /// Whether its outputs may be fewer than all.
  bool elastic() const { return !sizes_.rows.empty(); }
  /// Throws Error{config} naming the list for numbers outside of the layer, lists of another length
  /// than `count`, and elastic layers that are to be none or the reverse: that is fixed when the
  /// layer is made.
  virtual void set_sizes(NestedSizes sizes);
  /// How many units of `x` come in: its channels, or its last dimension.
  virtual int64_t width_of(const at::Tensor& x) const = 0;
  /// An ordinary layer that computes what this one does at `size`; batch norm is folded in.
  virtual BrickPtr pick(int64_t size) const = 0;

 protected:
  /// Checked against inputs() and outputs() of the finished layer.
  void init_sizes(NestedSizes sizes, std::string_view kind);
  int64_t rows_of(int64_t size) const;
  int64_t columns_of(int64_t size) const;
  /// Throws Error{shape} when `x` is not as wide as the size's columns.
  void check_width(const at::Tensor& x, int64_t size, std::string_view kind) const;
  Json sizes_json(Json attributes) const;

  NestedSizes sizes_;
};

/// The size that the context asks for. Throws Error{usage} when there are not so many.
int64_t chosen_size(const Context& context, int64_t count, std::string_view kind);

/// Linear over the leading columns and rows of its weight; the meter counts these.
class NestedLinear final : public Brick, public NestedLayer {
 public:
  NestedLinear(int64_t inputs, int64_t outputs, bool bias, NestedSizes sizes);
  std::string kind() const override { return "nested_linear"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;  ///< of the whole layer, as cost
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  int64_t inputs() const override { return inputs_; }
  int64_t outputs() const override { return outputs_; }
  int64_t width_of(const at::Tensor& x) const override { return x.size(-1); }
  BrickPtr pick(int64_t size) const override;

  at::Tensor weight, bias;  ///< bias undefined when absent

 private:
  int64_t inputs_, outputs_;
};

/// Conv2d (groups 1) over leading channels, with the batch norm that follows it, if any: scale and
/// shift are shared by all sizes, statistics are each size's own, because a channel's mean and
/// variance depend on how many inputs it sums. Training updates those of the size that runs;
/// pass reestimate-norm measures all anew.
class NestedConv2d final : public Brick, public NestedLayer {
 public:
  struct Norm {
    bool present = false;
    double eps = 1e-5, momentum = 0.1;
  };
  NestedConv2d(const Conv2dOptions& options, Norm norm, NestedSizes sizes);
  std::string kind() const override { return "nested_conv2d"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  int64_t inputs() const override { return options_.inputs; }
  int64_t outputs() const override { return options_.outputs; }
  int64_t width_of(const at::Tensor& x) const override { return x.size(1); }
  /// Statistics of another number of sizes start as those of the last one.
  void set_sizes(NestedSizes sizes) override;
  BrickPtr pick(int64_t size) const override;
  const Norm& norm() const { return norm_; }
  /// Statistics of one size as a plain cumulative average from here on, until end_estimate().
  void begin_estimate() { estimated_ = 0; }
  void end_estimate() { estimated_ = -1; }

  at::Tensor weight, bias;               ///< bias undefined when absent
  at::Tensor norm_weight, norm_bias;     ///< [outputs]; undefined without norm
  at::Tensor running_mean, running_var;  ///< [sizes, outputs]; undefined without norm

 private:
  /// Scale and shift of the size's norm and bias, [outputs] in double.
  std::pair<at::Tensor, at::Tensor> affine(int64_t size) const;
  Conv2dOptions options_;
  Norm norm_;
  int64_t estimated_ = -1;
};

/// Children one after another, of which a size runs the first few, then the child named "exit" (a
/// brick without weights, or none): depth. Without an exit all ends must have the same shape; with
/// one that gives features [C] a shorter chain may give fewer, the leading ones of the layer
/// behind. Nodes that a size does not reach are not run by the engine.
class NestedChain final : public Brick {
 public:
  /// `exits`: how many children run, one per size; empty: all, always.
  explicit NestedChain(std::vector<int64_t> exits = {});
  NestedChain& append(const std::string& name, BrickPtr child);
  std::string kind() const override { return "nested_chain"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void adopt(const std::string& name, BrickPtr child) override;
  void check_slots() const override;
  int64_t length() const;  ///< children, the exit left out
  const std::vector<int64_t>& exits() const { return exits_; }
  void set_exits(std::vector<int64_t> exits);  ///< throws Error{config}
  /// A Sequential of what runs at `size`, with the children's own bricks.
  BrickPtr pick(int64_t size) const;

 private:
  int64_t steps_of(int64_t size) const;
  const Slot* exit() const;
  std::vector<int64_t> exits_;
};

}  // namespace sluice::lab
