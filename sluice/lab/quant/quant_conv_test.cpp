#include "sluice/lab/quant/quant_conv.h"

#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/bundle/conv2d.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace quant_conv_test {

using namespace testing;  // NOLINT: test helpers
using bundle::Format;

std::shared_ptr<GraphConv> graph_conv(GraphConvOptions options, uint64_t seed) {
  auto layer = std::make_shared<GraphConv>(std::move(options));
  const at::NoGradGuard no_grad;
  layer->weight.copy_(random_tensor(layer->weight.sizes(), seed));
  if (layer->bias.defined()) layer->bias.copy_(random_tensor(layer->bias.sizes(), seed + 1));
  return layer;
}

std::shared_ptr<Conv2d> square_conv(uint64_t seed) {
  auto layer = std::make_shared<Conv2d>(Conv2dOptions{
      .inputs = 6, .outputs = 20, .kernel = 3, .stride = 2, .padding = 1, .groups = 2});
  const at::NoGradGuard no_grad;
  layer->weight.copy_(random_tensor(layer->weight.sizes(), seed));
  layer->bias.copy_(random_tensor(layer->bias.sizes(), seed + 1));
  return layer;
}

/// Ordinary, depthwise, dilated with sizes that differ, grouped.
std::vector<GraphConvOptions> kinds_of_convolutions() {
  GraphConvOptions plain, depthwise, uneven, grouped;
  plain.inputs = 7, plain.outputs = 19;
  depthwise.inputs = depthwise.outputs = depthwise.groups = 12;
  depthwise.kernel = {5, 5}, depthwise.padding = {2, 2};
  uneven.inputs = 5, uneven.outputs = 16, uneven.bias = false;
  uneven.kernel = {1, 3}, uneven.stride = {2, 1}, uneven.padding = {0, 2}, uneven.dilation = {1, 2};
  grouped.inputs = 8, grouped.outputs = 6, grouped.groups = 2, grouped.kernel = {3, 2};
  return {plain, depthwise, uneven, grouped};
}

Model model_of(BrickPtr brick, const Shape& input) {
  auto root = std::make_shared<Sequential>();
  root->append("conv", std::move(brick));
  root->append("relu", std::make_shared<Activation>("relu"));
  root->eval();
  Model model;
  model.root = root;
  model.input_shape = input;
  return model;
}

TEST(QuantConv, ComputesWithTheValuesThatItsBytesStandFor) {
  for (const GraphConvOptions& options : kinds_of_convolutions()) {
    const auto layer = graph_conv(options, 3);
    const auto packed = QuantConv::pack(*layer, ActivationFormat::f32);
    const Shape input{options.inputs, 11, 9};
    const at::Tensor flat = layer->weight.flatten(1).contiguous();
    std::vector<float> values(static_cast<size_t>(flat.numel()));
    bundle::unpack(
        bundle::view_packed(Format::i8, flat.size(0), flat.size(1), packed->bytes(), "test"),
        values);
    EXPECT_TRUE(
        at::equal(packed->values().flatten(1), torch::from_blob(values.data(), flat.sizes())));
    EXPECT_LT(relative_error(packed->values(), layer->weight), 0.02);
    const at::Tensor x = random_tensor({2, options.inputs, 11, 9}, 8);
    const BrickPtr plain = packed->unpacked();
    EXPECT_EQ(plain->kind(), "graph_conv");
    EXPECT_EQ(plain->attributes(), layer->attributes());
    EXPECT_TRUE(at::equal(run(*plain, x), run(*packed, x)));
    EXPECT_EQ(packed->output_shape(input), layer->output_shape(input));
    EXPECT_EQ(packed->cost(input).macs, layer->cost(input).macs);
    EXPECT_EQ(packed->cost(input).params, layer->cost(input).params);
    EXPECT_EQ(packed->cost(input).weight_bytes,
              flat.numel() + 4 * flat.size(0) + (options.bias ? 4 * flat.size(0) : 0));
  }
  const auto square = square_conv(5);
  const auto packed = QuantConv::pack(*square, ActivationFormat::f32);
  EXPECT_EQ(packed->unpacked()->kind(), "conv2d");
  EXPECT_EQ(packed->unpacked()->attributes(), square->attributes());
}

