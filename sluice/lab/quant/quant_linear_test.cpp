#include "sluice/lab/quant/quant_linear.h"

#include <limits>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/lab/model/testing.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace quant_linear_test {

using namespace testing;  // NOLINT: test helpers
using bundle::Format;

std::vector<Format> packed_formats() {
  std::vector<Format> formats;
  for (const Format format : bundle::all_formats()) {
    if (format != Format::f32) formats.push_back(format);
  }
  return formats;
}

std::shared_ptr<Linear> linear(int64_t inputs, int64_t outputs, uint64_t seed) {
  auto layer = std::make_shared<Linear>(inputs, outputs);
  const at::NoGradGuard no_grad;
  layer->weight.copy_(random_tensor({outputs, inputs}, seed));
  layer->bias.copy_(random_tensor({outputs}, seed + 1));
  return layer;
}

/// Flatten, then this brick.
Model model_of(BrickPtr brick, const Shape& input) {
  auto root = std::make_shared<Sequential>();
  root->append("flatten", std::make_shared<Flatten>());
  root->append("fc", std::move(brick));
  root->eval();
  Model model;
  model.root = root;
  model.input_shape = input;
  return model;
}

TEST(QuantLinear, ComputesWithTheValuesThatItsBytesStandFor) {
  for (const Format format : packed_formats()) {
    for (const int64_t inputs : {33, 64, 130}) {
      const auto layer = linear(inputs, 7, 3);
      const auto packed = QuantLinear::pack(*layer, format, ActivationFormat::f32);
      std::vector<float> values(static_cast<size_t>(7 * inputs));
      bundle::unpack(bundle::view_packed(format, 7, inputs, packed->bytes(), "test"), values);
      const at::Tensor w = torch::from_blob(values.data(), {7, inputs});
      EXPECT_TRUE(at::equal(packed->values(), w)) << bundle::format_name(format);
      const at::Tensor x = random_tensor({5, inputs}, 8);
      EXPECT_TRUE(at::equal(run(*packed, x), at::linear(x, w, layer->bias)));
      EXPECT_TRUE(at::equal(run(*packed->unpacked(), x), run(*packed, x)));
      EXPECT_EQ(packed->cost({inputs}).weight_bytes,
                bundle::stored_bytes(format, {7, inputs}) + 4 * 7);
      EXPECT_EQ(packed->cost({inputs}).params, layer->cost({inputs}).params);
      EXPECT_EQ(packed->cost({3, inputs}).macs, layer->cost({3, inputs}).macs);
    }
  }
}

TEST(QuantLinear, SeesThatItsBytesChanged) {
  const auto packed = QuantLinear::pack(*linear(40, 3, 1), Format::i8, ActivationFormat::f32);
  const auto other = QuantLinear::pack(*linear(40, 3, 2), Format::i8, ActivationFormat::f32);
  packed->values();
  packed->weight.copy_(other->weight);
  EXPECT_TRUE(at::equal(packed->values(), other->values()));
}

TEST(QuantLinear, RoundsActivationsAsTheBundleDoes) {
  const float inf = std::numeric_limits<float>::infinity();
  at::Tensor x = random_tensor({9, 37}, 4);
  x[1] *= 1e-30;
  x[2] *= 1e30;
  x[3].fill_(0);
  x[4].fill_(-2.5f);
  x[5].copy_(at::arange(37, at::kFloat) - 18.5f);  // halves of the scale: ties
  x[5][0] = 127;
  x[6][11] = inf;
  x[7][5] = NAN;
  const at::Tensor found = fake_quantized(x, ActivationFormat::i8);
  for (int64_t row = 0; row < x.size(0); ++row) {
    std::vector<int8_t> codes(37);
    const float scale =
        bundle::quantize_activations({x[row].contiguous().data_ptr<float>(), 37}, codes.data());
    for (int64_t i = 0; i < 37; ++i) {
      const float value = found[row][i].item<float>();
      if (std::isnan(scale)) {
        EXPECT_TRUE(std::isnan(value)) << row << " " << i;
      } else {
        EXPECT_EQ(value, scale * static_cast<float>(codes[static_cast<size_t>(i)]))
            << row << " " << i;
      }
    }
  }
  EXPECT_TRUE(at::equal(fake_quantized(x.slice(0, 0, 5), ActivationFormat::f32), x.slice(0, 0, 5)));
  const at::Tensor half = fake_quantized(x[0], ActivationFormat::bf16);
  for (int64_t i = 0; i < 37; ++i) {
    EXPECT_EQ(half[i].item<float>(),
              bundle::bf16_to_f32(bundle::f32_to_bf16(x[0][i].item<float>())));
  }
}

