// Writing ONNX: messages of protocol buffers, and the few of them that a model is made of. Field
// numbers are those of onnx.proto.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "sluice/base/shape.h"

namespace sluice::bundle::onnx {

/// A message in the making; fields in any order.
class Message {
 public:
  Message& integer(uint32_t field, int64_t value);
  Message& real(uint32_t field, float value);
  Message& bytes(uint32_t field, std::string_view value);
  Message& message(uint32_t field, const Message& value) { return bytes(field, value.text_); }
  /// Fields that are written already.
  void append(std::string_view fields) { text_.append(fields); }
  const std::string& text() const { return text_; }

 private:
  void varint(uint64_t value);
  std::string text_;
};

/// TensorProto with raw data.
Message tensor_message(const std::string& name, const Shape& dims, std::span<const float> values);
Message tensor_message(const std::string& name, const Shape& dims, std::span<const int64_t> values);
enum class ElementType : int64_t { f32 = 1, i64 = 7, boolean = 9 };  ///< of TensorProto
/// Sizes of a ValueInfoProto that a run decides: the batch "N", the rows of a sequence "T".
inline constexpr int64_t kOpenBatch = -1, kOpenRows = -2;
Message value_message(const std::string& name, const Shape& dims,
                      ElementType type = ElementType::f32);

struct Attribute {
  std::string name;
  std::variant<int64_t, float, std::string, std::vector<int64_t>, Message>
      value;  ///< Message: tensor
};
Message node_message(const std::string& op, const std::string& name,
                     const std::vector<std::string>& inputs,
                     const std::vector<std::string>& outputs,
                     const std::vector<Attribute>& attributes = {});
/// ModelProto of IR version 8; `graph` is a GraphProto.
Message model_message(const Message& graph, int64_t opset, const std::string& producer);

}  // namespace sluice::bundle::onnx
