// Models imported from Hugging Face's files compute what the transformers library computes:
// tests/golden/huggingface has tiny ones of every architecture, tests/golden/minilm a real one.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_models.h"
#include "sluice/bundle/import/hf.h"
#include "sluice/bundle/import/testing.h"
#include "sluice/engine/graph/network.h"

namespace sluice::engine {
namespace imported_test {

using bundle::DType;
using bundle::ImportOptions;

const std::string kGolden = std::string(SLUICE_SOURCE_DIR) + "/tests/golden/";

Json golden(const std::string& name) {
  return read_json_file(kGolden + "huggingface/" + name + ".json");
}

/// Largest difference over the largest number.
double relative_error(std::span<const float> found, const std::vector<double>& expected) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference = std::max(difference, std::abs(double(found[i]) - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
    if (!std::isfinite(found[i])) return INFINITY;
  }
  return difference / largest;
}

/// Logits of all ids, fed in runs of these lengths, again and again.
std::vector<float> logits(const Network& network, const std::vector<float>& ids,
                          const std::vector<int64_t>& lengths) {
  Session session(network, {.batch = 1, .threads = 1, .sequences = true});
  const size_t words = size_t(network.output_shape().back());
  std::vector<float> result, out(size_t(network.input_shape()[0]) * words);
  for (size_t at = 0, i = 0; at < ids.size(); ++i) {
    const size_t count = std::min(size_t(lengths[i % lengths.size()]), ids.size() - at);
    session.run_tokens(std::span(ids).subspan(at, count), out, std::vector{int64_t(count)});
    result.insert(result.end(), out.begin(), out.begin() + std::ptrdiff_t(count * words));
    at += count;
  }
  return result;
}

struct Imported {
  TempDirectory folder;
  const std::string source = folder / "model", path = folder / "model.safetensors";
  bundle::ImportResult result;

  Imported(const Json& document, const ImportOptions& options, DType dtype = DType::f32,
           size_t shards = 1) {
    bundle::testing::write_model(document, source, dtype, shards);
    result = bundle::import_hugging_face(source, path, options);
    std::filesystem::remove_all(source);  // a bundle needs nothing else
  }
};

class Decoders : public ::testing::TestWithParam<const char*> {};

TEST_P(Decoders, LogitsAreThoseOfTransformers) {
  const Json document = golden(GetParam());
  const auto ids = document["ids"].get<std::vector<float>>();
  const auto expected = document["logits"].get<std::vector<double>>();
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Imported model(document, {.block = 8}, dtype);
    EXPECT_EQ(model.result.kind, "generate");
    const Network network = Network::open(model.path);
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{8}, {1}, {5, 1, 1, 3}}) {
      const auto found = logits(network, ids, lengths);
      ASSERT_EQ(found.size(), expected.size());
      EXPECT_LT(relative_error(found, expected), 2e-6)
          << bundle::dtype_name(dtype) << ", runs of " << lengths[0];
    }
  }
}

TEST_P(Decoders, AsBf16AndWithAHalfCacheStayClose) {
  const Json document = golden(GetParam());
  const auto ids = document["ids"].get<std::vector<float>>();
  const Imported model(document, {.weights = ImportOptions::Weights::bf16, .cache_type = "f16"},
                       DType::f32, 3);
  EXPECT_LT(relative_error(logits(Network::open(model.path), ids, {14}),
                           document["logits"].get<std::vector<double>>()),
            2e-3);
}

INSTANTIATE_TEST_SUITE_P(Architectures, Decoders,
                         ::testing::Values("llama", "llama_linear", "llama_dynamic", "llama_llama3",
                                           "llama_yarn", "mistral", "qwen2", "qwen3", "mixtral",
                                           "qwen2_moe", "qwen3_moe", "gpt2"));

std::vector<float> embedding(const Network& network, const std::vector<float>& ids) {
  Session session(network, {.batch = 1, .sequences = true});
  std::vector<float> out(size_t(numel(network.output_shape())));
  session.run_tokens(ids, out, std::vector{int64_t(ids.size())});
  return out;
}

class Encoders : public ::testing::TestWithParam<const char*> {};

