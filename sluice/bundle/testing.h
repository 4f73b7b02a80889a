// What the tests of bundle and the generator of the fuzz corpus share.
#pragma once
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/bundle/bundle.h"

namespace sluice::bundle::testing {

/// A safetensors file with any header and data.
inline std::string raw_file(std::string_view header, std::string_view data = {}) {
  const uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out.append(header).append(data);
}

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::string as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A ramp: different values without randomness.
inline std::vector<float> ramp(int64_t count, float first = -0.5f, float step = 0.125f) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + step * static_cast<float>(i);
  return values;
}

/// A small residual network with every ordinary part: 2 x 4 x 4 -> 3 classes.
inline Builder small_network() {
  Builder b;
  const auto tensor = [&](const std::string& name, Shape shape) {
    b.tensor(name, shape, ramp(numel(shape)));
    return name;
  };
  b.tensor("block.norm.running_var", {2}, ramp(2, 0.5f));  // a variance is not negative
  Value x = b.input("image", {2, 4, 4});
  const Value conv = b.node("conv2d", "block.conv", {x}, {{"padding", int64_t{1}}},
                            {{"weight", tensor("block.conv.weight", {2, 2, 3, 3})},
                             {"bias", tensor("block.conv.bias", {2})}});
  const Value norm = b.node("batch_norm", "block.norm", {conv}, {{"eps", 1e-5}},
                            {{"weight", tensor("block.norm.weight", {2})},
                             {"bias", tensor("block.norm.bias", {2})},
                             {"running_mean", tensor("block.norm.running_mean", {2})},
                             {"running_var", "block.norm.running_var"}});
  x = b.node("add", "block.add", {norm, x});
  x = b.node("activation", "block.relu", {x}, {{"kind", std::string("relu")}});
  x = b.node("global_avg_pool", "head.pool", {x});
  x = b.node("linear", "head.fc", {x}, {},
             {{"weight", tensor("head.fc.weight", {3, 2})}, {"bias", tensor("head.fc.bias", {3})}});
  b.output(x);
  b.set_model_json(R"({"type":"resnet","channels":[2]})");
  b.set_task({"classify", "fashion-mnist", {"coat", "bag", "boot"}, 0.25, 0.5});
  b.set_provenance_json(
      R"([{"step":"train","epochs":3,"test":{"accuracy":0.875}},{"step":"compact"}])");
  return b;
}

}  // namespace sluice::bundle::testing
