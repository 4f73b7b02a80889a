#include "sluice/bundle/import/weights.h"

#include <cmath>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

/// Any alignment.
uint16_t half_at(std::span<const std::byte> bytes, size_t index) {
  uint16_t bits;
  std::memcpy(&bits, bytes.data() + 2 * index, 2);
  return bits;
}

bool aligned(const StoredTensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.bytes.data()) % alignof(float) == 0;
}

float value_at(const StoredTensor& tensor, size_t index) {
  if (tensor.dtype == DType::bf16) return bf16_to_f32(half_at(tensor.bytes, index));
  if (tensor.dtype == DType::f16) return f16_to_f32(half_at(tensor.bytes, index));
  float value;
  std::memcpy(&value, tensor.bytes.data() + 4 * index, 4);
  return value;
}

void require_finite(float value, size_t index, const StoredTensor& tensor) {
  if (!std::isfinite(value))
    fail(Code::numeric, "{}: tensor '{}': element {} is {}; a bundle holds finite numbers only",
         tensor.file, printable(tensor.name), index, value);
}

/// Of one that is packed, checked.
PackedMatrix view(const StoredTensor& tensor) {
  return view_packed(*tensor.packed, tensor.shape[0], tensor.shape[1], tensor.bytes,
                     tensor.file + ": tensor '" + printable(tensor.name) + "'");
}

/// The format in which the bytes are already a stored matrix.
std::optional<Format> format_of(const StoredTensor& tensor) {
  if (tensor.packed) return tensor.packed;
  if (tensor.dtype == DType::f32) return Format::f32;
  if (tensor.dtype == DType::bf16) return Format::bf16;
  return std::nullopt;
}

}  // namespace

Weights::Weights(std::unique_ptr<Source> source, const ImportOptions& options)
    : source_(std::move(source)),
      options_(options),
      count_(static_cast<int64_t>(source_->names().size())) {}

void Weights::set_prefix(const std::string& canonical, const std::string& stored) {
  canonical_ = canonical;
  stored_ = stored;
}

std::string Weights::stored_name(const std::string& name) const {
  return name.starts_with(canonical_) ? stored_ + name.substr(canonical_.size()) : name;
}

bool Weights::has(const std::string& name) const { return source_->has(stored_name(name)); }

void Weights::missing(const std::string& stored) const {
  std::vector<std::string> names = source_->names();
  for (std::string& name : names) name = source_->own_name(name);
  const std::string wanted = source_->own_name(stored), nearest = nearest_name(wanted, names);
  fail(Code::missing, "{}: tensor '{}' is not there{}", what(), printable(wanted),
       nearest.empty() ? "" : "; the nearest is '" + printable(nearest) + "'");
}

StoredTensor Weights::take(const std::string& name, const Shape& shape) {
  const std::string stored = stored_name(name);
  if (!source_->has(stored)) missing(stored);
  StoredTensor tensor = source_->get(stored);
  const bool readable = tensor.packed || tensor.dtype == DType::f32 || tensor.dtype == DType::f16 ||
                        tensor.dtype == DType::bf16;
  if (!readable)
    fail(Code::dtype, "{}: tensor '{}': expected F32, F16 or BF16, found {}", tensor.file,
         printable(tensor.name), dtype_name(tensor.dtype));
  if (tensor.shape != shape)
    fail(Code::shape, "{}: tensor '{}': {} asks for {}, the file holds {}", tensor.file,
         printable(tensor.name), source_->asker(), to_string(shape), to_string(tensor.shape));
  any_f16_ = any_f16_ || tensor.dtype == DType::f16;
  if (used_.insert(stored).second && options_.progress)
    options_.progress(static_cast<int64_t>(used_.size()), count_);
  return tensor;
}

std::vector<float> Weights::values_of(const StoredTensor& tensor) const {
  std::vector<float> result(static_cast<size_t>(numel(tensor.shape)));
  if (tensor.packed) {
    unpack(view(tensor), result);
    return result;
  }
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] = value_at(tensor, i);
    require_finite(result[i], i, tensor);
  }
  return result;
}

std::vector<float> Weights::values(const std::string& name, const Shape& shape) {
  return values_of(take(name, shape));
}

