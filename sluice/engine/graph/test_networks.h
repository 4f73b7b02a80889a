// Networks with seeded random weights for tests and benches.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"

namespace sluice::engine::testing {

/// A bundle in memory together with its bytes.
struct Model {
  std::vector<std::byte> bytes;
  bundle::Bundle bundle;
  explicit Model(std::vector<std::byte> b, const std::string& what = "model")
      : bytes(std::move(b)),
        bundle(bundle::Bundle::parse(bytes, what, bundle::Bundle::Options{})) {}
};

class NetworkBuilder {
 public:
  explicit NetworkBuilder(uint64_t seed) : random_(seed) {}

  std::vector<float> normal(size_t count, double deviation) {
    std::normal_distribution<float> values(0.0f, static_cast<float>(deviation));
    std::vector<float> result(count);
    for (float& v : result) v = values(random_);
    return result;
  }
  std::vector<float> uniform(size_t count, float low, float high) {
    std::uniform_real_distribution<float> values(low, high);
    std::vector<float> result(count);
    for (float& v : result) v = values(random_);
    return result;
  }
  int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  bool coin() { return pick(0, 1) == 1; }

  bundle::Value input(Shape shape) { return builder_.input("input", std::move(shape)); }

  bundle::Value conv(const std::string& path, const bundle::Value& x, int64_t out, int64_t kernel,
                     int64_t stride = 1, bool bias = false, int64_t groups = 1,
                     int64_t dilation = 1) {
    const Shape shape{out, x.shape[0] / groups, kernel, kernel};
    const int64_t fan = shape[1] * kernel * kernel;
    tensor(path + ".weight", shape,
           normal(static_cast<size_t>(out * fan), std::sqrt(2.0 / double(fan))));
    std::map<std::string, std::string> tensors{{"weight", path + ".weight"}};
    if (bias) {
      tensor(path + ".bias", {out}, normal(static_cast<size_t>(out), 0.5));
      tensors["bias"] = path + ".bias";
    }
    const std::vector<int64_t> padding(2, dilation * (kernel / 2));
    return builder_.node("conv2d", path, {x},
                         {{"stride", std::vector<int64_t>{stride, stride}},
                          {"padding", padding},
                          {"dilation", std::vector<int64_t>{dilation, dilation}},
                          {"groups", groups}},
                         tensors);
  }

  bundle::Value batch_norm(const std::string& path, const bundle::Value& x) {
    const int64_t channels = x.shape[0];
    const size_t n = static_cast<size_t>(channels);
    tensor(path + ".weight", {channels}, uniform(n, 0.5f, 1.5f));
    tensor(path + ".bias", {channels}, normal(n, 0.2));
    tensor(path + ".running_mean", {channels}, normal(n, 0.3));
    tensor(path + ".running_var", {channels}, uniform(n, 0.5f, 2.0f));
    return builder_.node("batch_norm", path, {x}, {},
                         {{"weight", path + ".weight"},
                          {"bias", path + ".bias"},
                          {"running_mean", path + ".running_mean"},
                          {"running_var", path + ".running_var"}});
  }

  bundle::Value activation(const std::string& path, const bundle::Value& x,
                           const std::string& kind = "relu") {
    return builder_.node("activation", path, {x}, {{"kind", kind}});
  }

  /// `density` of the weights are kept, the others are zero.
  bundle::Value linear(const std::string& path, const bundle::Value& x, int64_t out,
                       bool bias = true, double density = 1.0) {
    const int64_t in = x.shape.back();
    std::vector<float> weight =
        normal(static_cast<size_t>(out * in), std::sqrt(2.0 / (double(in) * density)));
    std::bernoulli_distribution keep(density);
    for (float& w : weight) w = keep(random_) ? w : 0.0f;
    tensor(path + ".weight", {out, in}, weight);
    std::map<std::string, std::string> tensors{{"weight", path + ".weight"}};
    if (bias) {
      tensor(path + ".bias", {out}, normal(static_cast<size_t>(out), 0.3));
      tensors["bias"] = path + ".bias";
    }
    return builder_.node("linear", path, {x}, {}, tensors);
  }

  bundle::Value scale(const std::string& path, const bundle::Value& x, int64_t channels,
                      float low = -1.5f) {
    tensor(path + ".scale", {channels}, uniform(static_cast<size_t>(channels), low, 1.5f));
    return builder_.node("scale", path, {x}, {}, {{"scale", path + ".scale"}});
  }

  bundle::Value node(const std::string& op, const std::string& path,
                     const std::vector<bundle::Value>& inputs, bundle::Attributes attrs = {}) {
    return builder_.node(op, path, inputs, std::move(attrs));
  }

  void tensor(const std::string& name, Shape shape, const std::vector<float>& values) {
    builder_.tensor(name, std::move(shape), values);
  }

  bundle::Builder& builder() { return builder_; }
  Model finish(const bundle::Value& output) {
    builder_.output(output);
    return Model(builder_.bytes());
  }

 private:
  std::mt19937_64 random_;
  bundle::Builder builder_;
};

struct ResnetShape {
  int64_t in_channels = 1, size = 28, width = 16, blocks = 2, classes = 10, stem_stride = 1;
  /// Inner channels of a block, given its index over the whole network and its width. Default: the
  /// width itself.
  std::function<int64_t(int64_t block, int64_t width)> inner = [](int64_t, int64_t width) {
    return width;
  };
};

/// About half of the width, always odd: what slicing leaves behind.
inline int64_t half_odd(int64_t block, int64_t width) {
  return std::max<int64_t>(1, width / 2 - 5 + 4 * (block % 3)) | 1;
}

/// Stem, three stages of `blocks` residual blocks with widths W, 2W, 4W, global average pool,
/// linear.
inline Model make_resnet(const ResnetShape& s, uint64_t seed = 7) {
  NetworkBuilder net(seed);
  bundle::Value x = net.input({s.in_channels, s.size, s.size});
  x = net.conv("stem.conv", x, s.width, 3, s.stem_stride);
  x = net.activation("stem.relu", net.batch_norm("stem.bn", x));
  int64_t index = 0;
  for (int64_t stage = 0; stage < 3; ++stage) {
    const int64_t width = s.width << stage;
    for (int64_t block = 0; block < s.blocks; ++block, ++index) {
      const std::string path = "stage" + std::to_string(stage) + "." + std::to_string(block);
      const int64_t stride = stage > 0 && block == 0 ? 2 : 1;
      bundle::Value y = net.conv(path + ".conv1", x, s.inner(index, width), 3, stride);
      y = net.activation(path + ".relu1", net.batch_norm(path + ".bn1", y));
      y = net.batch_norm(path + ".bn2", net.conv(path + ".conv2", y, width, 3));
      bundle::Value shortcut = x;
      if (x.shape != y.shape) {
        shortcut = net.batch_norm(path + ".shortcut.bn",
                                  net.conv(path + ".shortcut.conv", x, width, 1, stride));
      }
      x = net.activation(path + ".relu2", net.node("add", path + ".add", {y, shortcut}));
    }
  }
  x = net.node("global_avg_pool", "pool", {x});
  return net.finish(net.linear("head", x, s.classes));
}

}  // namespace sluice::engine::testing
