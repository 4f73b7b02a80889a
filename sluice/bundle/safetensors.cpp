#include "sluice/bundle/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/safetensors_header.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors holds little-endian data");

constexpr size_t kDataAlignment = 64;
// Rows of a kilobyte and more that cross a page are read more slowly where few of them are read:
// prefetching by hardware ends with the page (docs/decisions/kernel-bars.md).
constexpr size_t kPage = 4096, kLarge = 64 << 10;
bool fills_pages(const TensorView& t) {
  return t.bytes.size() >= kLarge && t.bytes.size() % kPage == 0;
}
constexpr char kTruncated[] = "The file may be truncated: compare its size or fetch it again";

// Bytes of shape x dtype, or nothing when the product does not fit.
bool byte_count(const Shape& shape, DType dtype, uint64_t* bytes) {
  int64_t product = dtype_size(dtype);
  for (int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(product, size, &product)) return false;
  *bytes = static_cast<uint64_t>(product);
  return true;
}

// Refuses what does not fit `data_bytes`, sorts by position and refuses holes and overlaps.
void check_layout(std::vector<HeaderEntry>& tensors, uint64_t data_start, uint64_t data_bytes,
                  const std::string& what) {
  for (const HeaderEntry& t : tensors) {
    if (t.begin > t.end)
      fail(Code::format, "{}: tensor '{}', field 'data_offsets': begin {} is behind end {}", what,
           printable(t.name), t.begin, t.end);
    if (t.end > data_bytes)
      fail(Code::format, "{}: tensor '{}' at byte {}: ends at byte {}, the file at byte {}. {}",
           what, printable(t.name), data_start + t.begin, data_start + t.end,
           data_start + data_bytes, kTruncated);
    uint64_t expected = 0;
    if (!byte_count(t.shape, t.dtype, &expected))
      fail(Code::format, "{}: tensor '{}', field 'shape': {} of {} does not fit 63 bits of bytes",
           what, printable(t.name), to_string(t.shape), dtype_name(t.dtype));
    if (t.end - t.begin != expected)
      fail(Code::format,
           "{}: tensor '{}' at byte {}: {} of {} takes {} bytes, data_offsets give {}", what,
           printable(t.name), data_start + t.begin, to_string(t.shape), dtype_name(t.dtype),
           expected, t.end - t.begin);
  }
  std::stable_sort(tensors.begin(), tensors.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t position = 0;
  const HeaderEntry* previous = nullptr;
  for (const HeaderEntry& t : tensors) {
    if (t.begin < position)
      fail(Code::format, "{}: tensor '{}' at byte {} overlaps tensor '{}', which ends at byte {}",
           what, printable(t.name), data_start + t.begin, printable(previous->name),
           data_start + position);
    if (t.begin > position)
      fail(Code::format,
           "{}: hole of {} bytes at byte {}, before tensor '{}'; the format allows none", what,
           t.begin - position, data_start + position, printable(t.name));
    position = t.end;
    previous = &t;
  }
  if (position != data_bytes)
    fail(Code::format,
         "{}: {} bytes left over at byte {}, behind the last tensor; the format allows none", what,
         data_bytes - position, data_start + position);
}

struct Layout {
  std::string head;                        // length, JSON, padding
  std::vector<const TensorView*> tensors;  // in file order
};

Layout plan_layout(const std::string& what, std::span<const TensorView> tensors,
                   const std::map<std::string, std::string>& metadata) {
  Layout layout;
  std::unordered_set<std::string_view> names;
  if (tensors.size() > ReadLimits{}.max_tensors)
    fail(Code::limit, "{}: {} tensors; at most {} are allowed", what, tensors.size(),
         ReadLimits{}.max_tensors);
  for (const TensorView& t : tensors) {
    if (t.name == "__metadata__")
      fail(Code::usage, "{}: a tensor cannot be called '__metadata__'; rename it", what);
    if (!names.insert(t.name).second)
      fail(Code::usage, "{}: two tensors are called '{}'; names must differ", what,
           printable(t.name));
    if (t.shape.size() > ReadLimits{}.max_rank)
      fail(Code::limit, "{}: tensor '{}' has {} dimensions; at most {} are allowed", what,
           printable(t.name), t.shape.size(), ReadLimits{}.max_rank);
    uint64_t expected = 0;
    if (!byte_count(t.shape, t.dtype, &expected) || expected != t.bytes.size())
      fail(Code::shape, "{}: tensor '{}': {} of {} does not match its {} bytes", what,
           printable(t.name), to_string(t.shape), dtype_name(t.dtype), t.bytes.size());
    layout.tensors.push_back(&t);
  }
  // Whole pages keep what follows on a page, and descending sizes are powers of two, so every
  // element stays aligned without holes.
  std::stable_sort(layout.tensors.begin(), layout.tensors.end(),
                   [](const TensorView* a, const TensorView* b) {
                     return std::pair(fills_pages(*a), dtype_size(a->dtype)) >
                            std::pair(fills_pages(*b), dtype_size(b->dtype));
                   });
  const bool pages = !layout.tensors.empty() && fills_pages(*layout.tensors.front());
  const size_t alignment = pages ? kPage : kDataAlignment;
  std::string& head = layout.head;
  head.assign(8, '\0');
  head += '{';
  const char* separator = "";
  if (!metadata.empty()) {
    head += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      head += separator;
      head += json_quote(key, what) + ":" + json_quote(value, what);
      separator = ",";
    }
    head += '}';
  }
  uint64_t position = 0;
  for (const TensorView* t : layout.tensors) {
    head += separator;
    separator = ",";
    head += json_quote(t->name, what);
    head += fmt::format(":{{\"dtype\":\"{}\",\"shape\":[", dtype_name(t->dtype));
    for (size_t i = 0; i < t->shape.size(); ++i)
      head += (i ? "," : "") + std::to_string(t->shape[i]);
    head += fmt::format("],\"data_offsets\":[{},{}]}}", position, position + t->bytes.size());
    position += t->bytes.size();
  }
  head += '}';
  head.resize((head.size() + alignment - 1) / alignment * alignment, ' ');
  const uint64_t length = head.size() - 8;
  if (length > ReadLimits{}.max_header_bytes)
    fail(Code::limit, "{}: the header needs {} bytes; the format allows {}", what, length,
         ReadLimits{}.max_header_bytes);
  std::memcpy(head.data(), &length, 8);
  return layout;
}

}  // namespace

