#include "sluice/bundle/delta.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr const char* kKey = "sluice.delta";
constexpr int64_t kVersion = 1;
constexpr int64_t kMostValues = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxRank = 16;

bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

void require_finite(std::span<const float> values, const std::string& what) {
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      fail(Code::numeric, "{}: value {} is {}; expected a number", what, i, values[i]);
}

struct Entry {
  double size;  ///< |difference|
  int32_t index;
};

/// Higher first; of equal ones the lower place.
bool before(const Entry& a, const Entry& b) {
  return a.size > b.size || (a.size == b.size && a.index < b.index);
}

int64_t share_of(double density, int64_t count) {
  return std::llround(density * static_cast<double>(count));
}

/// The `keep` largest of all tensors' entries, ties in the order of names.
void keep_largest(std::map<std::string, std::vector<Entry>>& entries, int64_t keep) {
  struct Ranked {
    double size;
    const std::string* name;
    size_t at;
  };
  std::vector<Ranked> all;
  for (auto& [name, list] : entries)
    for (size_t i = 0; i < list.size(); ++i) all.push_back({list[i].size, &name, i});
  if (keep >= std::ssize(all)) return;
  const auto cut = all.begin() + static_cast<std::ptrdiff_t>(keep);
  std::nth_element(all.begin(), cut, all.end(), [](const Ranked& a, const Ranked& b) {
    if (a.size != b.size) return a.size > b.size;
    return *a.name != *b.name ? *a.name < *b.name : a.at < b.at;
  });
  std::map<std::string, std::vector<Entry>> kept;
  std::for_each(all.begin(), cut,
                [&](const Ranked& r) { kept[*r.name].push_back(entries.at(*r.name)[r.at]); });
  entries = std::move(kept);
}

template <class T>
TensorView view_of(const std::string& name, DType dtype, const std::vector<T>& values) {
  return {name, dtype, {std::ssize(values)}, std::as_bytes(std::span(values))};
}

/// The values of a tensor of one dimension.
template <class T>
std::vector<T> read_list(const SafetensorsFile& file, const std::string& name, DType dtype) {
  const TensorView* view = file.find(name);
  if (!view) fail(Code::format, "{}: tensor '{}' is missing", file.path(), printable(name));
  if (view->dtype != dtype || view->shape.size() != 1)
    fail(Code::format, "{}: tensor '{}': expected {} [n], found {} {}", file.path(),
         printable(name), dtype_name(dtype), dtype_name(view->dtype), to_string(view->shape));
  std::vector<T> values(view->bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), view->bytes.data(), values.size() * sizeof(T));
  return values;
}

bool is_digest(const std::string& text) {
  return text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace

std::string weights_digest(const NamedWeights& weights) {
  // A hash of hashes, so that nothing large is copied.
  std::string all;
  for (const auto& [name, weight] : weights) {
    all += fmt::format("{}\n{}\n{:016x}\n", name, to_string(weight.shape),
                       xxhash64(std::as_bytes(weight.values)));
  }
  return fmt::format("{:016x}", xxhash64(std::as_bytes(std::span(all.data(), all.size()))));
}

int64_t SparseDelta::entries() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : tensors) count += std::ssize(tensor.index);
  return count;
}

