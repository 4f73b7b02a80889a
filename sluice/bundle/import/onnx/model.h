// An ONNX file as it is: graphs, nodes, attributes and tensors, read with limits and nothing
// interpreted. Field numbers are those of onnx.proto (https://github.com/onnx/onnx).
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sluice/base/file.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/import/onnx/wire.h"

namespace sluice::bundle::onnx {

struct Limits {
  static constexpr size_t kNodes = 200'000;  ///< of all graphs together
  static constexpr size_t kDepth = 16;       ///< graphs inside attributes of nodes
  static constexpr size_t kRank = 8;
  static constexpr size_t kOperands = 256;  ///< inputs, outputs, attributes of a node
  static constexpr int64_t kFileBytes = int64_t{1} << 31;  ///< protocol buffers end there
  static constexpr int64_t kOldestOpset = 9, kNewestOpset = 17;
};

/// TensorProto.DataType
enum class Type : int32_t {
  undefined = 0,
  f32 = 1,
  u8 = 2,
  i8 = 3,
  u16 = 4,
  i16 = 5,
  i32 = 6,
  i64 = 7,
  string = 8,
  boolean = 9,
  f16 = 10,
  f64 = 11,
  u32 = 12,
  u64 = 13,
  bf16 = 16
};
/// "float", "int64", ...; "type 99".
std::string type_name(Type type);
bool is_integer(Type type);    ///< also bool
size_t type_bytes(Type type);  ///< 0: not read

/// A tensor whose values may still lie in the file.
struct TensorSource {
  std::string name;
  Type type = Type::undefined;
  Shape dims;
  std::optional<std::span<const std::byte>> raw;
  std::vector<float> floats;
  std::vector<int64_t> ints;
  std::vector<double> doubles;
  bool external = false;
  std::map<std::string, std::string> location;  ///< external_data: location, offset, length
  size_t offset = 0;                            ///< in the file, for messages
};

struct GraphSource;

struct AttributeSource {
  enum class Kind : uint8_t {
    none,
    real,
    integer,
    text,
    tensor,
    graph,
    reals,
    integers,
    texts,
    other
  };
  Kind kind = Kind::none;
  float real = 0;
  int64_t integer = 0;
  std::string text;
  std::vector<float> reals;
  std::vector<int64_t> integers;
  std::shared_ptr<const TensorSource> tensor;
  std::shared_ptr<const GraphSource> graph;
};

struct NodeSource {
  std::string name, op, domain;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, AttributeSource> attributes;
};

/// An input or output of a graph.
struct ValueSource {
  std::string name;
  Type type = Type::undefined;
  bool tensor = true;              ///< no sequence, map, ...
  bool ranked = false;             ///< `dims` says something
  std::vector<int64_t> dims;       ///< -1: a name, or nothing
  std::vector<std::string> names;  ///< of dims; "" for numbers
};

struct GraphSource {
  std::string name;
  std::vector<NodeSource> nodes;
  std::vector<std::shared_ptr<const TensorSource>> initializers;
  std::vector<ValueSource> inputs, outputs;
};

/// Keeps the file mapped.
struct ModelSource {
  std::shared_ptr<const MappedFile> mapped;
  std::shared_ptr<const WireFile> file;
  std::string folder;  ///< where external data may lie
  int64_t opset = 0;   ///< of the default domain
  std::string producer;
  GraphSource graph;
};

/// Throws Error{missing, io, format, limit, unsupported}.
ModelSource open_model(const std::string& path);
/// `bytes` must outlive the result. `folder` "": external data is refused.
ModelSource parse_model(std::span<const std::byte> bytes, const std::string& what,
                        const std::string& folder);
/// One TensorProto, as in the test data of ONNX.
TensorSource parse_tensor(const WireFile& file);

/// Values in row-major order. Integers (and bool as 0 and 1) are kept apart from numbers.
struct Constant {
  std::string name;  ///< of the initializer; "" when it was computed
  Shape shape;
  bool integer = false;
  std::vector<float> reals;
  std::vector<int64_t> integers;

  size_t size() const { return integer ? integers.size() : reals.size(); }
  double at(size_t i) const { return integer ? static_cast<double>(integers[i]) : reals[i]; }
};
using ConstantPtr = std::shared_ptr<const Constant>;

/// Throws Error{format, shape, dtype, limit, missing}: values that are not there, or too many.
ConstantPtr load_tensor(const TensorSource& tensor, const std::string& what,
                        const std::string& folder);

}  // namespace sluice::bundle::onnx
