#include "sluice/bundle/import/weights.h"

#include <cmath>
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/import/config.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

/// Any alignment.
uint16_t half_at(std::span<const std::byte> bytes, size_t index) {
  uint16_t bits;
  std::memcpy(&bits, bytes.data() + 2 * index, 2);
  return bits;
}

float value_at(const TensorView& tensor, size_t index) {
  if (tensor.dtype == DType::bf16) return bf16_to_f32(half_at(tensor.bytes, index));
  if (tensor.dtype == DType::f16) return f16_to_f32(half_at(tensor.bytes, index));
  float value;
  std::memcpy(&value, tensor.bytes.data() + 4 * index, 4);
  return value;
}

std::vector<float> widened(const TensorView& tensor) {
  std::vector<float> result(static_cast<size_t>(tensor.elements()));
  if (tensor.dtype == DType::f32)
    std::memcpy(result.data(), tensor.bytes.data(), tensor.bytes.size());
  else
    for (size_t i = 0; i < result.size(); ++i) result[i] = value_at(tensor, i);
  return result;
}

void require_finite(float value, size_t index, const std::string& what, const std::string& name) {
  if (!std::isfinite(value))
    fail(Code::numeric, "{}: tensor '{}': element {} is {}; a bundle holds finite numbers only",
         what, printable(name), index, value);
}

bool aligned(const TensorView& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.bytes.data()) % alignof(float) == 0;
}

}  // namespace

Weights::Weights(const std::string& folder, const std::string& file, const ImportOptions& options)
    : options_(options) {
  const std::string index = folder + "/model.safetensors.index.json";
  const std::string single = folder + "/" + (file.empty() ? "model.safetensors" : file);
  if (!file.empty() || file_exists(single)) {
    what_ = single;
    for (const TensorView& tensor : shard(single).tensors()) place_[tensor.name] = single;
    return;
  }
  if (!file_exists(index))
    fail(Code::missing,
         "{}: neither model.safetensors nor model.safetensors.index.json is there; models in other "
         "formats must be saved as safetensors first",
         folder);
  what_ = index;
  const Config config = Config::read(index);
  const auto map = config.object("weight_map");
  if (!map) fail(Code::config, "{}: expected an object, found nothing", config.field("weight_map"));
  if (map->json().size() > ReadLimits{}.max_tensors)
    fail(Code::limit, "{}: {} tensors; at most {} are read", config.field("weight_map"),
         map->json().size(), ReadLimits{}.max_tensors);
  for (const auto& [name, value] : map->json().items()) {
    if (!value.is_string())
      fail(Code::config, "{}: tensor '{}': expected the name of a file, found {}",
           config.field("weight_map"), printable(name), value.type_name());
    const std::string part = value.get<std::string>();
    require_plain_name(part,
                       fmt::format("{}: tensor '{}'", config.field("weight_map"), printable(name)));
    const std::string path = folder + "/" + part;
    if (!shard(path).find(name))
      fail(Code::missing, "{}: tensor '{}' is not in {}, where {} says it is", folder,
           printable(name), part, index);
    place_[name] = path;
  }
}

const SafetensorsFile& Weights::shard(const std::string& path) {
  const auto it = files_.find(path);
  return it != files_.end() ? it->second
                            : files_.emplace(path, SafetensorsFile::open(path)).first->second;
}

void Weights::set_prefix(const std::string& canonical, const std::string& stored) {
  canonical_ = canonical;
  stored_ = stored;
}

std::string Weights::stored_name(const std::string& name) const {
  return name.starts_with(canonical_) ? stored_ + name.substr(canonical_.size()) : name;
}

bool Weights::has(const std::string& name) const { return place_.count(stored_name(name)) > 0; }

void Weights::missing(const std::string& stored) const {
  std::vector<std::string> names;
  for (const auto& [name, file] : place_) names.push_back(name);
  const std::string nearest = nearest_name(stored, names);
  fail(Code::missing, "{}: tensor '{}' is not there{}", what_, printable(stored),
       nearest.empty() ? "" : "; the nearest is '" + printable(nearest) + "'");
}

