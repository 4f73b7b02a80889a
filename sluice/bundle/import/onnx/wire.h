// The wire format of protocol buffers, as far as ONNX uses it: one message at a time, nothing
// copied, every length checked against what is left.
// https://protobuf.dev/programming-guides/encoding/
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::bundle::onnx {

/// The whole file, for messages that say where.
struct WireFile {
  std::string what;
  std::span<const std::byte> bytes;
};

class Wire {
 public:
  enum class Type : uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

  /// `message` lies in `file`, which must outlive this; `name` is what errors call it.
  Wire(const WireFile& file, std::span<const std::byte> message, std::string_view name)
      : file_(file), message_(message), name_(name) {}

  /// The next field, or false at the end. Throws Error{format} for bytes that are no field.
  bool next();
  uint32_t number() const { return number_; }
  size_t offset() const { return static_cast<size_t>(start_ - file_.bytes.data()); }

  // The field's value; Error{format} when it is of another type. `field` names it in the message.
  int64_t integer(std::string_view field) const;
  float real(std::string_view field) const;
  std::span<const std::byte> bytes(std::string_view field) const;
  std::string text(std::string_view field) const;  ///< plain UTF-8, at most 64 KiB
  /// Appended: one number, or a packed list of them.
  void integers(std::vector<int64_t>& to, std::string_view field) const;
  void reals(std::vector<float>& to, std::string_view field) const;
  void doubles(std::vector<double>& to, std::string_view field) const;

  [[noreturn]] void refuse(std::string_view problem) const;
  Wire inner(std::string_view field, std::string_view name) const {
    return Wire(file_, bytes(field), name);
  }

 private:
  uint64_t varint(std::span<const std::byte> from, size_t& at) const;
  void expect(Type type, std::string_view field) const;

  const WireFile& file_;
  std::span<const std::byte> message_;
  std::string_view name_;
  size_t at_ = 0;
  const std::byte* start_ = nullptr;
  uint32_t number_ = 0;
  Type type_ = Type::varint;
  uint64_t value_ = 0;
  std::span<const std::byte> bytes_;
};

}  // namespace sluice::bundle::onnx
