// GGUF, the container of llama.cpp: typed metadata, then tensors, each in one of ggml's types.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md - versions 2 and 3, little endian. Read
// here with every count, length and offset checked against what the file still holds before it is
// used; a file costs memory in proportion to its keys and tensors, never to a number in it.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/file.h"
#include "sluice/base/shape.h"

namespace sluice::bundle::gguf {

enum class ValueType : uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  text,
  array,
  u64,
  i64,
  f64
};
std::string_view value_type_name(ValueType type);

/// What is read; beyond it Error{limit}.
struct Limits {
  static constexpr uint64_t kKeys = 1 << 16, kTensors = 1 << 20;
  static constexpr uint64_t kNameBytes = 1024;  ///< of a key or a tensor
  static constexpr int kArrayDepth = 4;         ///< arrays of arrays
  static constexpr uint64_t kAlignment = 1 << 20;
  static constexpr uint32_t kRank = 4;
};

/// A value of the metadata: its bytes in the file, checked.
struct Value {
  ValueType type = ValueType::u32;
  std::span<const std::byte> bytes;    ///< of a text: its characters; of an array: all its elements
  ValueType element = ValueType::u32;  ///< of an array
  uint64_t count = 0;                  ///< elements of an array
};

/// One of ggml's tensor types that are read: rows are stored as blocks of `block` columns.
struct TensorType {
  uint32_t id;
  const char* name;  ///< "Q8_0"
  int64_t block, bytes;
};
inline constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kQ4_K = 12,
                          kQ6_K = 14, kBF16 = 30;
/// nullptr for a type that is not read.
const TensorType* find_type(uint32_t id);
/// "Q5_K", also of those; "type 77" when there is none of that number.
std::string type_name(uint32_t id);

struct Tensor {
  std::string name;
  uint32_t type = kF32;  ///< perhaps one that find_type does not know; then bytes is empty
  Shape shape;           ///< outermost first, as everywhere in Sluice: the file's order reversed
  std::span<const std::byte> bytes;
};

/// A parsed file; copies share the mapping, views point into it.
class File {
 public:
  /// Throws Error{missing, io, format, limit, unsupported} naming the file, the byte or the key,
  /// what was expected and found.
  static File open(const std::string& path);
  static File parse(std::span<const std::byte> bytes, const std::string& what);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  const std::map<std::string, Value>& metadata() const { return metadata_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  ///< in file order
  const Tensor* find_tensor(const std::string& name) const;

  bool has(const std::string& key) const { return metadata_.count(key) > 0; }
  /// Values by key. Throw Error{missing} for a key that is not there, Error{config} for a value of
  /// another type or outside the range, naming key, expected and found.
  int64_t integer(const std::string& key, int64_t least, int64_t most) const;
  double number(const std::string& key, double least, double most) const;
  bool flag(const std::string& key) const;
  std::string text(const std::string& key) const;
  /// Arrays; integers of any width, which must lie in the range.
  std::vector<std::string> texts(const std::string& key) const;
  std::vector<int64_t> integers(const std::string& key, int64_t least, int64_t most) const;
  std::vector<float> numbers(const std::string& key) const;
  /// "file: key 'name'"
  std::string field(const std::string& key) const;

 private:
  const Value& at(const std::string& key) const;
  const Value& array(const std::string& key, const char* expected) const;
  std::string path_;
  uint32_t version_ = 0;
  std::shared_ptr<MappedFile> file_;
  std::map<std::string, Value> metadata_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t> index_;
};

/// True when the bytes begin as a GGUF file does.
bool is_gguf(std::span<const std::byte> bytes);

/// Collects metadata and tensors and writes a file of version 3, tensors in the given order.
class Writer {
 public:
  void set(const std::string& key, uint32_t value);
  void set(const std::string& key, float value);
  void set(const std::string& key, bool value);
  void set(const std::string& key, std::string_view value);
  void set(const std::string& key, std::span<const std::string> values);
  void set(const std::string& key, std::span<const float> values);
  void set(const std::string& key, std::span<const int32_t> values);
  /// `shape` outermost first; the bytes must stay until the file is written.
  void tensor(const std::string& name, uint32_t type, const Shape& shape,
              std::span<const std::byte> bytes);
  /// Writes aside, then renames. Throws Error{usage} for a name twice, Error{shape} for bytes that
  /// are not those of the shape.
  void write(const std::string& path) const;
  std::vector<std::byte> bytes() const;

 private:
  std::string head() const;
  std::string& add(const std::string& key, ValueType type);
  std::vector<std::pair<std::string, std::string>> metadata_;  // key, type and value
  std::vector<Tensor> tensors_;
};

/// The values of a tensor's rows. `bytes` are those of out.size() / columns rows.
void dequantize(uint32_t type, std::span<const std::byte> bytes, std::span<float> out);
/// Bytes of a row of `columns`; columns must be a multiple of the type's block.
int64_t row_bytes(const TensorType& type, int64_t columns);

}  // namespace sluice::bundle::gguf