TEST(QuantLinear, LetsGradientsThroughToItsInputAndBias) {
  const auto packed = QuantLinear::pack(*linear(32, 4, 5), Format::i4_group, ActivationFormat::i8);
  const at::Tensor x = random_tensor({3, 32}, 6).requires_grad_(true);
  const at::Tensor y = run(*packed, x);
  y.sum().backward();
  expect_near(x.grad(), packed->values().sum(0).expand({3, 32}), 1e-5);
  expect_near(packed->bias.grad(), at::full({4}, 3.f));
  EXPECT_TRUE(at::equal(y.detach(), run(*packed, x.detach()))) << "training rounds as inference";
}

TEST(QuantLinear, ReloadsToTheSameBytes) {
  const TempDirectory folder;
  for (const Format format : packed_formats()) {
    for (const ActivationFormat activations :
         {ActivationFormat::f32, ActivationFormat::bf16, ActivationFormat::i8}) {
      const auto packed = QuantLinear::pack(*linear(48, 6, 7), format, activations);
      Model model = model_of(packed, {3, 4, 4});
      save_bundle(model, folder / "m.safetensors");
      Model loaded = load_model(folder / "m.safetensors");
      const auto& again = loaded.root->slot("fc").as<QuantLinear>();
      EXPECT_EQ(again.format(), format);
      EXPECT_EQ(again.activations(), activations);
      EXPECT_TRUE(at::equal(again.weight, packed->weight)) << bundle::format_name(format);
      const at::Tensor x = random_input(model, 4, 9);
      EXPECT_TRUE(at::equal(run(loaded, x), run(model, x))) << bundle::format_name(format);
      const bundle::Bundle bundle = bundle::Bundle::open(folder / "m.safetensors");
      EXPECT_EQ(bundle.info().total.weight_bytes, model.cost().weight_bytes);
      EXPECT_EQ(bundle.info().total.params, model.cost().params);
      Model copy = clone(loaded);
      EXPECT_TRUE(at::equal(run(copy, x), run(model, x)));
    }
  }
}

TEST(QuantLinear, RefusesFilesWhoseDescriptionAndBytesDisagree) {
  bundle::Builder builder;
  Model model =
      model_of(QuantLinear::pack(*linear(64, 4, 1), Format::ternary, ActivationFormat::f32), {64});
  lower(model, builder);
  const auto with = [&](const std::string& key, const Json& value) {
    Json description = {{"brick", spec_of(*model.root)}, {"input_shape", model.input_shape}};
    description["brick"]["slots"]["fc"]["attributes"][key] = value;
    bundle::Builder changed = builder;
    changed.set_model_json(description.dump());
    const std::vector<std::byte> bytes = changed.bytes();
    load_model(bundle::Bundle::parse(bytes, "test", {}));
  };
  expect_error(Code::shape, "packed bytes", [&] { with("format", "i8"); });
  expect_error(Code::shape, "expected [.., 65]", [&] { with("inputs", 65); });
  expect_error(Code::shape, "fc.bias", [&] { with("outputs", 3); });
  expect_error(Code::config, "did you mean 'ternary'", [&] { with("format", "ternray"); });
  expect_error(Code::config, "activations of quant_linear", [&] { with("activations", "i7"); });
  expect_error(Code::config, "f32 is what", [&] { with("format", "f32"); });
}

TEST(QuantLinear, RefusesWhatItCannotHold) {
  auto layer = linear(40, 3, 1);
  {
    const at::NoGradGuard no_grad;
    layer->weight[1][2] = NAN;
  }
  for (const Format format : packed_formats()) {
    expect_error(
        Code::numeric, "", [&] { QuantLinear::pack(*layer, format, ActivationFormat::f32); },
        std::string(bundle::format_name(format)));
  }
  expect_error(Code::shape, "expected [.., 40], found 3", [&] {
    QuantLinear::pack(*linear(40, 3, 1), Format::i8, ActivationFormat::f32)->output_shape({3});
  });
}

#if SLUICE_HAS_ENGINE
TEST(QuantLinear, GivesWhatTheEngineGives) {
  for (const Format format : packed_formats()) {
    for (const ActivationFormat activations :
         {ActivationFormat::f32, ActivationFormat::bf16, ActivationFormat::i8}) {
      for (const int64_t inputs : {32, 150}) {
        const auto packed = QuantLinear::pack(*linear(inputs, 33, 11), format, activations);
        Model model = model_of(packed, {inputs});
        for (const int64_t batch : {1, 5, 40}) {
          EXPECT_LE(engine_error(model, random_input(model, batch, 12)), 1e-5)
              << bundle::format_name(format) << " " << activation_format_name(activations) << " "
              << inputs << " batch " << batch;
        }
      }
    }
  }
}
#endif

}  // namespace quant_linear_test
}  // namespace sluice::lab