const TensorView& Weights::take(const std::string& name, const Shape& shape) {
  const std::string stored = stored_name(name);
  const auto it = place_.find(stored);
  if (it == place_.end()) missing(stored);
  const TensorView& tensor = shard(it->second).at(stored);
  if (tensor.dtype != DType::f32 && tensor.dtype != DType::f16 && tensor.dtype != DType::bf16)
    fail(Code::dtype, "{}: tensor '{}': expected F32, F16 or BF16, found {}", it->second,
         printable(stored), dtype_name(tensor.dtype));
  if (tensor.shape != shape)
    fail(Code::shape, "{}: tensor '{}': config.json asks for {}, the file holds {}", it->second,
         printable(stored), to_string(shape), to_string(tensor.shape));
  if (used_.insert(stored).second && options_.progress)
    options_.progress(static_cast<int64_t>(used_.size()), static_cast<int64_t>(place_.size()));
  return tensor;
}

std::vector<float> Weights::values(const std::string& name, const Shape& shape) {
  std::vector<float> result = widened(take(name, shape));
  for (size_t i = 0; i < result.size(); ++i) require_finite(result[i], i, what_, name);
  return result;
}

std::string Weights::vector(Builder& builder, const std::string& name, const Shape& shape) {
  const TensorView& tensor = take(name, shape);
  if (tensor.dtype == DType::f32 && aligned(tensor))
    builder.tensor_view(name, DType::f32, shape, tensor.bytes);
  else
    builder.tensor(name, shape, values(name, shape));
  return name;
}

std::string Weights::matrix(Builder& builder, const std::string& name, const Shape& shape) {
  using Kind = ImportOptions::Weights;
  const TensorView& tensor = take(name, shape);
  const bool narrow = options_.weights == Kind::bf16 ||
                      (options_.weights == Kind::keep && tensor.dtype == DType::bf16);
  if (!narrow) return vector(builder, name, shape);
  const size_t count = static_cast<size_t>(tensor.elements());
  for (size_t i = 0; i < count; ++i) require_finite(value_at(tensor, i), i, what_, name);
  if (tensor.dtype == DType::bf16) {
    builder.tensor_view(name, DType::bf16, shape, tensor.bytes, "bf16");
    return name;
  }
  std::vector<uint16_t> rounded(count);
  for (size_t i = 0; i < count; ++i) {
    rounded[i] = f32_to_bf16(value_at(tensor, i));
    require_finite(bf16_to_f32(rounded[i]), i, what_, name);
  }
  builder.tensor(name, DType::bf16, shape, std::as_bytes(std::span(rounded)), "bf16");
  return name;
}

std::string Weights::transposed(Builder& builder, const std::string& name, const Shape& stored,
                                int64_t first, int64_t rows, const std::string& as) {
  using Kind = ImportOptions::Weights;
  const TensorView& tensor = take(name, stored);
  const size_t in = static_cast<size_t>(stored[0]), all = static_cast<size_t>(stored[1]),
               from = static_cast<size_t>(first), count = static_cast<size_t>(rows);
  std::vector<float> values(in * count);
  for (size_t i = 0; i < in; ++i) {
    for (size_t r = 0; r < count; ++r) {
      const float value = value_at(tensor, i * all + from + r);
      require_finite(value, i * all + from + r, what_, name);
      values[r * in + i] = value;
    }
  }
  const Shape shape{rows, stored[0]};
  if (options_.weights == Kind::bf16 ||
      (options_.weights == Kind::keep && tensor.dtype == DType::bf16))
    builder.tensor(as, Format::bf16, shape, pack(Format::bf16, values, shape[0], shape[1]));
  else
    builder.tensor(as, shape, values);
  return as;
}

std::vector<std::string> Weights::unused() const {
  std::vector<std::string> result;
  for (const auto& [name, file] : place_)
    if (!used_.count(name)) result.push_back(name);
  return result;
}

}  // namespace sluice::bundle::hf
