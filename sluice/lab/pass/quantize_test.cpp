#include <limits>

#include "sluice/base/json.h"
#include "sluice/lab/model/testing.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/quant/quant_conv.h"
#include "sluice/lab/quant/quant_linear.h"
#if SLUICE_HAS_ENGINE
#include "sluice/lab/model/engine_testing.h"
#endif

namespace sluice::lab {
namespace quantize_test {

using namespace testing;  // NOLINT: test helpers
using bundle::Format;

/// Large enough that every format pays, odd sizes all the same.
Model network(const std::string& name, uint64_t seed) {
  return name == "mlp" ? small_model("mlp", seed, {{"hidden", {101, 70}}})
                       : small_model("convnet", seed, {{"widths", {5, 7}}, {"hidden", 90}});
}

const Json& report_of(const Model& model) { return model.provenance.back().at("report"); }

std::vector<std::string> kinds(const Model& model) {
  std::vector<std::string> result;
  for (const BrickRef& ref : all_bricks(model)) {
    if (ref.brick->kind().ends_with("linear")) result.push_back(ref.brick->kind());
  }
  return result;
}

TEST(Quantize, PacksEveryLinearLayerAndMeasuresTheError) {
  const Model model = network("convnet", 1);
  const Model packed = run_pass(model, "quantize", with({{"format", "i8-32"}}));
  EXPECT_THAT(kinds(packed), ::testing::ElementsAre("quant_linear", "quant_linear"));
  const Json& report = report_of(packed);
  EXPECT_EQ(report.at("quantized"), 2);
  EXPECT_LT(report.at("relative_rms").get<double>(), 0.01);
  EXPECT_GT(report.at("relative_rms").get<double>(), 1e-5);
  EXPECT_EQ(report.at("convolution_bytes"), 4 * 9 * (2 * 5 + 5 * 7));
  const Json& fc1 = report.at("layers").at("fc1");
  EXPECT_EQ(fc1.at("rows"), 90);
  EXPECT_EQ(fc1.at("bytes_before"), 4 * 90 * fc1.at("columns").get<int64_t>());
  EXPECT_EQ(model.cost().weight_bytes - packed.cost().weight_bytes,
            report.at("bytes_before").get<int64_t>() - report.at("bytes_after").get<int64_t>());
  EXPECT_EQ(model.cost().macs, packed.cost().macs);
}

TEST(Quantize, PacksConvolutionsInI8AndRoundsTheInputsOfLargeOnes) {
  Model model = small_model("convnet", 1, {{"widths", {5, 24, 32}}, {"hidden", 90}});
  Model packed = run_pass(model, "quantize", with({{"format", "i8"}, {"activations", "i8"}}));
  std::vector<std::string> found;
  for (const BrickRef& ref : all_bricks(packed)) {
    const auto* conv = dynamic_cast<const QuantConv*>(ref.brick.get());
    if (conv == nullptr) continue;
    found.push_back(fmt::format("{} {}", ref.path, activation_format_name(conv->activations())));
    EXPECT_EQ(report_of(packed).at("layers").at(ref.path).at("activations"),
              std::string(activation_format_name(conv->activations())));
  }
  EXPECT_THAT(found, ::testing::ElementsAre("conv1 f32", "conv2 f32", "conv3 i8"));
  const Json& report = report_of(packed);
  EXPECT_EQ(report.at("quantized"), 5);
  EXPECT_EQ(report.at("convolution_bytes"), 0);
  EXPECT_EQ(report.at("layers").at("conv2").at("columns"), 5 * 9);
  EXPECT_EQ(model.cost().weight_bytes - packed.cost().weight_bytes,
            report.at("bytes_before").get<int64_t>() - report.at("bytes_after").get<int64_t>());
  EXPECT_EQ(model.cost().macs, packed.cost().macs);
  const at::Tensor x = random_input(model, 6, 5);
  EXPECT_LT(relative_error(run(packed, x), run(model, x)), 0.03);

  Model spared = run_pass(model, "quantize", with({{"skip", "conv1"}}));
  EXPECT_EQ(report_of(spared).at("left").at("conv1"), "skipped");
  EXPECT_EQ(report_of(spared).at("convolution_bytes"), 4 * 9 * 2 * 5);
  Model back = run_pass(packed, "dequantize", {});
  EXPECT_EQ(back.root->slot("conv2").get()->kind(), "conv2d");
  EXPECT_EQ(back.cost().weight_bytes, model.cost().weight_bytes);
}

TEST(Quantize, PackedConvolutionsGoThroughPassesThatMoveChannels) {
  Model model = small_model("resnet", 2, {{"width", 20}, {"blocks", 1}, {"stages", 2}});
  Model packed = run_pass(model, "quantize", with({{"activations", "i8"}}));
  for (const char* pass : {"fold-norm", "slice-channels"})  // neither touches packed layers
    expect_equal_and_reloadable(packed, run_pass(packed, pass, {}), pass);
  Model folded = run_pass(run_pass(model, "fold-norm", {}), "quantize", {});
  const at::Tensor x = random_input(model, 4, 5);
  EXPECT_LT(relative_error(run(folded, x), run(model, x)), 0.03);
}

TEST(Quantize, FewerBitsErrMore) {
  Model model = network("mlp", 2);
  double last = 0;
  for (const char* format : {"bf16", "i8-32", "i8", "i4-32-min", "binary-2", "binary"}) {
    const Model packed = run_pass(model, "quantize", with({{"format", format}}));
    const double error = report_of(packed).at("relative_rms").get<double>();
    EXPECT_GT(error, last) << format;
    last = error;
  }
  EXPECT_LT(last, 1);
}

TEST(Quantize, LeavesWhatIsSkippedOrTooSmall) {
  const Model model = network("mlp", 3);
  const Model one = run_pass(model, "quantize", with({{"skip", {"fc1", "fc3"}}}));
  EXPECT_THAT(kinds(one), ::testing::ElementsAre("linear", "quant_linear", "linear"));
  EXPECT_EQ(report_of(one).at("left").at("fc3"), "skipped");
  const Model named = run_pass(model, "quantize", with({{"slots", "fc2"}, {"skip", "fc3"}}));
  EXPECT_THAT(kinds(named), ::testing::ElementsAre("linear", "quant_linear", "linear"));

  const Model small = small_model("mlp", 3, {{"hidden", {40, 2}}});  // fc3 reads 2 columns
  const Model rest = run_pass(small, "quantize", with({{"format", "i4-32-min"}}));
  EXPECT_THAT(report_of(rest).at("left").at("fc3").get<std::string>(),
              ::testing::HasSubstr("too small"));
  expect_error(Code::usage, "fc3: too small: ", [&] {
    run_pass(small, "quantize", with({{"format", "i4-32-min"}, {"slots", "fc3"}}));
  });
}

TEST(Quantize, DequantizeGivesTheRepresentedValuesBack) {
  for (const Format format : bundle::all_formats()) {
    if (format == Format::f32) continue;
    Model model = network("mlp", 4);
    Model packed =
        run_pass(model, "quantize", with({{"format", std::string(bundle::format_name(format))}}));
    Model back = run_pass(packed, "dequantize", {});
    EXPECT_THAT(kinds(back), ::testing::ElementsAre("linear", "linear", "linear"));
    const at::Tensor x = random_input(model, 6, 5);
    EXPECT_TRUE(at::equal(run(back, x), run(packed, x))) << bundle::format_name(format);
    EXPECT_GT(relative_error(run(packed, x), run(model, x)), 0);
    EXPECT_EQ(back.cost().weight_bytes, model.cost().weight_bytes);
  }
}

TEST(Quantize, CalibrationChoosesTheColumnsThatMatter) {
  // Column 5 has small weights and by far the largest inputs.
  Model model = small_model("mlp", 5, {{"hidden", {60, 60}}});
  const at::NoGradGuard no_grad;
  auto& layer = model.root->slot("fc1").as<Linear>();
  layer.weight.select(1, 5).mul_(0.1);
  PassInput input = calibrated(model, {{"format", "mixed"}, {"slots", "fc1"}});
  const Model plain = run_pass(model, "quantize", with(input.options));
  input.calibration.reshape({input.calibration.size(0), -1}).select(1, 5).mul_(1e4);
  const Model chosen = run_pass(model, "quantize", input);
  EXPECT_EQ(report_of(plain).at("calibrated"), false);
  EXPECT_EQ(report_of(chosen).at("calibrated"), true);
  EXPECT_EQ(spec_of(*plain.root), spec_of(*chosen.root)) << "no probe stays behind";
  const auto error = [&](const Model& packed) {
    const at::Tensor values = packed.root->slot("fc1").as<QuantLinear>().values();
    return relative_error(values.select(1, 5), layer.weight.select(1, 5));
  };
  EXPECT_LT(error(chosen), 0.2);
  EXPECT_GT(error(plain), 1);
}

TEST(Quantize, RefusesMistakesByName) {
  const Model model = network("mlp", 6);
  const auto quantize_with = [&](const Json& options) {
    return [&model, options] { run_pass(model, "quantize", with(options)); };
  };
  expect_error(Code::config, "format: unknown 'i4_32', did you mean 'i4-32'",
               quantize_with({{"format", "i4_32"}}));
  expect_error(Code::config, "see dequantize", quantize_with({{"format", "f32"}}));
  expect_error(Code::config, "activations", quantize_with({{"activations", "i4"}}));
  expect_error(Code::config, "did you mean 'format'", quantize_with({{"formt", "i8"}}));
  expect_error(Code::usage, "no slot matches 'fc9'", quantize_with({{"slots", "fc9"}}));
  expect_error(Code::usage, "no slot matches 'fc9'", quantize_with({{"skip", "fc9"}}));
  expect_error(Code::usage, "no linear layer or convolution under 'relu1'",
               quantize_with({{"slots", "relu1"}}));
  expect_error(Code::usage, "no packed layer", [&] { run_pass(model, "dequantize", {}); });
  Model broken = clone(model);
  {
    const at::NoGradGuard no_grad;
    broken.root->slot("fc2").as<Linear>().weight[0][0] = NAN;
  }
  expect_error(Code::numeric, "fc2: ", [&] { run_pass(broken, "quantize", {}); });
}

TEST(Quantize, PackedNetworksGoThroughTheOtherPasses) {
  Model model = network("convnet", 7);
  Model packed = run_pass(model, "quantize", with({{"format", "i8"}}));
  expect_equal_and_reloadable(packed, run_pass(packed, "fold-norm", {}), "folded");
  // Everything packed and nothing else: no float tensor is left to go by.
  auto root = std::make_shared<Sequential>();
  root->append(
      "fc", QuantLinear::pack(Linear(40, 40, /*bias=*/false), Format::i8, ActivationFormat::f32));
  root->eval();
  Model bare;
  bare.root = root;
  bare.input_shape = {40};
  EXPECT_THAT(kinds(run_pass(bare, "dequantize", {})), ::testing::ElementsAre("linear"));
}

#if SLUICE_HAS_ENGINE
TEST(Quantize, LabAndEngineGiveTheSame) {
  for (const std::string name : {"mlp", "convnet"}) {
    const Model model = network(name, 8);
    for (const Format format : bundle::all_formats()) {
      if (format == Format::f32) continue;
      for (const char* activations : {"f32", "i8"}) {
        Json options = {{"format", std::string(bundle::format_name(format))},
                        {"activations", activations}};
        // Deeper layers see inputs that differ in their last bits, and a code may round the other
        // way: a hundredth of one input, not an error of either side.
        if (activations == std::string("i8")) {
          if (name != "mlp") continue;
          options["slots"] = "fc1";
        }
        Model packed = run_pass(model, "quantize", with(options));
        for (const int64_t batch : {1, 20}) {
          EXPECT_LE(engine_error(packed, random_input(packed, batch, 9)), 1e-5)
              << name << " " << bundle::format_name(format) << " " << activations;
        }
      }
    }
  }
}
#endif

}  // namespace quantize_test
}  // namespace sluice::lab
