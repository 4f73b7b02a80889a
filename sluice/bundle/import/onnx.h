// Models in the format ONNX, operator sets 9 to 17, made into bundles. What a graph computes from
// constants and shapes is computed when it is read; the rest becomes operators of docs/formats.md,
// joined where the engine has one for several. docs/onnx-operators.md lists what is read.
//
// Shapes are fixed here: every open dimension of an input is given, or is 1 where it comes first
// (the batch, which the engine adds again).
//
// The file is hostile until checked: it is read by a reader of its own with limits
// (onnx/model.h), and data of tensors in other files is taken only from beneath the model's folder.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

namespace onnx {
struct ModelSource;
struct Constant;
}  // namespace onnx

struct OnnxOptions {
  std::map<std::string, Shape> inputs;   ///< ONNX's shapes, with the batch of 1
  std::map<std::string, double> values;  ///< inputs that are always this number
  /// Inputs that are always this array, as the first input of a batch.
  std::map<std::string, std::shared_ptr<const onnx::Constant>> constants;
  /// Input -> output whose value the session carries from run to run, zeros at first.
  std::map<std::string, std::string> carries;
  std::vector<std::string> outputs;  ///< those wanted; empty: all
  /// Inputs [1,3,H,W] are RGB in the bundle, though the model takes BGR.
  bool bgr = false;
  Task task;  ///< kind "": none
  /// Called with the task and the first output's shape before it is stored.
  std::function<void(Task&, const Shape&)> finish_task{};
  bool simplify = true;
  /// How the weights of linear layers are stored, and with i8 those of convolutions.
  Format weights = Format::f32;
  /// Their inputs are rounded to int8 when they are used, but of convolutions that sum up few
  /// products (rounding_pays()).
  bool round_activations = false;
  /// Numbers that may be computed while the graph is read.
  int64_t folded_elements = int64_t{1} << 28;
};

struct OnnxResult {
  std::string producer;
  int64_t opset = 0;
  size_t read_nodes = 0;  ///< of the file's graph
  /// Names in the file, shapes per sample.
  std::vector<Value> inputs, outputs;
  std::vector<Shape> output_shapes;  ///< in ONNX
};

/// Throws Error{missing, io, format, limit, shape, dtype, usage, unsupported, numeric} naming file,
/// node, expected and found; then `output` is as it was.
OnnxResult import_onnx(const std::string& source, const std::string& output,
                       const OnnxOptions& options = {});
/// The same to a builder; nothing is written.
OnnxResult build_onnx(const onnx::ModelSource& model, const OnnxOptions& options, Builder& builder);

}  // namespace sluice::bundle