SparseDelta make_delta(const NamedWeights& base, const NamedWeights& tuned,
                       const DeltaOptions& options, DeltaSummary* summary) {
  if (!(options.density >= 0 && options.density <= 1))
    fail(Code::config, "density {}: the share of weights that the delta keeps, 0 to 1",
         options.density);
  for (const auto& [name, weight] : tuned)
    if (!base.contains(name))
      fail(Code::missing, "tensor '{}' is in the tuned network only; a delta is of one network",
           name);
  DeltaSummary found;
  std::map<std::string, std::vector<Entry>> matrices, vectors;
  double energy = 0;
  bool any = false;
  for (const auto& [name, weight] : base) {
    const auto other = tuned.find(name);
    if (other == tuned.end())
      fail(Code::missing, "tensor '{}' is in the base only; a delta is of one network", name);
    if (other->second.shape != weight.shape)
      fail(Code::shape,
           "tensor '{}': {} in the base, {} in the tuned network; a delta is of one "
           "network",
           name, to_string(weight.shape), to_string(other->second.shape));
    if (std::ssize(weight.values) > kMostValues)
      fail(Code::limit, "tensor '{}': {} values; at most {}", name, weight.values.size(),
           kMostValues);
    require_finite(weight.values, "base: tensor '" + name + "'");
    require_finite(other->second.values, "tuned network: tensor '" + name + "'");
    if (!path_matches(options.pattern, name)) continue;
    any = true;
    const bool matrix = weight.shape.size() >= 2;
    std::vector<Entry> list;
    for (size_t i = 0; i < weight.values.size(); ++i) {
      const float a = weight.values[i], b = other->second.values[i];
      if (same_bits(a, b)) continue;
      const double size = std::abs(static_cast<double>(b) - static_cast<double>(a));
      list.push_back({size, static_cast<int32_t>(i)});
      energy += size * size;
    }
    if (matrix) {
      found.weights += std::ssize(weight.values);
      found.changed += std::ssize(list);
      const int64_t keep = share_of(options.density, std::ssize(weight.values));
      if (options.by_layer && std::ssize(list) > keep) {
        std::nth_element(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(keep), list.end(),
                         before);
        list.resize(static_cast<size_t>(keep));
      }
    } else {
      found.vectors += std::ssize(list);
    }
    if (!list.empty()) (matrix ? matrices : vectors)[name] = std::move(list);
  }
  if (!any)
    fail(Code::usage, "no tensor matches '{}'; patterns are over paths such as '{}'",
         options.pattern, base.empty() ? "blocks.0.ffn.up.weight" : base.begin()->first);
  if (!options.by_layer) keep_largest(matrices, share_of(options.density, found.weights));
  for (const auto& [name, list] : matrices) found.kept += std::ssize(list);
  matrices.merge(vectors);

  SparseDelta delta;
  delta.base = weights_digest(base);
  double kept = 0;
  for (auto& [name, list] : matrices) {
    if (list.empty()) continue;
    std::sort(list.begin(), list.end(),
              [](const Entry& a, const Entry& b) { return a.index < b.index; });
    DeltaTensor& tensor = delta.tensors[name];
    const WeightView &from = base.at(name), &to = tuned.at(name);
    tensor.shape = from.shape;
    for (const Entry& entry : list) {
      const auto i = static_cast<size_t>(entry.index);
      tensor.index.push_back(entry.index);
      tensor.before.push_back(from.values[i]);
      tensor.after.push_back(to.values[i]);
      kept += entry.size * entry.size;
    }
  }
  found.energy = energy > 0 ? kept / energy : 1;
  if (summary) *summary = found;
  return delta;
}

int64_t apply_delta(const DeltaTensor& delta, double scale, std::span<float> values,
                    const std::string& what) {
  SLUICE_CHECK(std::ssize(values) == numel(delta.shape));
  std::vector<float> now(delta.index.size());
  int64_t exact = 0;
  for (size_t k = 0; k < now.size(); ++k) {
    const float value = values[static_cast<size_t>(delta.index[k])], from = delta.before[k],
                to = delta.after[k];
    if ((scale == 1 && same_bits(value, from)) || (scale == -1 && same_bits(value, to))) {
      now[k] = scale == 1 ? to : from;
      ++exact;
      continue;
    }
    now[k] = static_cast<float>(static_cast<double>(value) +
                                scale * (static_cast<double>(to) - static_cast<double>(from)));
    if (!std::isfinite(now[k]))
      fail(Code::numeric, "{}: value {} is {}; {} times its difference makes {}", what,
           delta.index[k], value, scale, now[k]);
  }
  for (size_t k = 0; k < now.size(); ++k) values[static_cast<size_t>(delta.index[k])] = now[k];
  return exact;
}

