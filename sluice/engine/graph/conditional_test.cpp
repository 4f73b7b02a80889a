// Operators whose work depends on the input, through plan and session, against their references.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "sluice/base/error.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/reference.h"
#include "sluice/engine/kernel/test_targets.h"

namespace sluice::engine {
namespace conditional_test {

using bundle::Attributes;
using bundle::Format;
using bundle::Value;
using testing::for_each_target;
using testing::Model;
using testing::NetworkBuilder;

/// A network of one conditional operator on slices of one input.
class Net {
 public:
  explicit Net(uint64_t seed) : net_(seed) {}
  NetworkBuilder& net() { return net_; }

  Value input(Shape shape) { return net_.input(std::move(shape)); }
  Value slice(const Value& x, int64_t start, int64_t size) {
    return net_.node("slice", "slice" + std::to_string(start), {x},
                     {{"start", start}, {"size", size}});
  }
  void weight(const std::string& role, Format format, Shape shape) {
    const int64_t rows = shape[shape.size() - 2], columns = shape.back();
    std::vector<std::byte> bytes;
    for (int64_t i = 0; i < numel(shape) / (rows * columns); ++i) {
      const auto values = net_.normal(static_cast<size_t>(rows * columns), 0.3);
      const auto one = bundle::pack(format, values, rows, columns);
      bytes.insert(bytes.end(), one.begin(), one.end());
    }
    net_.builder().tensor(role, format, std::move(shape), bytes);
    tensors_[role] = role;
  }
  void vector(const std::string& role, int64_t size, float low = -0.5f, float high = 0.5f) {
    net_.tensor(role, {size}, net_.uniform(static_cast<size_t>(size), low, high));
    tensors_[role] = role;
  }
  Model finish(const std::string& op, const std::vector<Value>& inputs, Attributes attrs) {
    return finish(net_.builder().node(op, "layer", inputs, std::move(attrs), tensors_));
  }
  Model finish(const Value& output) { return net_.finish(output); }
  const std::map<std::string, std::string>& tensors() const { return tensors_; }

 private:
  NetworkBuilder net_;
  std::map<std::string, std::string> tensors_;
};

std::vector<float> random_input(const Network& network, int64_t count) {
  return NetworkBuilder(3).normal(static_cast<size_t>(count * numel(network.input_shape())), 1.0);
}

std::vector<float> run(const Network& network, std::span<const float> input, int64_t count,
                       int threads = 1, Meter* meter = nullptr) {
  Session session(network, {.batch = count, .threads = threads});
  std::vector<float> output(static_cast<size_t>(count * numel(network.output_shape())));
  session.run(input, output, {.meter = meter});
  return output;
}

double error_of(std::span<const float> found, std::span<const float> expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double(found[i]) - expected[i], 2);
    norm += std::pow(double(expected[i]), 2);
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-6);
}

/// Rows of 4- and 8-bit weights add up as integers, with factors of 16 bits: packed_accumulate.h.
double tolerance_of(const Model& model) {
  for (const auto& [name, tensor] : model.bundle.graph().tensors)
    if (tensor.format.starts_with("i4") || tensor.format.starts_with("i8")) return 1e-4;
  return 1e-5;
}

void expect_parity(const Model& model, std::span<const float> input, int64_t count,
                   const std::string& what) {
  const Network network(model.bundle);
  const auto expected = reference_run(model.bundle, input, count);
  const auto once = run(network, input, count);
  EXPECT_LT(error_of(once, expected), tolerance_of(model)) << what;
  // Two lanes have fewer rows each, which may round differently.
  EXPECT_LT(error_of(run(network, input, count, 2), once), 2e-6) << what;
}

void expect_parity(const Model& model, int64_t count, const std::string& what) {
  expect_parity(model, random_input(Network(model.bundle), count), count, what);
}

const std::vector<Attributes>& selectors() {
  static const std::vector<Attributes> all = {
      {{"select", std::string("topk")}, {"k", int64_t{7}}},
      {{"select", std::string("topk")}, {"k", int64_t{0}}},
      {{"select", std::string("topk")}, {"k", int64_t{1} << 30}},
      {{"select", std::string("threshold")}, {"threshold", 0.4}},
      {{"select", std::string("threshold")}, {"threshold", 1e30}},
      {{"select", std::string("threshold")}, {"threshold", -1e30}},
      {{"select", std::string("statistical")}, {"keep", 0.2}},
      {{"select", std::string("statistical")}, {"keep", 1.0}},
  };
  return all;
}

