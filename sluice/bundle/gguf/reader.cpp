#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/bundle/gguf/gguf.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little endian");

constexpr char kTruncated[] = "The file may be truncated: compare its size or fetch it again";
constexpr uint32_t kValueTypes = 13;
// 0: of no fixed size.
constexpr std::array<uint64_t, kValueTypes> kValueBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

uint64_t value_bytes(ValueType type) { return kValueBytes[static_cast<size_t>(type)]; }

/// Walks through the bytes; whatever it gives lies within them.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& what) : bytes_(bytes), what_(what) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count, const std::string& field) {
    if (count > left())
      fail(Code::format, "{}: {} at byte {}: {} bytes, the file has {} left. {}", what_, field,
           position_, count, left(), kTruncated);
    const auto part = bytes_.subspan(static_cast<size_t>(position_), static_cast<size_t>(count));
    position_ += count;
    return part;
  }
  template <class T>
  T number(const std::string& field) {
    T value;
    std::memcpy(&value, take(sizeof value, field).data(), sizeof value);
    return value;
  }
  std::string_view text(const std::string& field) {
    const uint64_t length = number<uint64_t>(field + ": length");
    const auto part = take(length, field);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  /// A name of a key or a tensor.
  std::string name(const std::string& field) {
    const uint64_t at = position_;
    const std::string_view found = text(field);
    if (found.empty() || found.size() > Limits::kNameBytes || !is_plain_text(found))
      fail(found.size() > Limits::kNameBytes ? Code::limit : Code::format,
           "{}: {} at byte {}: expected 1 to {} bytes of plain text, found '{}' ({} bytes)", what_,
           field, at, Limits::kNameBytes, printable(found, 40), found.size());
    return std::string(found);
  }
  /// A number of things of at least `least` bytes each.
  uint64_t count(const std::string& field, uint64_t most, uint64_t least) {
    const uint64_t at = position_, found = number<uint64_t>(field);
    if (found > most)
      fail(Code::limit, "{}: {} at byte {}: {}; at most {} are read", what_, field, at, found,
           most);
    if (found > left() / least)
      fail(Code::format, "{}: {} at byte {}: {}, which do not fit into the {} bytes behind. {}",
           what_, field, at, found, left(), kTruncated);
    return found;
  }
  ValueType type(const std::string& field) {
    const uint64_t at = position_;
    const uint32_t found = number<uint32_t>(field);
    if (found >= kValueTypes)
      fail(Code::format, "{}: {} at byte {}: expected a type from 0 to {}, found {}", what_, field,
           at, kValueTypes - 1, found);
    return static_cast<ValueType>(found);
  }
  Value value(const std::string& field) {
    Value result;
    result.type = type(field + ": type");
    if (result.type == ValueType::text) {
      const std::string_view found = text(field);
      result.bytes = std::as_bytes(std::span(found));
    } else if (result.type == ValueType::array) {
      array(result, field, 1);
    } else {
      const uint64_t at = position_;
      result.bytes = take(value_bytes(result.type), field);
      if (result.type == ValueType::boolean) require_bool(result.bytes[0], field, at);
    }
    return result;
  }

 private:
  void require_bool(std::byte found, const std::string& field, uint64_t at) const {
    if (found > std::byte{1})
      fail(Code::format, "{}: {} at byte {}: expected a bool, 0 or 1, found {}", what_, field, at,
           static_cast<int>(found));
  }
  void array(Value& result, const std::string& field, int depth) {
    const uint64_t at = position_;
    if (depth > Limits::kArrayDepth)
      fail(Code::limit, "{}: {} at byte {}: arrays nest deeper than {}", what_, field, at,
           Limits::kArrayDepth);
    result.element = type(field + ": type of its elements");
    const uint64_t each = value_bytes(result.element);
    // An empty text takes 8 bytes, an empty array 12.
    result.count = count(field + ": count", UINT64_MAX,
                         each > 0 ? each : (result.element == ValueType::text ? 8 : 12));
    const uint64_t begin = position_;
    if (each > 0) {
      const auto elements = take(result.count * each, field);
      if (result.element == ValueType::boolean)
        for (const std::byte b : elements) require_bool(b, field, begin);
    } else {
      for (uint64_t i = 0; i < result.count; ++i) {
        Value inner;
        if (result.element == ValueType::text)
          text(field);
        else
          array(inner, field, depth + 1);
      }
    }
    result.bytes =
        bytes_.subspan(static_cast<size_t>(begin), static_cast<size_t>(position_ - begin));
  }

  std::span<const std::byte> bytes_;
  const std::string& what_;
  uint64_t position_ = 0;
};

struct Place {
  uint64_t offset, size;  // of the data section
  size_t tensor;
};

uint64_t aligned(uint64_t position, uint64_t alignment) {
  return (position + alignment - 1) / alignment * alignment;
}

/// Reads one tensor's description; `offset` is where its data starts behind the header.
Tensor read_tensor(Reader& reader, const std::string& what, uint64_t* offset) {
  Tensor tensor;
  tensor.name = reader.name("name of a tensor");
  const std::string field = "tensor '" + printable(tensor.name) + "'";
  const uint32_t rank = reader.number<uint32_t>(field + ": dimensions");
  if (rank < 1 || rank > Limits::kRank)
    fail(Code::format, "{}: {}: expected 1 to {} dimensions, found {}", what, field, Limits::kRank,
         rank);
  tensor.shape.resize(rank);
  for (uint32_t i = 0; i < rank; ++i) {
    const uint64_t size = reader.number<uint64_t>(field + ": size");
    if (size < 1 || size > uint64_t(INT64_MAX))
      fail(Code::format, "{}: {}: dimension {}: expected a size from 1 to 2^63-1, found {}", what,
           field, i, size);
    tensor.shape[rank - 1 - i] = static_cast<int64_t>(size);
  }
  tensor.type = reader.number<uint32_t>(field + ": type");
  *offset = reader.number<uint64_t>(field + ": offset");
  return tensor;
}