TEST_P(Encoders, VectorsAreThoseOfTransformers) {
  const Json document = golden(GetParam());
  const auto ids = document["ids"].get<std::vector<float>>();
  const auto error = [&](const ImportOptions& options, DType dtype, const char* key) {
    const Imported model(document, options, dtype);
    EXPECT_EQ(model.result.kind, "embed");
    return relative_error(embedding(Network::open(model.path), ids),
                          document[key].get<std::vector<double>>());
  };
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    EXPECT_LT(error({.pooling = "mean"}, dtype, "mean"), 2e-6);
    EXPECT_LT(error({.pooling = "first"}, dtype, "first"), 2e-6);
    EXPECT_LT(error({.pooling = "mean", .normalize = true}, dtype, "normalized"), 2e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, Encoders, ::testing::Values("bert", "roberta"));

class Pictures : public ::testing::TestWithParam<const char*> {};

std::vector<float> classes_of(const Imported& model, const std::vector<float>& pixels) {
  const Network network = Network::open(model.path);
  Session session(network, {.batch = 1, .threads = 1});
  std::vector<float> out(size_t(numel(network.output_shape())));
  session.run(pixels, out, 1);
  return out;
}

TEST_P(Pictures, LogitsAreThoseOfTheDefinition) {
  Json document = golden(GetParam());
  const auto pixels = document["pixels"].get<std::vector<float>>();
  const auto expected = document["logits"].get<std::vector<double>>();
  document["preprocessor"] = {{"image_mean", {0.25, 0.25, 0.25}}, {"image_std", 0.5}};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Imported model(document, {}, dtype);
    EXPECT_EQ(model.result.kind, "classify");
    const bundle::Task task = bundle::Bundle::open(model.path).task();
    EXPECT_EQ(task.mean, 0.25);
    EXPECT_EQ(task.std, 0.5);
    EXPECT_EQ(task.labels.back(), "class 4");
    EXPECT_LT(relative_error(classes_of(model, pixels), expected), 2e-6);
  }
  EXPECT_LT(relative_error(
                classes_of(Imported(document, {.weights = ImportOptions::Weights::bf16}), pixels),
                expected),
            1e-2);
}

TEST_P(Pictures, WhatDiffersBetweenChannelsIsALayer) {
  Json document = golden(GetParam());
  auto pixels = document["pixels"].get<std::vector<float>>();
  const std::vector<double> mean{0.485, 0.456, 0.406}, std{0.229, 0.224, 0.225};
  document["preprocessor"] = {{"image_mean", mean}, {"image_std", std}};
  const Imported model(document, {});
  const bundle::Task task = bundle::Bundle::open(model.path).task();
  EXPECT_EQ(task.mean, 0);
  EXPECT_EQ(task.std, 1);
  for (size_t i = 0; i < pixels.size(); ++i) {
    const size_t channel = i / (pixels.size() / 3);
    pixels[i] = float(pixels[i] * std[channel] + mean[channel]);
  }
  EXPECT_LT(
      relative_error(classes_of(model, pixels), document["logits"].get<std::vector<double>>()),
      2e-5);
}

INSTANTIATE_TEST_SUITE_P(Architectures, Pictures,
                         ::testing::Values("vit", "deit", "deit_distilled"));

TEST(Imported, TextsOfDifferentLengthsInOneBatchDoNotSeeEachOther) {
  const Imported model(golden("bert"), {.pooling = "mean"});
  const Network network = Network::open(model.path);
  Session session(network, {.batch = 3, .sequences = true});
  const std::vector<float> ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  std::vector<float> out(3 * 32);
  session.run_tokens(ids, out, std::vector<int64_t>{2, 7, 1});
  const std::vector<std::pair<size_t, size_t>> parts{{0, 2}, {2, 7}, {9, 1}};
  for (size_t s = 0; s < 3; ++s) {
    const auto part = std::span(ids).subspan(parts[s].first, parts[s].second);
    const auto alone = embedding(network, {part.begin(), part.end()});
    for (size_t i = 0; i < 32; ++i) EXPECT_NEAR(out[s * 32 + i], alone[i], 1e-5);
  }
}

TEST(Imported, MiniLmGivesTheVectorsOfItsMakers) {
  const std::string folder = fetched_model("minilm", "model.safetensors");
  if (folder.empty()) GTEST_SKIP() << "no all-MiniLM-L6-v2; scripts/fetch-models.sh minilm gets it";
  const Json document = read_json_file(kGolden + "minilm/golden.json");
  const TempDirectory temporary;
  double least = 1, least_bf16 = 1;
  for (const auto weights : {ImportOptions::Weights::keep, ImportOptions::Weights::bf16}) {
    const std::string path = temporary / "minilm.safetensors";
    const auto result = bundle::import_hugging_face(folder, path, {.weights = weights});
    EXPECT_EQ(result.context, 256);
    const Network network = Network::open(path);
    EXPECT_FALSE(network.bundle().tokenizer_json().empty());
    for (const Json& text : document["texts"]) {
      const auto expected = text["embedding"].get<std::vector<double>>();
      const auto found = embedding(network, text["ids"].get<std::vector<float>>());
      ASSERT_EQ(found.size(), expected.size());
      double product = 0, a = 0, b = 0;
      for (size_t i = 0; i < found.size(); ++i) {
        product += found[i] * expected[i];
        a += double(found[i]) * found[i];
        b += expected[i] * expected[i];
      }
      double& worst = weights == ImportOptions::Weights::keep ? least : least_bf16;
      worst = std::min(worst, product / std::sqrt(a * b));
    }
  }
  EXPECT_GE(least, 0.999999);
  EXPECT_GE(least_bf16, 0.9999);
  RecordProperty("cosine", fmt::format("{:.9f}", least));
  RecordProperty("cosine_bf16", fmt::format("{:.9f}", least_bf16));
}

}  // namespace imported_test
}  // namespace sluice::engine
