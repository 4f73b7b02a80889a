#include "sluice/bundle/export/onnx/proto.h"

#include <bit>
#include <cstring>

namespace sluice::bundle::onnx {
namespace {

enum WireType : uint32_t { kVarint = 0, kBytes = 2, kFixed32 = 5 };

template <class T>
Message raw_tensor(const std::string& name, const Shape& dims, std::span<const T> values,
                   int64_t type) {
  Message tensor;
  for (const int64_t size : dims) tensor.integer(1, size);
  tensor.integer(2, type);
  tensor.bytes(8, name);
  tensor.bytes(9, {reinterpret_cast<const char*>(values.data()), values.size_bytes()});
  return tensor;
}

}  // namespace

void Message::varint(uint64_t value) {
  for (; value >= 128; value >>= 7) text_ += static_cast<char>(value | 128);
  text_ += static_cast<char>(value);
}

Message& Message::integer(uint32_t field, int64_t value) {
  varint(field << 3 | kVarint);
  varint(static_cast<uint64_t>(value));
  return *this;
}

Message& Message::real(uint32_t field, float value) {
  varint(field << 3 | kFixed32);
  const auto bits = std::bit_cast<uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) text_ += static_cast<char>(bits >> shift);
  return *this;
}

Message& Message::bytes(uint32_t field, std::string_view value) {
  varint(field << 3 | kBytes);
  varint(value.size());
  text_.append(value);
  return *this;
}

Message tensor_message(const std::string& name, const Shape& dims, std::span<const float> values) {
  return raw_tensor(name, dims, values, 1);
}
Message tensor_message(const std::string& name, const Shape& dims,
                       std::span<const int64_t> values) {
  return raw_tensor(name, dims, values, 7);
}

Message value_message(const std::string& name, const Shape& dims, ElementType type) {
  Message shape;
  for (const int64_t size : dims) {
    const char* open = size == kOpenRows ? "T" : "N";
    shape.message(1, size < 0 ? Message().bytes(2, open) : Message().integer(1, size));
  }
  Message tensor;
  tensor.integer(1, static_cast<int64_t>(type)).message(2, shape);
  return Message().bytes(1, name).message(2, Message().message(1, tensor));
}

Message node_message(const std::string& op, const std::string& name,
                     const std::vector<std::string>& inputs,
                     const std::vector<std::string>& outputs,
                     const std::vector<Attribute>& attributes) {
  Message node;
  for (const std::string& input : inputs) node.bytes(1, input);
  for (const std::string& output : outputs) node.bytes(2, output);
  node.bytes(3, name).bytes(4, op);
  for (const Attribute& attribute : attributes) {
    Message message;
    message.bytes(1, attribute.name);
    if (const auto* i = std::get_if<int64_t>(&attribute.value)) {
      message.integer(3, *i).integer(20, 2);
    } else if (const auto* f = std::get_if<float>(&attribute.value)) {
      message.real(2, *f).integer(20, 1);
    } else if (const auto* s = std::get_if<std::string>(&attribute.value)) {
      message.bytes(4, *s).integer(20, 3);
    } else if (const auto* list = std::get_if<std::vector<int64_t>>(&attribute.value)) {
      for (const int64_t value : *list) message.integer(8, value);
      message.integer(20, 7);
    } else {
      message.message(5, std::get<Message>(attribute.value)).integer(20, 4);
    }
    node.message(5, message);
  }
  return node;
}

Message model_message(const Message& graph, int64_t opset, const std::string& producer) {
  Message model;
  model.integer(1, 8).bytes(2, producer).message(7, graph);
  return model.message(8, Message().bytes(1, "").integer(2, opset));
}

}  // namespace sluice::bundle::onnx