std::string Weights::add_vector(Builder& builder, const std::string& name,
                                const StoredTensor& tensor) {
  if (!tensor.packed && tensor.dtype == DType::f32 && aligned(tensor)) {
    // Here, under the name that the file has for it: the bundle gives it another.
    const size_t count = tensor.bytes.size() / sizeof(float);
    for (size_t i = 0; i < count; ++i) require_finite(value_at(tensor, i), i, tensor);
    builder.tensor_view(name, DType::f32, tensor.shape, tensor.bytes);
    if (tensor.owned) kept_.push_back(tensor.owned);
  } else {
    builder.tensor(name, tensor.shape, values_of(tensor));
  }
  return name;
}

std::string Weights::vector(Builder& builder, const std::string& name, const Shape& shape) {
  return add_vector(builder, name, take(name, shape));
}

Format Weights::wanted(std::optional<Format> stored) const {
  switch (options_.weights) {
    case ImportOptions::Weights::f32:
      return Format::f32;
    case ImportOptions::Weights::bf16:
      return Format::bf16;
    case ImportOptions::Weights::i8:
      return Format::i8;
    case ImportOptions::Weights::i8_32:
      return Format::i8_group;
    case ImportOptions::Weights::i4_32:
      return Format::i4_group;
    case ImportOptions::Weights::i4_32_min:
      return Format::i4_group_min;
    case ImportOptions::Weights::keep:
      break;
  }
  return stored.value_or(Format::f32);
}

std::string Weights::matrix(Builder& builder, const std::string& name, const Shape& shape) {
  const StoredTensor tensor = take(name, shape);
  const Format format = wanted(format_of(tensor));
  if (format == Format::f32) return add_vector(builder, name, tensor);
  if (format_of(tensor) == format) {
    if (tensor.packed) {
      view(tensor);
    } else {
      const size_t count = tensor.bytes.size() / 2;  // bf16
      for (size_t i = 0; i < count; ++i) require_finite(value_at(tensor, i), i, tensor);
    }
    builder.tensor_view(name, stored_dtype(format), shape, tensor.bytes,
                        std::string(format_name(format)));
    if (tensor.owned) kept_.push_back(tensor.owned);
  } else {
    builder.tensor(name, format, shape, pack(format, values_of(tensor), shape[0], shape[1]));
  }
  return name;
}

std::string Weights::transposed(Builder& builder, const std::string& name, const Shape& stored,
                                int64_t first, int64_t rows, const std::string& as) {
  const StoredTensor tensor = take(name, stored);
  const std::vector<float> all = values_of(tensor);
  const size_t in = static_cast<size_t>(stored[0]), width = static_cast<size_t>(stored[1]),
               from = static_cast<size_t>(first), count = static_cast<size_t>(rows);
  std::vector<float> values(in * count);
  for (size_t i = 0; i < in; ++i)
    for (size_t r = 0; r < count; ++r) values[r * in + i] = all[i * width + from + r];
  const Shape shape{rows, stored[0]};
  const Format format = wanted(format_of(tensor));
  if (format == Format::f32)
    builder.tensor(as, shape, values);
  else
    builder.tensor(as, format, shape, pack(format, values, shape[0], shape[1]));
  return as;
}

std::string Weights::stacked(Builder& builder, const std::vector<std::string>& names,
                             const Shape& shape, bool turn, const std::string& as) {
  const Shape one = turn ? Shape{shape[1], shape[0]} : shape;
  std::vector<std::byte> all;
  std::optional<Format> format;
  for (const std::string& name : names) {
    const StoredTensor tensor = take(name, shape);
    if (!format) format = wanted(format_of(tensor));
    std::vector<float> values = values_of(tensor);
    if (turn) {
      std::vector<float> turned(values.size());
      const size_t rows = static_cast<size_t>(shape[0]), columns = static_cast<size_t>(shape[1]);
      for (size_t r = 0; r < rows; ++r)
        for (size_t c = 0; c < columns; ++c) turned[c * rows + r] = values[r * columns + c];
      values = std::move(turned);
    }
    const std::vector<std::byte> part = pack(*format, values, one[0], one[1]);
    all.insert(all.end(), part.begin(), part.end());
  }
  builder.tensor(as, *format, {static_cast<int64_t>(names.size()), one[0], one[1]}, all);
  return as;
}

std::vector<std::string> Weights::unused() const {
  std::vector<std::string> result;
  for (const std::string& name : source_->names())
    if (!used_.count(name)) result.push_back(source_->own_name(name));
  return result;
}

}  // namespace sluice::bundle::hf
