// Networks that are no tree of blocks: a graph of the engine's operators, as an import from ONNX
// makes it. Layers with weights sit in slots, so that passes find them; what lies between them is
// computed as the graph says.
#pragma once
#include "sluice/bundle/graph.h"
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// 2-D cross-correlation as the operator conv2d has it, with two numbers where Conv2d has one.
struct GraphConvOptions {
  int64_t inputs = 1, outputs = 1, groups = 1;
  std::vector<int64_t> kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  bool bias = true;
};

/// [outputs, height, width] of input [inputs, height, width]. Throws Error{shape} naming `kind`
/// when the input is another or the kernel does not fit.
Shape conv_output_shape(const GraphConvOptions& options, const Shape& input, std::string_view kind);

class GraphConv final : public Brick {
 public:
  /// Throws Error{config} for sizes that are none.
  explicit GraphConv(GraphConvOptions options);
  std::string kind() const override { return "graph_conv"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  const GraphConvOptions& options() const { return options_; }

  at::Tensor weight, bias;  ///< [outputs, inputs / groups, kh, kw]; bias undefined when absent

 private:
  GraphConvOptions options_;
};

/// One input, one output, f32. Slots are the nodes of `conv2d`, `linear` and `layer_norm`, named
/// after their paths (other characters than letters, digits, '_' and '-' become '_'); tensors of
/// other nodes are parameters of this brick. Batch norms use their running statistics. It can be
/// trained in all its weights.
class GraphNetwork final : public Brick {
 public:
  /// The graph is checked. Throws Error{unsupported} naming node and operator for what no training
  /// code computes, Error{shape} for graphs with more inputs, outputs or carried values.
  explicit GraphNetwork(const bundle::Graph& graph);
  std::string kind() const override { return "graph_network"; }
  Json attributes() const override;
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  Cost cost(const Shape& input) const override;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

  /// Whether a softmax comes last.
  bool gives_probabilities() const;
  /// By name of this brick's state ("conv_1.weight", "norm.bias", "v7_other") the tensor of the
  /// graph it was made from.
  const std::map<std::string, std::string>& sources() const { return sources_; }

 private:
  struct Step {
    bundle::Node node;     ///< path: slot or name; inputs and output: values
    Slot* slot = nullptr;  ///< of layers with weights
  };
  void add_layer(Step& step, const std::map<std::string, bundle::TensorSpec>& specs);
  void add_tensors(Step& step, const std::map<std::string, bundle::TensorSpec>& specs);
  at::Tensor run(const Step& step, const std::vector<at::Tensor>& x, Context& context) const;

  bundle::Graph graph_;  ///< names as they are here
  bundle::GraphInfo info_;
  std::vector<Step> steps_;
  std::map<std::string, std::string> sources_;
};

BrickPtr make_graph_conv(const Json& attributes);
BrickPtr make_graph_network(const Json& attributes);

}  // namespace sluice::lab
