// Folders as Hugging Face has them, for tests: the tiny models of tests/golden/huggingface, whose
// weights are made from their names as make.py there does.
#pragma once
#include <fmt/core.h>

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/packed.h"
#include "sluice/bundle/safetensors.h"

namespace sluice::bundle::testing {

inline uint64_t fnv1a64(std::string_view text) {
  uint64_t h = 0xCBF29CE484222325;
  for (const char c : text) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  return h;
}

inline uint64_t splitmix64(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

/// Exact in every element type.
inline std::vector<float> golden_values(const std::string& name, const Shape& shape,
                                        double spread) {
  const bool norm = name.ends_with("weight") &&
                    (name.find("norm") != name.npos || name.find("Norm") != name.npos ||
                     name.find(".ln_") != name.npos);
  std::vector<float> values(static_cast<size_t>(numel(shape)));
  for (size_t i = 0; i < values.size(); ++i) {
    const double u = static_cast<double>(splitmix64(fnv1a64(name) + i) >> 57) / 128 - 0.5;
    values[i] = static_cast<float>(norm ? 1 + u : spread * u);
  }
  return values;
}

struct RawTensor {
  std::string name;
  DType dtype;
  Shape shape;
  std::vector<std::byte> bytes;
};

inline RawTensor raw_tensor(const std::string& name, DType dtype, const Shape& shape,
                            const std::vector<float>& values) {
  RawTensor tensor{name, dtype, shape, {}};
  if (dtype == DType::f32) {
    const auto bytes = std::as_bytes(std::span(values));
    tensor.bytes.assign(bytes.begin(), bytes.end());
    return tensor;
  }
  for (const float value : values) {
    const uint16_t bits = dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
    const auto bytes = std::as_bytes(std::span(&bits, 1));
    tensor.bytes.insert(tensor.bytes.end(), bytes.begin(), bytes.end());
  }
  return tensor;
}

inline void write_tensors(const std::string& path, const std::vector<RawTensor>& tensors) {
  std::vector<TensorView> views;
  for (const RawTensor& t : tensors) views.push_back({t.name, t.dtype, t.shape, t.bytes});
  write_safetensors(path, views, {{"format", "pt"}});
}

/// A case of tests/golden/huggingface (a document with config and tensors) as a model's folder.
inline void write_model(const Json& golden, const std::string& folder, DType dtype = DType::f32,
                        size_t shards = 1) {
  make_directories(folder);
  write_text_file(folder + "/config.json", golden["config"].dump());
  if (golden.contains("preprocessor"))
    write_text_file(folder + "/preprocessor_config.json", golden["preprocessor"].dump());
  std::vector<std::vector<RawTensor>> parts(shards);
  Json index;
  size_t next = 0;
  const auto file_of = [&](size_t part) {
    return shards == 1 ? std::string("model.safetensors")
                       : fmt::format("model-{:05}-of-{:05}.safetensors", part + 1, shards);
  };
  for (const auto& [name, shape] : golden["tensors"].items()) {
    const Shape sizes = shape.get<Shape>();
    const size_t part = next++ % shards;
    parts[part].push_back(
        raw_tensor(name, dtype, sizes, golden_values(name, sizes, golden["spread"].get<double>())));
    index["weight_map"][name] = file_of(part);
  }
  for (size_t part = 0; part < shards; ++part)
    write_tensors(folder + "/" + file_of(part), parts[part]);
  if (shards > 1) write_text_file(folder + "/model.safetensors.index.json", index.dump());
}

}  // namespace sluice::bundle::testing
