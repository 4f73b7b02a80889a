// The values of a tensor: inline, raw, or in a file beside the model.
#include <cstring>
#include <filesystem>

#include "sluice/base/error.h"
#include "sluice/bundle/dtype.h"
#include "sluice/bundle/import/onnx/model.h"
#include "sluice/bundle/packed.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::onnx {
namespace {

struct TypeInfo {
  Type type;
  const char* name;
  size_t bytes;
  bool integer;
};
constexpr TypeInfo kTypes[] = {
    {Type::f32, "float", 4, false},   {Type::u8, "uint8", 1, true},
    {Type::i8, "int8", 1, true},      {Type::u16, "uint16", 2, true},
    {Type::i16, "int16", 2, true},    {Type::i32, "int32", 4, true},
    {Type::i64, "int64", 8, true},    {Type::string, "string", 0, false},
    {Type::boolean, "bool", 1, true}, {Type::f16, "float16", 2, false},
    {Type::f64, "double", 8, false},  {Type::u32, "uint32", 4, true},
    {Type::u64, "uint64", 8, true},   {Type::bf16, "bfloat16", 2, false},
};

const TypeInfo* find_type(Type type) {
  for (const TypeInfo& info : kTypes)
    if (info.type == type) return &info;
  return nullptr;
}

template <class T>
T read_as(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

void decode(Type type, std::span<const std::byte> bytes, Constant& to) {
  const size_t each = type_bytes(type), count = bytes.size() / each;
  if (type == Type::f32) {
    to.reals.resize(count);
    if (count > 0) std::memcpy(to.reals.data(), bytes.data(), bytes.size());
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const std::byte* at = bytes.data() + i * each;
    switch (type) {
      case Type::f64:
        to.reals.push_back(static_cast<float>(read_as<double>(at)));
        break;
      case Type::f16:
        to.reals.push_back(f16_to_f32(read_as<uint16_t>(at)));
        break;
      case Type::bf16:
        to.reals.push_back(bf16_to_f32(read_as<uint16_t>(at)));
        break;
      case Type::u8:
        to.integers.push_back(read_as<uint8_t>(at));
        break;
      case Type::boolean:
        to.integers.push_back(read_as<uint8_t>(at) != 0);
        break;
      case Type::i8:
        to.integers.push_back(read_as<int8_t>(at));
        break;
      case Type::u16:
        to.integers.push_back(read_as<uint16_t>(at));
        break;
      case Type::i16:
        to.integers.push_back(read_as<int16_t>(at));
        break;
      case Type::i32:
        to.integers.push_back(read_as<int32_t>(at));
        break;
      case Type::u32:
        to.integers.push_back(read_as<uint32_t>(at));
        break;
      default:
        to.integers.push_back(read_as<int64_t>(at));
        break;
    }
  }
}

/// What the fields for single types hold.
void take_values(const TensorSource& tensor, Constant& to) {
  switch (tensor.type) {
    case Type::f32:
      to.reals = tensor.floats;
      break;
    case Type::f64:
      to.reals.assign(tensor.doubles.begin(), tensor.doubles.end());
      break;
    case Type::f16:
    case Type::bf16:
      for (const int64_t bits : tensor.ints) {
        const auto half = static_cast<uint16_t>(bits);
        to.reals.push_back(tensor.type == Type::f16 ? f16_to_f32(half) : bf16_to_f32(half));
      }
      break;
    default:
      to.integers = tensor.ints;
      break;
  }
}

int64_t location_number(const TensorSource& tensor, const std::string& key, int64_t fallback,
                        const std::string& place) {
  const auto found = tensor.location.find(key);
  if (found == tensor.location.end()) return fallback;
  const std::string& text = found->second;
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
    fail(Code::format, "{}: external_data '{}': expected a number of bytes, found '{}'", place, key,
         printable(text, 40));
  return std::stoll(text);
}

/// The file with the values, which must lie beneath the model's folder, links followed.
MappedFile open_external(const TensorSource& tensor, const std::string& place,
                         const std::string& folder) {
  namespace fs = std::filesystem;
  const auto found = tensor.location.find("location");
  if (found == tensor.location.end() || found->second.empty())
    fail(Code::format, "{}: external data without a location", place);
  if (folder.empty())
    fail(Code::unsupported, "{}: values in another file; open the model from its folder", place);
  const fs::path relative(found->second);
  bool inside = relative.is_relative();
  for (const fs::path& part : relative) inside = inside && part != "..";
  std::error_code error;
  const fs::path base = fs::weakly_canonical(folder, error),
                 target = fs::weakly_canonical(fs::path(folder) / relative, error);
  const fs::path from_base = target.lexically_relative(base);
  inside = inside && !error && !from_base.empty() && *from_base.begin() != "..";
  if (!inside)
    fail(Code::format, "{}: external data in '{}'; only files beneath the model's folder are read",
         place, printable(found->second));
  return MappedFile::open(target.string());
}

}  // namespace

std::string type_name(Type type) {
  const TypeInfo* info = find_type(type);
  return info ? info->name : fmt::format("type {}", static_cast<int>(type));
}
bool is_integer(Type type) {
  const TypeInfo* info = find_type(type);
  return info && info->integer;
}
size_t type_bytes(Type type) {
  const TypeInfo* info = find_type(type);
  return info ? info->bytes : 0;
}

ConstantPtr load_tensor(const TensorSource& tensor, const std::string& what,
                        const std::string& folder) {
  const std::string place =
      fmt::format("{}: byte {}: tensor '{}'", what, tensor.offset, printable(tensor.name));
  const size_t each = type_bytes(tensor.type);
  if (each == 0)
    fail(Code::dtype, "{}: values of {}; expected numbers or bool", place, type_name(tensor.type));
  for (const int64_t size : tensor.dims)
    if (size < 0)
      fail(Code::shape, "{}: shape {} with a negative size", place, to_string(tensor.dims));
  const int64_t count = numel(tensor.dims, place + ": shape");
  const int64_t bytes = checked_mul(count, static_cast<int64_t>(each), place + ": bytes");
  auto result = std::make_shared<Constant>();
  result->name = tensor.name;
  result->shape = tensor.dims;
  result->integer = is_integer(tensor.type);
  if (tensor.external) {
    const MappedFile file = open_external(tensor, place, folder);
    const int64_t size = std::ssize(file.bytes());
    const int64_t offset = location_number(tensor, "offset", 0, place);
    const int64_t length = location_number(tensor, "length", size - std::min(size, offset), place);
    if (offset > size || length > size - offset)
      fail(Code::format, "{}: bytes {} to {} of '{}', which has {}", place, offset, offset + length,
           printable(file.path()), size);
    if (length != bytes)
      fail(Code::format, "{}: {} of {} takes {} bytes, found {}", place, to_string(tensor.dims),
           type_name(tensor.type), bytes, length);
    decode(tensor.type,
           file.bytes().subspan(static_cast<size_t>(offset), static_cast<size_t>(length)), *result);
  } else if (tensor.raw) {
    if (std::ssize(*tensor.raw) != bytes)
      fail(Code::format, "{}: {} of {} takes {} bytes, found {}", place, to_string(tensor.dims),
           type_name(tensor.type), bytes, tensor.raw->size());
    decode(tensor.type, *tensor.raw, *result);
  } else {
    take_values(tensor, *result);
    if (static_cast<int64_t>(result->size()) != count)
      fail(Code::format, "{}: {} takes {} values, found {}", place, to_string(tensor.dims), count,
           result->size());
  }
  return result;
}

}  // namespace sluice::bundle::onnx
