// The ordinary layers as bricks. Each: constructor from sizes, `slice_*` where surgery needs it
// (returns a new brick).
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// Bricks that have output channels (rows of the weight), input channels, or both.
class Sliceable {
 public:
  virtual ~Sliceable() = default;
  /// New brick with only the output channels `keep` (int64 indices, ascending).
  virtual BrickPtr slice_outputs(const at::Tensor& keep) const = 0;
  /// New brick that reads only the input channels `keep`.
  virtual BrickPtr slice_inputs(const at::Tensor& keep) const = 0;
  /// [channels]: how important each output channel is for `norm` 1 or 2 of its weights.
  virtual at::Tensor output_norms(double norm) const = 0;
};

/// y = W x + b over the last dimension. Weight [outputs, inputs]; He-uniform as in torch.nn.Linear.
class Linear final : public Brick, public Sliceable {
 public:
  Linear(int64_t inputs, int64_t outputs, bool bias = true);
  std::string kind() const override { return "linear"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  BrickPtr slice_outputs(const at::Tensor& keep) const override;
  BrickPtr slice_inputs(const at::Tensor& keep) const override;
  at::Tensor output_norms(double norm) const override;

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }

  at::Tensor weight, bias;  ///< bias undefined when absent

 private:
  int64_t inputs_, outputs_;
};

struct Conv2dOptions {
  int64_t inputs = 1, outputs = 1, kernel = 3, stride = 1, padding = 0, groups = 1;
  bool bias = true;
};

/// 2-D cross-correlation, NCHW, square kernel. Weight [outputs, inputs / groups, kernel, kernel].
class Conv2d final : public Brick, public Sliceable {
 public:
  explicit Conv2d(const Conv2dOptions& options);
  std::string kind() const override { return "conv2d"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  BrickPtr slice_outputs(
      const at::Tensor& keep) const override;  ///< groups == 1 only, else Error{unsupported}
  BrickPtr slice_inputs(const at::Tensor& keep) const override;
  at::Tensor output_norms(double norm) const override;
  const Conv2dOptions& options() const { return options_; }

  at::Tensor weight, bias;

 private:
  Conv2dOptions options_;
};

/// Batch normalisation over dimension 1 of [B, C, ...]: y = (x - mean) / sqrt(var + eps) * weight +
/// bias; batch statistics while training, running averages otherwise (Ioffe & Szegedy 2015).
class BatchNorm final : public Brick {
 public:
  explicit BatchNorm(int64_t channels, double eps = 1e-5, double momentum = 0.1);
  std::string kind() const override { return "batch_norm"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  BrickPtr slice_channels(const at::Tensor& keep) const;
  /// Running statistics as a plain cumulative average from here on (re-estimation), until
  /// end_estimate().
  void begin_estimate();
  void end_estimate();

  at::Tensor weight, bias, running_mean, running_var;
  double eps() const { return eps_; }
  int64_t channels() const { return channels_; }

 private:
  int64_t channels_, estimated_ = -1;
  double eps_, momentum_;
};

/// Elementwise: relu, gelu (erf), silu, sigmoid, tanh, hard_swish, gelu_tanh.
class Activation final : public Brick {
 public:
  explicit Activation(const std::string& function);
  const std::string& function() const { return function_; }
  std::string kind() const override { return "activation"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override { return input; }
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

 private:
  std::string function_;
};

/// "max", "avg" (kernel, stride, padding) or "global_avg" pooling of [B, C, H, W].
class Pool2d final : public Brick {
 public:
  explicit Pool2d(const std::string& mode, int64_t kernel = 2, int64_t stride = 2,
                  int64_t padding = 0);
  std::string kind() const override { return "pool2d"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

 private:
  std::string mode_;
  int64_t kernel_, stride_, padding_;
};

/// "relu", "gelu", "silu", "sigmoid", "tanh", "hard_swish", "gelu_tanh".
const std::vector<std::string>& activation_names();
at::Tensor activate(const std::string& function, const at::Tensor& x);

/// [B, ...] -> [B, numel].
class Flatten final : public Brick {
 public:
  std::string kind() const override { return "flatten"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
};

/// Passes its input through; what a dropped block or a folded norm leaves behind.
class Identity final : public Brick {
 public:
  std::string kind() const override { return "identity"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override { return x; }
  Shape output_shape(const Shape& input) const override { return input; }
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder&, const bundle::Value& x, const std::string&) const override {
    return x;
  }
};

/// Multiplies channel c of [B, C, ...] by a constant 0 or 1: where a Sequential keeps the mask of a
/// channel group.
class ChannelMask final : public Brick {
 public:
  explicit ChannelMask(int64_t channels);        ///< all open
  explicit ChannelMask(const at::Tensor& mask);  ///< [channels]
  std::string kind() const override { return "channel_mask"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape&) const override { return {}; }
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;

  at::Tensor mask;  ///< buffer
};

}  // namespace sluice::lab
