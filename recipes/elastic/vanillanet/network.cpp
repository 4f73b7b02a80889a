#include "recipes/elastic/vanillanet/network.h"

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/fading.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"

namespace sluice::recipes::vanillanet {
namespace {

using lab::Sequential;

std::shared_ptr<lab::Conv2d> conv(int64_t inputs, int64_t outputs, int64_t kernel,
                                  int64_t stride = 1, int64_t padding = 0, int64_t groups = 1) {
  return std::make_shared<lab::Conv2d>(lab::Conv2dOptions{.inputs = inputs,
                                                          .outputs = outputs,
                                                          .kernel = kernel,
                                                          .stride = stride,
                                                          .padding = padding,
                                                          .groups = groups,
                                                          .bias = false});
}

void append_norm(Sequential& to, const std::string& name, int64_t channels) {
  to.append(name, std::make_shared<lab::BatchNorm>(channels, 1e-6));
}

/// A sum of shifted relus with learned weights: y = norm(depthwise(relu(x))).
void append_series(Sequential& to, int64_t channels, int64_t n) {
  to.append("relu", std::make_shared<lab::Activation>("relu"));
  if (n == 0) return;
  to.append("series", conv(channels, channels, 2 * n + 1, 1, n, channels));
  append_norm(to, "series_norm", channels);
}

std::shared_ptr<Sequential> stem(const Layout& layout, int64_t inputs, bool deep) {
  auto result = std::make_shared<Sequential>();
  const int64_t width = layout.widths.front();
  result->append("conv1", conv(inputs, width, 4, layout.stem_stride, 2));
  append_norm(*result, "norm1", width);
  if (deep) {
    result->append("fade", std::make_shared<lab::FadingActivation>());
    result->append("conv2", conv(width, width, 1));
    append_norm(*result, "norm2", width);
  }
  append_series(*result, width, layout.series);
  return result;
}

std::shared_ptr<Sequential> stage(const Layout& layout, size_t index, bool deep) {
  auto result = std::make_shared<Sequential>();
  const int64_t from = layout.widths[index], to = layout.widths[index + 1];
  result->append("conv1", conv(from, deep ? from : to, 1));
  append_norm(*result, "norm1", deep ? from : to);
  if (deep) {
    result->append("fade", std::make_shared<lab::FadingActivation>());
    result->append("conv2", conv(from, to, 1));
    append_norm(*result, "norm2", to);
  }
  if (const int64_t stride = layout.strides[index]; stride > 1) {
    result->append("pool", std::make_shared<lab::Pool2d>("max", stride, stride));
  }
  append_series(*result, to, layout.series);
  return result;
}

}  // namespace

lab::Model make_network(const Layout& layout, bool deep, const data::ImageSet& data,
                        uint64_t seed) {
  if (layout.widths.size() < 2 || layout.strides.size() + 1 != layout.widths.size()) {
    fail(Code::config, "vanillanet: {} widths and {} strides; expected one width more",
         layout.widths.size(), layout.strides.size());
  }
  const auto classes = static_cast<int64_t>(data.labels.size());
  auto root = std::make_shared<Sequential>();
  root->append("stem", stem(layout, data.train.sample_shape[0], deep));
  for (size_t i = 0; i < layout.strides.size(); ++i) {
    root->append(fmt::format("stage{}", i), stage(layout, i, deep));
  }
  root->append("pool", std::make_shared<lab::Pool2d>("global_avg"));
  auto head = std::make_shared<Sequential>();
  head->append("fc1", std::make_shared<lab::Linear>(layout.widths.back(), classes));
  if (deep) {
    append_norm(*head, "norm", classes);
    head->append("fade", std::make_shared<lab::FadingActivation>());
    head->append("fc2", std::make_shared<lab::Linear>(classes, classes));
  }
  root->append("head", std::move(head));

  lab::initialize(*root, "kaiming_normal", seed);
  for (const lab::SlotRef& ref : lab::walk(*root)) {  // as the authors' code: normal, 0.02
    if (!ref.path.ends_with(".series")) continue;
    lab::fill_normal(ref.slot->as<lab::Conv2d>().weight, 0.02, derive_seed(seed, ref.path));
  }
  lab::Model model;
  model.root = std::move(root);
  model.input_shape = data.train.sample_shape;
  model.root->output_shape(model.input_shape);
  model.task = {"classify", data.name, data.labels, data.mean, data.std};
  return model;
}

int64_t layer_count(const lab::Model& model) {
  int64_t count = 0;
  for (const lab::SlotRef& ref : lab::walk(*model.root)) {
    count += !ref.slot->empty() && dynamic_cast<const lab::Sliceable*>(ref.slot->get().get());
  }
  return count;
}

}  // namespace sluice::recipes::vanillanet