void write_delta(const std::string& path, const SparseDelta& delta) {
  Json document = {{"version", kVersion}, {"base", delta.base}, {"tensors", Json::object()}};
  if (!delta.made.empty()) document["made"] = parse_json(delta.made, "delta: made");
  std::vector<TensorView> views;
  for (const auto& [name, tensor] : delta.tensors) {
    document["tensors"][name] = tensor.shape;
    views.push_back(view_of(name + "/index", DType::i32, tensor.index));
    views.push_back(view_of(name + "/before", DType::f32, tensor.before));
    views.push_back(view_of(name + "/after", DType::f32, tensor.after));
  }
  write_safetensors(path, views, {{kKey, document.dump()}});
}

SparseDelta read_delta(const std::string& path) { return parse_delta(SafetensorsFile::open(path)); }

SparseDelta parse_delta(const SafetensorsFile& file) {
  const std::string& path = file.path();
  const auto found = file.metadata().find(kKey);
  if (found == file.metadata().end())
    fail(Code::format, "{}: metadata has no '{}': not a delta; sluice delta makes them", path,
         kKey);
  const std::string where = path + ": " + kKey;
  const Json document = parse_json(found->second, where);
  if (!document.is_object()) fail(Code::format, "{}: expected an object", where);
  const auto number = document.find("version");
  if (number == document.end() || !number->is_number_integer())
    fail(Code::format, "{}: version is missing", where);
  if (*number != kVersion)
    fail(Code::unsupported, "{}: version {}, this build reads version {}", where, number->dump(),
         kVersion);
  SparseDelta delta;
  const auto base = document.find("base");
  if (base == document.end() || !base->is_string() || !is_digest(base->get<std::string>()))
    fail(Code::format, "{}: base: expected 16 hexadecimal digits", where);
  delta.base = base->get<std::string>();
  if (const auto made = document.find("made"); made != document.end()) delta.made = made->dump();
  const auto tensors = document.find("tensors");
  if (tensors == document.end() || !tensors->is_object())
    fail(Code::format, "{}: tensors: expected an object of shapes", where);
  for (const auto& [name, dimensions] : tensors->items()) {
    const std::string what = fmt::format("{}: tensor '{}'", path, printable(name));
    if (!dimensions.is_array() || dimensions.size() > kMaxRank)
      fail(Code::format, "{}: expected a shape of at most {} numbers", what, kMaxRank);
    DeltaTensor tensor;
    int64_t count = 1;
    for (const Json& dimension : dimensions) {
      if (!dimension.is_number_integer() || dimension < 1 || dimension > kMostValues)
        fail(Code::format, "{}: a dimension of 1 to {}, found {}", what, kMostValues,
             dimension.dump().substr(0, 40));
      tensor.shape.push_back(dimension.get<int64_t>());
      count *= tensor.shape.back();
      if (count > kMostValues)
        fail(Code::limit, "{}: {} values or more; at most {}", what, count, kMostValues);
    }
    tensor.index = read_list<int32_t>(file, name + "/index", DType::i32);
    tensor.before = read_list<float>(file, name + "/before", DType::f32);
    tensor.after = read_list<float>(file, name + "/after", DType::f32);
    if (tensor.index.empty() || tensor.before.size() != tensor.index.size() ||
        tensor.after.size() != tensor.index.size())
      fail(Code::format,
           "{}: {} places, {} values before and {} after; expected as many, 1 or more", what,
           tensor.index.size(), tensor.before.size(), tensor.after.size());
    int32_t last = -1;
    for (const int32_t index : tensor.index) {
      if (index <= last || index >= count)
        fail(Code::format, "{}: place {} behind {}; expected ascending ones below {}", what, index,
             last, count);
      last = index;
    }
    require_finite(tensor.before, what + " before");
    require_finite(tensor.after, what + " after");
    delta.tensors.emplace(name, std::move(tensor));
  }
  if (file.tensors().size() != 3 * delta.tensors.size())
    fail(Code::format, "{}: {} tensors in the file; the {} of the table need {}", path,
         file.tensors().size(), delta.tensors.size(), 3 * delta.tensors.size());
  return delta;
}

}  // namespace sluice::bundle