TEST(QuantConv, RoundsSamplesAsTheBundleDoes) {
  at::Tensor x = random_tensor({7, 3, 4, 5}, 4);
  x[1] *= 1e-30;
  x[2] *= 1e30;
  x[3].fill_(0);
  x[4] *= 1e-42;
  x[5][1][2][3] = -std::numeric_limits<float>::infinity();
  x[6][0][0][0] = NAN;
  const at::Tensor found = fake_quantized_samples(x);
  for (int64_t s = 0; s < x.size(0); ++s) {
    std::vector<int8_t> codes(60);
    const at::Tensor sample = x[s].contiguous(), rounded = found[s].contiguous();
    const float scale =
        bundle::quantize_sample({sample.data_ptr<float>(), codes.size()}, codes.data());
    for (size_t i = 0; i < codes.size(); ++i) {
      const float value = rounded.data_ptr<float>()[i];
      if (std::isnan(scale)) {
        EXPECT_TRUE(std::isnan(value)) << s << " " << i;
      } else {
        EXPECT_EQ(value, scale * static_cast<float>(codes[i])) << s << " " << i;
      }
    }
  }
}

TEST(QuantConv, LetsGradientsThroughToItsInputAndBias) {
  const auto packed = QuantConv::pack(*square_conv(5), ActivationFormat::i8);
  const at::Tensor x = random_tensor({3, 6, 8, 8}, 6).requires_grad_(true);
  const at::Tensor y = run(*packed, x);
  y.sum().backward();
  EXPECT_GT(x.grad().abs().sum().item<double>(), 0);
  expect_near(packed->bias.grad(), at::full({20}, 3.f * 16));
  EXPECT_TRUE(at::equal(y.detach(), run(*packed, x.detach()))) << "training rounds as inference";
}

TEST(QuantConv, ReloadsToTheSameBytes) {
  const TempDirectory folder;
  for (const ActivationFormat activations : {ActivationFormat::f32, ActivationFormat::i8}) {
    for (const GraphConvOptions& options : kinds_of_convolutions()) {
      const auto packed = QuantConv::pack(*graph_conv(options, 7), activations);
      Model model = model_of(packed, {options.inputs, 11, 9});
      save_bundle(model, folder / "m.safetensors");
      Model loaded = load_model(folder / "m.safetensors");
      const auto& again = loaded.root->slot("conv").as<QuantConv>();
      EXPECT_EQ(again.attributes(), packed->attributes());
      EXPECT_TRUE(at::equal(again.weight, packed->weight));
      const at::Tensor x = random_input(model, 4, 9);
      EXPECT_TRUE(at::equal(run(loaded, x), run(model, x)));
      const bundle::Bundle bundle = bundle::Bundle::open(folder / "m.safetensors");
      EXPECT_EQ(bundle.info().total.weight_bytes, model.cost().weight_bytes);
      EXPECT_EQ(bundle.info().total.macs, model.cost().macs);
      Model copy = clone(loaded);
      EXPECT_TRUE(at::equal(run(copy, x), run(model, x)));
    }
  }
}

TEST(QuantConv, RefusesFilesWhoseDescriptionAndBytesDisagree) {
  bundle::Builder builder;
  Model model = model_of(QuantConv::pack(*square_conv(1), ActivationFormat::f32), {6, 9, 9});
  lower(model, builder);
  const auto with = [&](const std::string& key, const Json& value) {
    Json description = {{"brick", spec_of(*model.root)}, {"input_shape", model.input_shape}};
    description["brick"]["slots"]["conv"]["attributes"][key] = value;
    bundle::Builder changed = builder;
    changed.set_model_json(description.dump());
    const std::vector<std::byte> bytes = changed.bytes();
    load_model(bundle::Bundle::parse(bytes, "test", {}));
  };
  expect_error(Code::shape, "packed bytes", [&] { with("kernel", {5, 5}); });
  expect_error(Code::shape, "expected [8, ", [&] { with("inputs", 8); });
  expect_error(Code::config, "square of quant_conv", [&] { with("dilation", {2, 2}); });
  expect_error(Code::config, "activations of quant_conv", [&] { with("activations", "bf16"); });
  expect_error(Code::config, "kernel", [&] { with("kernel", {3}); });
}

#if SLUICE_HAS_ENGINE
TEST(QuantConv, GivesWhatTheEngineGives) {
  for (const ActivationFormat activations : {ActivationFormat::f32, ActivationFormat::i8}) {
    for (const GraphConvOptions& options : kinds_of_convolutions()) {
      Model model =
          model_of(QuantConv::pack(*graph_conv(options, 11), activations), {options.inputs, 11, 9});
      for (const int64_t batch : {1, 3}) {
        EXPECT_LE(engine_error(model, random_input(model, batch, 12)), 1e-5)
            << activation_format_name(activations) << " " << options.inputs << " batch " << batch;
      }
    }
  }
}
#endif

}  // namespace quant_conv_test
}  // namespace sluice::lab
