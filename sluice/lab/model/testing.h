// For tests: small random networks, and comparing them.
#pragma once
#include <torch/types.h>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab::testing {

inline at::Tensor random_tensor(at::IntArrayRef sizes, uint64_t seed) {
  return at::empty(sizes).normal_(0, 1, at::make_generator<at::CPUGeneratorImpl>(seed));
}

/// Statistics, scales and shifts as training leaves them: none 0 or 1, some scales negative.
inline void randomize_norms(Brick& root, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (const SlotRef& ref : walk(root)) {
    auto* norm = dynamic_cast<BatchNorm*>(ref.slot->get().get());
    if (norm == nullptr) continue;
    norm->weight.copy_(random_tensor(norm->weight.sizes(), ++seed) * 0.5 + 0.8);
    norm->bias.copy_(random_tensor(norm->bias.sizes(), ++seed) * 0.3);
    norm->running_mean.copy_(random_tensor(norm->bias.sizes(), ++seed) * 0.5);
    norm->running_var.copy_(random_tensor(norm->bias.sizes(), ++seed).abs() + 0.3);
  }
}

inline data::ImageSet image_set(Shape shape = {2, 9, 9}, int64_t classes = 4) {
  data::ImageSet set;
  set.name = "made-up";
  for (int64_t c = 0; c < classes; ++c) set.labels.push_back(fmt::format("class {}", c));
  set.mean = 0.3;
  set.std = 0.4;
  set.train.sample_shape = set.test.sample_shape = std::move(shape);
  return set;
}

/// Odd channel counts, random norms, evaluation mode.
inline Model small_model(const std::string& name, uint64_t seed, Json options = {}) {
  if (options.is_null()) {
    if (name == "resnet") options = {{"width", 5}, {"blocks", 2}, {"stages", 2}};
    if (name == "mlp") options = {{"hidden", {11, 7}}};
    if (name == "convnet") options = {{"widths", {5, 7}}, {"hidden", 9}};
    if (name == "vit") {
      options = {{"patch", 3}, {"width", 6}, {"layers", 2}, {"heads", 2}, {"ffn", 10}};
    }
  }
  Model model = make_model(name, options, image_set(), seed);
  randomize_norms(*model.root, seed * 100);
  model.root->eval();
  return model;
}

inline at::Tensor random_input(const Model& model, int64_t batch, uint64_t seed) {
  if (model.root->vocabulary() > 0) return probe_input(model, batch, seed, model.input_shape[0]);
  std::vector<int64_t> sizes = {batch};
  sizes.insert(sizes.end(), model.input_shape.begin(), model.input_shape.end());
  return random_tensor(sizes, seed);
}

inline at::Tensor run(Model& model, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(*model.root);
  Context context;
  return model.forward(x, context);
}

/// At a size of the network, as Context::size.
inline at::Tensor run_size(Model& model, const at::Tensor& x, int64_t size,
                           Meter* meter = nullptr) {
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(*model.root);
  Context context;
  context.size = size;
  context.meter = meter;
  return model.forward(x, context);
}
inline at::Tensor run(Brick& brick, const at::Tensor& x) {
  Context context;
  return brick.forward(x, context);
}

inline double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  return (found - expected).norm().item<double>() / std::max(1e-30, expected.norm().item<double>());
}

inline void expect_near(const at::Tensor& found, const at::Tensor& expected,
                        double tolerance = 1e-6) {
  ASSERT_EQ(to_string(found.sizes()), to_string(expected.sizes()));
  const double error =
      found.numel() == 0
          ? 0
          : (found.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
  EXPECT_LE(error, tolerance) << "found\n" << found << "\nexpected\n" << expected;
}

/// d sum(f(x) * weights) / dx by central differences, in double.
inline at::Tensor numeric_gradient(const std::function<at::Tensor(const at::Tensor&)>& f,
                                   const at::Tensor& x, const at::Tensor& weights,
                                   double step = 1e-6) {
  at::Tensor gradient = at::zeros_like(x), at_x = x.clone();
  for (int64_t i = 0; i < x.numel(); ++i) {
    double* value = at_x.data_ptr<double>() + i;
    const double middle = *value;
    *value = middle + step;
    const double high = (f(at_x) * weights).sum().item<double>();
    *value = middle - step;
    const double low = (f(at_x) * weights).sum().item<double>();
    *value = middle;
    gradient.data_ptr<double>()[i] = (high - low) / (2 * step);
  }
  return gradient;
}

/// The same by autograd.
inline at::Tensor autograd_gradient(const std::function<at::Tensor(const at::Tensor&)>& f,
                                    const at::Tensor& x, const at::Tensor& weights) {
  at::Tensor leaf = x.clone().requires_grad_(true);
  (f(leaf) * weights).sum().backward();
  return leaf.grad();
}

/// Replaces the gate slots "channel_gate" of all residual blocks by constant masks.
inline void mask_blocks(Model& model, const std::function<at::Tensor(int64_t units)>& mask) {
  for (const SlotRef& ref : walk(*model.root)) {
    if (auto* block = dynamic_cast<ResidualBlock*>(ref.slot->get().get())) {
      const ChannelGroup group = block->channel_groups().at(0);
      block->set_channel_mask(group, mask(group.channels));
    }
  }
}

inline constexpr double kEqual = 1e-5;  // relative, f32

inline PassInput with(Json options) {
  PassInput input;
  input.options = std::move(options);
  return input;
}

inline PassInput calibrated(const Model& model, Json options = Json::object(),
                            int64_t samples = 30) {
  PassInput input = with(std::move(options));
  input.calibration = random_input(model, samples, 77);
  input.batch = 8;
  return input;
}

/// Still runs, reloads to the same function, and equals `before` to rounding.
inline void expect_equal_and_reloadable(const Model& before, const Model& after,
                                        const std::string& what) {
  const TempDirectory folder;
  Model a = clone(before), b = clone(after);
  const at::Tensor x = random_input(a, 6, 31);
  EXPECT_LE(relative_error(run(b, x), run(a, x)), kEqual) << what;
  save_bundle(b, folder / "m.safetensors");
  Model loaded = load_model(folder / "m.safetensors");
  EXPECT_TRUE(at::equal(run(loaded, x), run(b, x))) << what;
}

}  // namespace sluice::lab::testing