std::string text(const Attributes& attrs) {
  std::string all;
  for (const auto& [name, value] : attrs) {
    all += name + " ";
    if (const auto* words = std::get_if<std::string>(&value)) all += *words + " ";
  }
  return all;
}

TEST(SparseInputLinear, MatchesTheReferenceInEveryFormat) {
  for_each_target([&] {
    for (const Format format : bundle::all_formats()) {
      for (const bool norm : {false, true}) {
        Net n(static_cast<uint64_t>(format));
        const Value x = n.input(norm ? Shape{3, 45} : Shape{45});
        n.weight("weight", format, {45, 39});
        if (norm) n.vector("column_norm", 45, 0.0f, 2.0f);
        if (norm) n.vector("bias", 39);
        const Model model = n.finish("sparse_input_linear", {x}, selectors()[norm ? 0 : 3]);
        for (const int64_t count : {1, 5}) {
          expect_parity(model, count, std::string(bundle::format_name(format)));
        }
      }
    }
  });
}

TEST(SparseInputLinear, EverySelectorMatchesTheReference) {
  for (const Attributes& attrs : selectors()) {
    for (const int64_t size : {1, 33, 200}) {
      Net n(7);
      const Value x = n.input({size});
      n.weight("weight", Format::f32, {size, 70});
      const Model model = n.finish("sparse_input_linear", {x}, attrs);
      for (const int64_t count : {1, 3, 20}) expect_parity(model, count, text(attrs));
    }
  }
}

