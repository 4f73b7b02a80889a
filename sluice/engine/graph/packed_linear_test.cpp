// The linear operator with packed weights and rounded activations, engine against reference.
#include <gmock/gmock.h>

#include "sluice/base/test_error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"

namespace sluice::engine {
namespace packed_linear_test {

using bundle::Builder;
using bundle::Format;
using bundle::Value;
using testing::Model;

constexpr int64_t kIn = 70, kHidden = 96, kOut = 9;

std::vector<float> normal(int64_t count, uint64_t seed, float deviation) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> values(0, deviation);
  std::vector<float> result(static_cast<size_t>(count));
  for (float& v : result) v = values(random);
  return result;
}

Value linear(Builder& b, const std::string& path, const Value& x, int64_t out, Format format,
             const std::string& activations) {
  const int64_t in = x.shape.back();
  const auto weight = normal(out * in, std::hash<std::string>{}(path), 0.15f);
  b.tensor(path + ".weight", format, {out, in}, bundle::pack(format, weight, out, in));
  b.tensor(path + ".bias", {out}, normal(out, 2, 0.5f));
  bundle::Attributes attrs;
  if (activations != "f32") attrs["activations"] = activations;
  return b.node("linear", path, {x}, attrs,
                {{"weight", path + ".weight"}, {"bias", path + ".bias"}});
}

std::vector<float> run(const Network& network, std::span<const float> input, int64_t batch,
                       int threads, bool fuse = true) {
  Session session(network, {.batch = batch, .threads = threads, .fuse = fuse});
  std::vector<float> output(static_cast<size_t>(batch * numel(network.output_shape())));
  session.run(input, output);
  return output;
}

void expect_close(std::span<const float> found, std::span<const float> expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], tolerance) << i;
}

TEST(PackedLinearOperator, MatchesTheReferenceInEveryFormat) {
  for (const Format format : bundle::all_formats()) {
    for (const std::string activations : {"f32", "bf16", "i8"}) {
      SCOPED_TRACE(std::string(bundle::format_name(format)) + " x " + activations);
      Builder b;
      const Value x = b.input("x", {3, kIn});
      b.output(linear(b, "fc", x, kOut, format, activations));
      const Model model(b.bytes());
      const Network network(model.bundle);
      for (const int64_t batch : {1, 3, 9}) {
        const auto input = normal(batch * 3 * kIn, 3, 1);
        const auto expected = reference_run(model.bundle, input, batch);
        for (const int threads : {1, 2})
          expect_close(run(network, input, batch, threads), expected, 2e-5);
      }
    }
  }
}

Model residual(Format format, const std::string& activations) {
  Builder b;
  const Value x = b.input("x", {kHidden});
  Value y = linear(b, "fc1", x, kHidden, format, activations);
  y = b.node("activation", "relu", {y}, {{"kind", std::string("relu")}});
  y = linear(b, "fc2", y, kHidden, format, activations);
  y = b.node("add", "add", {y, x});
  y = b.node("activation", "gelu", {y}, {{"kind", std::string("gelu")}});
  b.output(linear(b, "head", y, kOut, format, activations));
  return Model(b.bytes());
}

TEST(PackedLinearOperator, FusesActivationsAndResidualsButCopiesNoWeights) {
  for (const Format format : bundle::all_formats()) {
    for (const std::string activations : {"f32", "i8"}) {
      SCOPED_TRACE(std::string(bundle::format_name(format)) + " x " + activations);
      const Model model = residual(format, activations);
      const Network network(model.bundle);
      for (const int64_t batch : {1, 20}) {
        const auto input = normal(batch * kHidden, 5, 1);
        Session session(network, {.batch = batch, .threads = 1});
        EXPECT_EQ(session.plan().size(), 3u);
        std::vector<float> output(static_cast<size_t>(batch * kOut));
        session.run(input, output);
        // A code of the second layer may fall on the other side of a half.
        expect_close(output, reference_run(model.bundle, input, batch),
                     activations == "i8" ? 0.1 : 1e-4);
        expect_close(output, run(network, input, batch, 2, false),
                     activations == "i8" ? 0.1 : 1e-4);
      }
    }
  }
}

TEST(PackedLinearOperator, FoldsNoNormIntoPackedWeights) {
  for (const bool packed : {false, true}) {
    Builder b;
    const Value x = b.input("x", {kIn});
    Value y = linear(b, "fc", x, kOut, packed ? Format::i8 : Format::f32, "f32");
    b.tensor("s", {kOut}, normal(kOut, 6, 1));
    y = b.node("scale", "scale", {y}, {}, {{"scale", "s"}});
    b.output(y);
    const Model model(b.bytes());
    const Network network(model.bundle);
    Session session(network, {.batch = 2, .threads = 1});
    EXPECT_EQ(session.plan().size(), packed ? 2u : 1u);
    const auto input = normal(2 * kIn, 7, 1);
    expect_close(run(network, input, 2, 1), reference_run(model.bundle, input, 2), 1e-4);
  }
}

TEST(PackedLinearOperator, PlanAndCostsSayWhatIsStored) {
  Builder b;
  const Value x = b.input("x", {4096});
  b.output(linear(b, "fc", x, 64, Format::binary, "i8"));
  const Model model(b.bytes());
  const Network network(model.bundle);
  EXPECT_EQ(network.cost().params, 64 * 4096 + 64);
  EXPECT_EQ(network.cost().weight_bytes, 64 * 512 + 64 * 4 + 64 * 4);
  Session session(network, {.batch = 1, .threads = 1});
  EXPECT_THAT(session.plan()[0].kernel, ::testing::HasSubstr("gemv"));
  EXPECT_THAT(session.plan()[0].kernel, ::testing::HasSubstr("binary x i8"));
}

TEST(PackedLinearOperator, BadActivationsGiveResultsThatAreNotFinite) {
  for (const Format format : {Format::bf16, Format::i8, Format::i4_group, Format::ternary}) {
    for (const std::string activations : {"f32", "bf16", "i8"}) {
      Builder b;
      const Value x = b.input("x", {kIn});
      b.output(linear(b, "fc", x, kOut, format, activations));
      const Model model(b.bytes());
      const Network network(model.bundle);
      for (const int64_t batch : {2, 20}) {
        auto input = normal(batch * kIn, 8, 1);
        input[kIn + 3] = std::nanf("");
        const auto output = run(network, input, batch, 1);
        for (size_t i = 0; i < output.size(); ++i)
          EXPECT_EQ(std::isfinite(output[i]), i / kOut != 1) << i;
      }
    }
  }
}

TEST(PackedLinearOperator, NetworkRefusesDamagedScalesAndCodes) {
  for (const Format format : bundle::all_formats()) {
    if (format == Format::f32) continue;
    Builder b;
    const Value x = b.input("x", {kIn});
    b.output(linear(b, "fc", x, kOut, format, "f32"));
    auto bytes = b.bytes();
    const Model good(bytes);
    const auto weight = good.bundle.tensor("fc.weight").bytes;
    const int64_t codes = format == Format::bf16 ? 0 : kOut * bundle::code_stride(format, kIn);
    const size_t at = static_cast<size_t>(weight.data() - good.bytes.data() + codes);
    bytes[at] = bytes[at + 1] = bytes[at + 2] = bytes[at + 3] = std::byte{0xFF};
    const Model bad(std::move(bytes), "bad");
    expect_error(Code::numeric, "bad: tensor 'fc.weight'", [&] { Network network(bad.bundle); });
  }
}

}  // namespace packed_linear_test
}  // namespace sluice::engine