/// Bytes of the tensor's data.
uint64_t data_bytes(const Tensor& tensor, const TensorType& type, const std::string& what) {
  const std::string field = "tensor '" + printable(tensor.name) + "'";
  if (tensor.shape.back() % type.block != 0)
    fail(Code::format, "{}: {}: rows of {} columns; {} stores blocks of {}", what, field,
         tensor.shape.back(), type.name, type.block);
  int64_t bytes = tensor.shape.back() / type.block;
  bool fits = !__builtin_mul_overflow(bytes, type.bytes, &bytes);
  for (size_t i = 0; fits && i + 1 < tensor.shape.size(); ++i)
    fits = !__builtin_mul_overflow(bytes, tensor.shape[i], &bytes);
  if (!fits || bytes > INT64_MAX / 64)  // room for elements wider than their code
    fail(Code::format, "{}: {}: {} of {} is too large for any file", what, field,
         to_string(tensor.shape), type.name);
  return static_cast<uint64_t>(bytes);
}

uint64_t read_alignment(const File& file) {
  constexpr char kKey[] = "general.alignment";
  if (!file.has(kKey)) return 32;
  const auto found =
      static_cast<uint64_t>(file.integer(kKey, 1, static_cast<int64_t>(Limits::kAlignment)));
  if (!std::has_single_bit(found))
    fail(Code::config, "{}: expected a power of two, found {}", file.field(kKey), found);
  return found;
}

}  // namespace

bool is_gguf(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
}

File File::open(const std::string& path) {
  auto file = std::make_shared<MappedFile>(MappedFile::open(path));
  File result = parse(file->bytes(), path);
  result.file_ = std::move(file);
  return result;
}

File File::parse(std::span<const std::byte> bytes, const std::string& what) {
  File file;
  file.path_ = what;
  if (!is_gguf(bytes))
    fail(Code::format, "{}: not a GGUF file: it does not begin with the letters GGUF", what);
  Reader reader(bytes, what);
  reader.take(4, "magic");
  file.version_ = reader.number<uint32_t>("version");
  if (file.version_ == 0x02000000 || file.version_ == 0x03000000)
    fail(Code::unsupported, "{}: a big-endian GGUF file; convert it for this machine", what);
  if (file.version_ != 2 && file.version_ != 3)
    fail(Code::unsupported, "{}: version at byte 4: expected 2 or 3, found {}", what,
         file.version_);
  // The shortest tensor has a name of one letter and one dimension, the shortest value one byte.
  const uint64_t tensors = reader.count("count of tensors", Limits::kTensors, 33),
                 keys = reader.count("count of keys", Limits::kKeys, 14);
  for (uint64_t i = 0; i < keys; ++i) {
    const uint64_t at = reader.position();
    const std::string key = reader.name("key");
    if (file.has(key))
      fail(Code::format, "{}: key '{}' at byte {}: it is there twice", what, printable(key), at);
    file.metadata_[key] = reader.value("key '" + printable(key) + "'");
  }
  const uint64_t alignment = read_alignment(file);
  std::vector<Place> places;
  for (uint64_t i = 0; i < tensors; ++i) {
    uint64_t offset = 0;
    file.tensors_.push_back(read_tensor(reader, what, &offset));
    const Tensor& tensor = file.tensors_.back();
    const std::string field = "tensor '" + printable(tensor.name) + "'";
    if (!file.index_.emplace(tensor.name, i).second)
      fail(Code::format, "{}: {}: it is there twice", what, field);
    if (offset % alignment != 0)
      fail(Code::format, "{}: {}: offset {} is no multiple of the alignment, {}", what, field,
           offset, alignment);
    const TensorType* type = find_type(tensor.type);
    places.push_back({offset, type ? data_bytes(tensor, *type, what) : 0, i});
  }
  const uint64_t start = tensors == 0 ? reader.position() : aligned(reader.position(), alignment);
  for (const Place& place : places) {
    Tensor& tensor = file.tensors_[place.tensor];
    const uint64_t size = start <= bytes.size() ? bytes.size() - start : 0;
    if (place.offset > size || place.size > size - place.offset)
      fail(Code::format,
           "{}: tensor '{}': {} bytes at offset {} leave the file, which has {} for tensors. {}",
           what, printable(tensor.name), place.size, place.offset, size, kTruncated);
    tensor.bytes =
        bytes.subspan(static_cast<size_t>(start + place.offset), static_cast<size_t>(place.size));
  }
  std::ranges::sort(places, {}, &Place::offset);
  for (size_t i = 1; i < places.size(); ++i)
    if (places[i].offset - places[i - 1].offset < places[i - 1].size)
      fail(Code::format, "{}: tensor '{}' at offset {} overlaps tensor '{}', {} bytes at {}", what,
           printable(file.tensors_[places[i].tensor].name), places[i].offset,
           printable(file.tensors_[places[i - 1].tensor].name), places[i - 1].size,
           places[i - 1].offset);
  return file;
}

const Tensor* File::find_tensor(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

}  // namespace sluice::bundle::gguf
