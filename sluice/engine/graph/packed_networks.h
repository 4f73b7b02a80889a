// Networks with packed weights for tests.
#pragma once
#include "sluice/bundle/packed.h"
#include "sluice/engine/graph/test_networks.h"

namespace sluice::engine::testing {

struct ConvWindow {
  int64_t out = 1, groups = 1;
  std::vector<int64_t> kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  bool bias = false;
};

/// A conv2d with random weights in i8.
inline bundle::Value packed_conv(NetworkBuilder& net, const std::string& path,
                                 const bundle::Value& x, const ConvWindow& w,
                                 const std::string& activations) {
  using bundle::Format;
  const int64_t columns = x.shape[0] / w.groups * w.kernel[0] * w.kernel[1];
  const auto values =
      net.normal(static_cast<size_t>(w.out * columns), std::sqrt(2.0 / double(columns)));
  net.builder().tensor(path + ".weight", Format::i8, {w.out, columns},
                       bundle::pack(Format::i8, values, w.out, columns));
  std::map<std::string, std::string> tensors{{"weight", path + ".weight"}};
  if (w.bias) {
    net.tensor(path + ".bias", {w.out}, net.normal(static_cast<size_t>(w.out), 0.5));
    tensors["bias"] = path + ".bias";
  }
  bundle::Attributes attrs{{"kernel", w.kernel},
                           {"stride", w.stride},
                           {"padding", w.padding},
                           {"dilation", w.dilation},
                           {"groups", w.groups}};
  if (activations != "f32") attrs["activations"] = activations;
  return net.builder().node("conv2d", path, {x}, attrs, tensors);
}

}  // namespace sluice::engine::testing