TEST(SparseInputLinear, SkipsNanAndPassesInfinityOn) {
  Net n(1);
  const Value x = n.input({40});
  n.weight("weight", Format::f32, {40, 5});
  const Model model = n.finish("sparse_input_linear", {x}, selectors()[0]);
  const Network network(model.bundle);
  auto input = random_input(network, 1);
  const auto clean = run(network, input, 1);
  auto least = std::min_element(input.begin(), input.end(),
                                [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  *least = NAN;
  EXPECT_EQ(run(network, input, 1), clean);
  *least = INFINITY;
  for (float y : run(network, input, 1)) EXPECT_FALSE(std::isfinite(y));
}

TEST(SparseInputLinear, MeterCountsTheColumnsThatWereRead) {
  Net n(1);
  const Value x = n.input({64});
  n.weight("weight", Format::i8, {64, 96});
  const Model model = n.finish("sparse_input_linear", {x}, selectors()[0]);
  const Network network(model.bundle);
  Meter meter;
  run(network, random_input(network, 1), 1, 1, &meter);
  EXPECT_EQ(meter.macs(), 7 * 96);
  EXPECT_EQ(meter.bytes(), 7 * (96 + 4) + (64 + 96) * 4);
  EXPECT_EQ(network.cost().macs, 7 * 96);
}

Model dense_first_layer(int64_t tokens, int64_t whole) {
  Net n(4);
  const Value x = n.input({tokens, 40});
  n.weight("weight", Format::f32, {40, 24});
  Attributes attrs = selectors()[0];
  attrs["dense_first"] = whole;
  return n.finish("sparse_input_linear", {x}, attrs);
}

TEST(SparseInputLinear, FirstRowsOfASequenceStayDense) {
  for (const int64_t whole : {1, 3, 11}) {
    const Model model = dense_first_layer(11, whole);
    for (const int64_t count : {1, 3}) expect_parity(model, count, std::to_string(whole));
    const Network network(model.bundle);
    Meter meter;
    run(network, random_input(network, 1), 1, 1, &meter);
    // Rows may share the union of their columns: what is computed is no less than what was asked.
    EXPECT_GE(meter.macs(), (whole * 40 + (11 - whole) * 7) * 24);
    EXPECT_EQ(network.cost().macs, (whole * 40 + (11 - whole) * 7) * 24);
  }
}

/// Outputs in `units` equal parts, the mask behind x.
Model gathered_layer(Format format, int64_t units, bool rows, bool bias) {
  Net n(static_cast<uint64_t>(format) + 40);
  const Value input = n.input(rows ? Shape{11, 45 + units} : Shape{45 + units});
  const Value x = n.slice(input, 0, 45), mask = n.slice(input, 45, units);
  n.weight("weight", format, {36, 45});
  if (bias) n.vector("bias", 36);
  return n.finish("gathered_linear", {x, mask}, {});
}

TEST(GatheredLinear, MatchesTheReferenceInEveryFormat) {
  for_each_target([&] {
    for (const Format format : bundle::all_formats()) {
      for (const int64_t units : {1, 4, 36}) {
        const Model model = gathered_layer(format, units, units != 4, units != 1);
        for (const int64_t count : {1, 3, 9})
          expect_parity(model, count,
                        fmt::format("{} {} units", bundle::format_name(format), units));
      }
    }
  });
}

TEST(GatheredLinear, ClosedUnitsAreNeitherReadNorCountedAndMayBeAnything) {
  const Model model = gathered_layer(Format::f32, 4, false, true);
  const Network network(model.bundle);
  auto input = random_input(network, 1);
  for (const auto& [mask, open] : std::map<std::vector<float>, int64_t>{
           {{1, -1, 0, 2}, 2}, {{0, 0, 0, 0}, 0}, {{NAN, 1, 1, 1}, 3}, {{1, 1, 1, 1}, 4}}) {
    std::copy(mask.begin(), mask.end(), input.begin() + 45);
    Meter meter;
    const auto y = run(network, input, 1, 1, &meter);
    EXPECT_EQ(meter.macs(), open * 9 * 45);
    const int64_t slices = 49 + 45 + 49 + 4;
    EXPECT_EQ(meter.bytes(), (open * 9 * 45 + 45 + 36 + 4 + slices) * 4);
    for (size_t o = 0; o < 36; ++o) EXPECT_EQ(y[o] != 0, mask[o / 9] > 0) << o;
  }
  EXPECT_EQ(network.cost().macs, 36 * 45);
}

struct FfnCase {
  bool gated = false, biased = false;
  std::string scores;  // "input", "predictor", "first", "activated"
  std::string activation = "relu";
  Format format = Format::f32;
};

Model make_ffn(const FfnCase& c, Attributes attrs, Shape shape = {40}) {
  Net n(11);
  const int64_t width = shape.back(), neurons = 75;
  Shape all = shape;
  all.back() += c.scores == "input" ? neurons : 0;
  Value x = n.input(all);
  std::vector<Value> inputs{x};
  if (c.scores == "input") inputs = {n.slice(x, 0, width), n.slice(x, width, neurons)};
  n.weight("up", c.format, {neurons, width});
  if (c.gated) n.weight("gate", c.format, {neurons, width});
  n.weight("down", c.format, {neurons, 52});
  if (c.biased) {
    n.vector("up_bias", neurons);
    if (c.gated) n.vector("gate_bias", neurons);
    n.vector("down_bias", 52);
  }
  if (c.scores == "predictor") {
    n.weight("predictor_a", Format::f32, {6, width});
    n.weight("predictor_b", Format::f32, {neurons, 6});
  }
  attrs["activation"] = c.activation;
  if (c.scores == "activated") attrs["scores"] = c.scores;
  return n.finish("sparse_ffn", inputs, attrs);
}

TEST(SparseFfn, EverySourceAndSelectorMatchesTheReference) {
  for (const Attributes& attrs : selectors()) {
    for (const char* scores : {"input", "predictor", "first", "activated"}) {
      for (const bool gated : {false, true}) {
        const FfnCase c{gated, gated, scores, gated ? "silu" : "relu"};
        for (const int64_t count : {1, 4, 9})
          expect_parity(make_ffn(c, attrs), count, text(attrs) + scores);
      }
    }
  }
}

TEST(SparseFfn, EveryFormatOnEveryTargetMatchesTheReference) {
  for_each_target([&] {
    for (const Format format : bundle::all_formats()) {
      const FfnCase c{true, true, "input", "gelu", format};
      for (const int64_t count : {1, 3})
        expect_parity(make_ffn(c, selectors()[0], {2, 40}), count,
                      std::string(bundle::format_name(format)));
    }
  });
}

TEST(SparseFfn, AllNeuronsIsTheDenseLayer) {
  for (const bool gated : {false, true}) {
    for (const char* kind : {"relu", "gelu", "silu", "sigmoid", "tanh", "hard_swish"})
      expect_parity(make_ffn({gated, true, "first", kind}, {}), 3, kind);
  }
}

TEST(SparseFfn, ReluAboveZeroIsExactlyTheDenseLayer) {
  const FfnCase c{true, true, "first"};
  const Attributes positive{{"select", std::string("threshold")}, {"threshold", 0.0}};
  const Model dense = make_ffn(c, {}), sparse = make_ffn(c, positive);
  const Network network(dense.bundle);
  for (const int64_t count : {1, 8, 11}) {
    const auto input = random_input(network, count);
    EXPECT_LT(error_of(run(Network(sparse.bundle), input, count), run(network, input, count)),
              1e-6);
  }
}

TEST(SparseFfn, SoftThresholdIsSubtracted) {
  Attributes attrs{{"select", std::string("statistical")}, {"keep", 0.3}, {"soft", true}};
  for (const bool gated : {false, true})
    expect_parity(make_ffn({gated, true, "first", "relu"}, attrs), 4, "soft");
}

Model split_ffn(Format format, Attributes attrs) {
  Net n(13);
  const Value x = n.input({3, 40});
  n.weight("gate", format, {75, 15});
  n.weight("up", format, {75, 25});
  n.weight("down", format, {75, 52});
  attrs["split"] = int64_t{15};
  attrs["activation"] = std::string("gelu");
  return n.finish("sparse_ffn", {x}, attrs);
}

TEST(SparseFfn, GateAndUpMayReadDifferentInputs) {
  const Attributes soft{{"select", std::string("statistical")}, {"keep", 0.1}, {"soft", true}};
  for (const Format format : {Format::f32, Format::i8}) {
    for (const Attributes& attrs : {Attributes{}, soft, selectors()[0], selectors()[3]}) {
      for (const int64_t count : {1, 7}) expect_parity(split_ffn(format, attrs), count, "split");
    }
  }
  const Model model = split_ffn(Format::f32, selectors()[0]);
  const Network network(model.bundle);
  Meter meter;
  run(network, random_input(network, 1), 1, 1, &meter);
  EXPECT_GE(meter.macs(), 3 * (75 * 15 + 7 * (25 + 52)));
  EXPECT_EQ(network.cost().macs, 3 * (75 * 15 + 7 * (25 + 52)));
}

TEST(SparseFfn, TokensThatShareAndTokensThatDifferGiveTheSame) {
  // Scores decide whether the union is computed: equal lists share, disjoint ones do not.
  const Model model = make_ffn({true, true, "input"}, selectors()[0]);
  const Network network(model.bundle);
  const int64_t each = numel(network.input_shape());
  for (const bool same : {true, false}) {
    auto input = random_input(network, 8);
    for (int64_t t = 0; t < 8; ++t) {
      for (int64_t f = 0; f < 75; ++f) {
        const bool on = same ? f < 7 : f / 9 == t;
        input[static_cast<size_t>(t * each + 40 + f)] = on ? 5.0f : -5.0f;
      }
    }
    expect_parity(model, input, 8, same ? "same" : "different");
  }
}

TEST(SparseFfn, MeterCountsAwakeNeuronsOnly) {
  const Model model = make_ffn({true, false, "input", "relu", Format::i8}, selectors()[0]);
  const Network network(model.bundle);
  Meter meter;
  run(network, random_input(network, 1), 1, 1, &meter);
  const auto& entry = meter.entries().back();
  EXPECT_EQ(entry.macs, 7 * (40 + 40 + 52));
  EXPECT_EQ(entry.bytes, 7 * (2 * 44 + 56) + (75 + 40 + 52) * 4);
}

Model make_experts(Format format, bool gated, int64_t count, int64_t top_k, bool before,
                   Shape shape = {24}, int64_t hidden = 37, int64_t out = 41,
                   std::string activations = "f32") {
  Net n(5);
  const int64_t width = shape.back();
  shape.back() += count;
  const Value all = n.input(shape);
  const Value x = n.slice(all, 0, width), logits = n.slice(all, width, count);
  n.weight("up", format, {count, hidden, width});
  if (gated) n.weight("gate", format, {count, hidden, width});
  n.weight("down", format, {count, hidden, out});
  return n.finish("experts", {x, logits},
                  {{"top_k", top_k},
                   {"activation", std::string(gated ? "silu" : "gelu")},
                   {"activations", activations},
                   {"normalize", std::string(before ? "before" : "after")}});
}

TEST(Experts, MatchTheReferenceForEveryGroupSize) {
  for (const bool gated : {false, true}) {
    for (const int64_t top_k : {1, 2, 5}) {
      const Model model = make_experts(Format::f32, gated, 5, top_k, top_k != 2);
      for (const int64_t count : {1, 2, 7, 24, 63}) {
        expect_parity(model, count, "top " + std::to_string(top_k));
      }
    }
  }
}

TEST(Experts, EveryFormatOnEveryTargetMatchesTheReference) {
  for_each_target([&] {
    for (const Format format : bundle::all_formats()) {
      const Model model = make_experts(format, true, 4, 2, false, {3, 24});
      for (const int64_t count : {1, 9})
        expect_parity(model, count, std::string(bundle::format_name(format)));
    }
  });
}

TEST(Experts, RoundedActivationsInGroupsOfFewAndOfManyTokens) {
  for (const Format format : bundle::all_formats()) {
    const Model model = make_experts(format, true, 3, 2, true, {200}, 37, 41, "i8");
    for (const int64_t count : {5, 40})
      expect_parity(model, count, std::string(bundle::format_name(format)));
  }
}

TEST(Experts, AllTokensMayChooseTheSameExpert) {
  const Model model = make_experts(Format::f32, true, 4, 1, true);
  auto input = random_input(Network(model.bundle), 30);
  for (size_t t = 0; t < 30; ++t) input[t * 28 + 24 + 2] = 9;
  expect_parity(model, input, 30, "one expert");
  Meter meter;
  run(Network(model.bundle), input, 30, 1, &meter);
  EXPECT_EQ(meter.entries().back().macs, 30 * 37 * (24 + 24 + 41));
  EXPECT_EQ(meter.entries().back().bytes, (37 * (24 + 24 + 41) + 30 * (24 + 41)) * 4);
}

TEST(Experts, EqualLogitsChooseTheLowest) {
  const Model model = make_experts(Format::f32, false, 4, 2, false);
  const Network network(model.bundle);
  auto input = random_input(network, 1), first = input;
  for (size_t e = 0; e < 4; ++e) {
    input[24 + e] = 1;
    first[24 + e] = e < 2 ? 1 : -100;
  }
  EXPECT_EQ(run(network, input, 1), run(network, first, 1));
}

Model make_lora(Format format, int64_t adapters, int64_t rank, bool scaled, Shape shape = {50}) {
  Net n(9);
  const int64_t width = shape.back(), out = 33;
  shape.back() += out + 1;
  const Value all = n.input(shape);
  const Value y = n.slice(all, 0, out), x = n.slice(all, out, width),
              id = n.slice(all, out + width, 1);
  n.weight("a", format, {adapters, rank, width});
  n.weight("b", format, {adapters, rank, out});
  if (scaled) n.vector("scale", adapters, 0.5f, 2.0f);
  return n.finish("lora_add", {y, x, id}, {});
}

std::vector<float> with_adapters(const Model& model, int64_t count,
                                 const std::vector<float>& adapters) {
  const Network network(model.bundle);
  auto input = random_input(network, count);
  const size_t each = static_cast<size_t>(network.input_shape().back());
  for (size_t r = 0; r * each < input.size(); ++r)
    input[(r + 1) * each - 1] = adapters[r % adapters.size()];
  return input;
}

TEST(LoraAdd, EveryRowGetsItsOwnAdapter) {
  for_each_target([&] {
    for (const Format format : {Format::f32, Format::bf16, Format::i8, Format::i4_group}) {
      for (const int64_t rank : {1, 8, 19}) {
        const Model model = make_lora(format, 3, rank, rank != 8, {2, 50});
        for (const int64_t count : {1, 2, 13})
          expect_parity(model, with_adapters(model, count, {2, -1, 0, 2, 1, -1, 0}), count, "lora");
      }
    }
  });
}

TEST(LoraAdd, RefusesAdaptersThatDoNotExist) {
  const Model model = make_lora(Format::f32, 3, 4, false);
  for (const float bad : {3.0f, 0.5f, NAN, INFINITY, 1e30f}) {
    try {
      run(Network(model.bundle), with_adapters(model, 2, {0, bad}), 2);
      FAIL() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::shape);
      EXPECT_THAT(e.what(), ::testing::HasSubstr("from 0 to 2"));
    }
  }
  EXPECT_NO_THROW(run(Network(model.bundle), with_adapters(model, 1, {-INFINITY}), 1));
}

}  // namespace conditional_test
}  // namespace sluice::engine
