// ONNX models for tests, written with the exporter's messages.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "sluice/bundle/export/onnx/proto.h"
#include "sluice/bundle/import/onnx.h"
#include "sluice/bundle/import/onnx/model.h"

namespace sluice::bundle::onnx::testing {

/// A graph in the making. Inputs and outputs are f32.
struct Graph {
  Message message;
  Graph& input(const std::string& name, const Shape& shape) {
    message.message(11, value_message(name, shape));
    return *this;
  }
  Graph& output(const std::string& name) {
    message.message(12, value_message(name, {}));
    return *this;
  }
  Graph& reals(const std::string& name, const Shape& shape, const std::vector<float>& values) {
    message.message(5, tensor_message(name, shape, values));
    return *this;
  }
  Graph& integers(const std::string& name, const Shape& shape, const std::vector<int64_t>& values) {
    message.message(5, tensor_message(name, shape, values));
    return *this;
  }
  Graph& node(const std::string& op, const std::vector<std::string>& inputs,
              const std::vector<std::string>& outputs,
              const std::vector<Attribute>& attributes = {}) {
    message.message(1, node_message(op, outputs[0], inputs, outputs, attributes));
    return *this;
  }
  std::string model(int64_t opset = 13) const {
    return model_message(message, opset, "test").text();
  }
};

inline std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

struct Built {
  OnnxResult result;
  std::vector<std::byte> bytes;
  Bundle bundle;
};

inline Built build(const std::string& model, const OnnxOptions& options = {},
                   const std::string& folder = "") {
  const ModelSource source = parse_model(bytes_of(model), "model.onnx", folder);
  Builder builder;
  OnnxResult result = build_onnx(source, options, builder);
  std::vector<std::byte> bytes = builder.bytes();
  Bundle bundle = Bundle::parse(bytes, "built", {});
  return {std::move(result), std::move(bytes), std::move(bundle)};
}

inline std::vector<std::string> operators(const Bundle& bundle) {
  std::vector<std::string> names;
  for (const Node& node : bundle.graph().nodes) names.push_back(node.op);
  return names;
}

}  // namespace sluice::bundle::onnx::testing
