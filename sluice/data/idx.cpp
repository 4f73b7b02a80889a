#include "sluice/data/idx.h"

#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/data/gzip.h"

namespace sluice::data {
namespace {

const char* type_name(uint8_t type) {
  switch (type) {
    case 0x08:
      return "unsigned byte";
    case 0x09:
      return "signed byte";
    case 0x0B:
      return "16-bit integer";
    case 0x0C:
      return "32-bit integer";
    case 0x0D:
      return "32-bit float";
    case 0x0E:
      return "64-bit float";
    default:
      return "unknown";
  }
}

/// Shape from the header of `raw`; everything is checked against the size before anything is
/// allocated.
Shape parse_header(std::span<const std::byte> raw, std::string_view what, size_t max_bytes,
                   size_t& data_at) {
  const auto byte = [&](size_t i) { return std::to_integer<uint8_t>(raw[i]); };
  if (raw.size() < 4) {
    fail(Code::format, "{}: expected an IDX header of at least 4 bytes, found {} bytes", what,
         raw.size());
  }
  if (byte(0) != 0 || byte(1) != 0) {
    fail(Code::format, "{}: byte 0: expected the IDX magic 00 00, found {:02x} {:02x}", what,
         byte(0), byte(1));
  }
  if (byte(2) != 0x08) {
    fail(Code::dtype, "{}: byte 2: expected element type 08 (unsigned byte), found {:02x} ({})",
         what, byte(2), type_name(byte(2)));
  }
  const size_t rank = byte(3);
  if (rank < 1 || rank > 4) {
    fail(Code::format, "{}: byte 3: expected 1 to 4 dimensions, found {}", what, rank);
  }
  data_at = 4 + 4 * rank;
  if (raw.size() < data_at) {
    fail(Code::format, "{}: expected a header of {} bytes for {} dimensions, found {} bytes", what,
         data_at, rank, raw.size());
  }
  Shape shape;
  for (size_t d = 0; d < rank; ++d) {
    int64_t size = 0;
    for (size_t i = 0; i < 4; ++i) {
      size = size << 8 | byte(4 + 4 * d + i);
    }
    shape.push_back(size);
  }
  const int64_t elements = numel(shape, what);
  if (static_cast<uint64_t>(elements) > max_bytes) {
    fail(Code::limit, "{}: shape {} needs {} bytes, {} are allowed", what, to_string(shape),
         elements, max_bytes);
  }
  const size_t found = raw.size() - data_at;
  if (found != static_cast<size_t>(elements)) {
    fail(Code::format, "{}: shape {} needs {} bytes of data, found {}; the file is {}", what,
         to_string(shape), elements, found,
         found < static_cast<size_t>(elements) ? "truncated" : "followed by other bytes");
  }
  return shape;
}

}  // namespace

IdxArray parse_idx(std::span<const std::byte> file, std::string_view what, size_t max_bytes) {
  IdxArray array;
  size_t data_at = 0;
  if (is_gzip(file)) {
    constexpr size_t kLongestHeader = 4 + 4 * 4;
    const size_t most =
        max_bytes > SIZE_MAX - kLongestHeader ? SIZE_MAX : max_bytes + kLongestHeader;
    array.bytes = inflate_gzip(file, what, most);
    array.shape = parse_header(std::as_bytes(std::span(array.bytes)), what, max_bytes, data_at);
    array.bytes.erase(array.bytes.begin(),
                      array.bytes.begin() + static_cast<std::ptrdiff_t>(data_at));
    return array;
  }
  array.shape = parse_header(file, what, max_bytes, data_at);
  const auto* data = reinterpret_cast<const uint8_t*>(file.data());
  array.bytes.assign(data + data_at, data + file.size());
  return array;
}

IdxArray read_idx(const std::string& path, size_t max_bytes) {
  return parse_idx(MappedFile::open(path).bytes(), path, max_bytes);
}

}  // namespace sluice::data