int64_t TensorView::elements() const {
  return static_cast<int64_t>(bytes.size()) / dtype_size(dtype);
}

std::span<const float> TensorView::f32() const {
  if (dtype != DType::f32)
    fail(Code::dtype, "tensor '{}': expected F32, found {}", printable(name), dtype_name(dtype));
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(float) != 0)
    fail(Code::format,
         "tensor '{}': its data does not start at a multiple of {} bytes; write the file again",
         name, alignof(float));
  return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
}

SafetensorsFile SafetensorsFile::open(const std::string& path, const ReadLimits& limits) {
  auto file = std::make_shared<MappedFile>(MappedFile::open(path));
  SafetensorsFile result = parse(file->bytes(), path, limits);
  result.file_ = std::move(file);
  return result;
}

SafetensorsFile SafetensorsFile::parse(std::span<const std::byte> bytes, const std::string& what,
                                       const ReadLimits& limits) {
  if (bytes.size() < 8)
    fail(Code::format, "{}: {} bytes; a safetensors file has at least 8. {}", what, bytes.size(),
         kTruncated);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length > limits.max_header_bytes)
    fail(Code::limit,
         "{}: header length at byte 0: {} bytes, at most {} are read; probably not a safetensors "
         "file",
         what, length, limits.max_header_bytes);
  if (length > bytes.size() - 8)
    fail(Code::format, "{}: header length at byte 0: {} bytes, the file has {} behind it. {}", what,
         length, bytes.size() - 8, kTruncated);
  const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + 8,
                              static_cast<size_t>(length));
  Header header = parse_header(json, what, limits);
  const uint64_t data_start = 8 + length;
  check_layout(header.tensors, data_start, bytes.size() - data_start, what);

  SafetensorsFile result;
  result.path_ = what;
  result.file_bytes_ = bytes.size();
  result.metadata_ = std::move(header.metadata);
  result.tensors_.reserve(header.tensors.size());
  for (HeaderEntry& t : header.tensors) {
    result.index_.emplace(t.name, result.tensors_.size());
    result.tensors_.push_back({std::move(t.name), t.dtype, std::move(t.shape),
                               bytes.subspan(data_start + t.begin, t.end - t.begin)});
  }
  return result;
}

const TensorView* SafetensorsFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

const TensorView& SafetensorsFile::at(const std::string& name) const {
  if (const TensorView* tensor = find(name)) return *tensor;
  std::string near;
  if (name.size() <= 256 &&
      tensors_.size() <= 4096) {  // the edit distance to very many names takes long
    std::vector<std::string> names;
    for (const TensorView& t : tensors_)
      if (t.name.size() <= 256) names.push_back(t.name);
    near = nearest_name(name, names);
  }
  fail(Code::missing, "{}: no tensor '{}' among its {}{}", path_, printable(name), tensors_.size(),
       near.empty() ? "" : "; did you mean '" + printable(near) + "'?");
}

void write_safetensors(const std::string& path, std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const Layout layout = plan_layout(path, tensors, metadata);
  AtomicFile file(path);
  file.write(std::string_view(layout.head));
  for (const TensorView* t : layout.tensors) file.write(t->bytes);
  file.commit();
}

std::vector<std::byte> safetensors_bytes(std::span<const TensorView> tensors,
                                         const std::map<std::string, std::string>& metadata) {
  const Layout layout = plan_layout("safetensors", tensors, metadata);
  size_t size = layout.head.size();
  for (const TensorView* t : layout.tensors) size += t->bytes.size();
  std::vector<std::byte> out;
  out.reserve(size);
  const auto* head = reinterpret_cast<const std::byte*>(layout.head.data());
  out.insert(out.end(), head, head + layout.head.size());
  for (const TensorView* t : layout.tensors)
    out.insert(out.end(), t->bytes.begin(), t->bytes.end());
  return out;
}

}  // namespace sluice::bundle
