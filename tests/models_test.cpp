// Pretrained models that scripts/fetch-models.sh brings, through the binary: text in, vectors out.
#if SLUICE_WITH_ENGINE
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <sstream>

#include "sluice/base/json.h"
#include "sluice/base/test_models.h"
#include "tests/process.h"

namespace sluice::test {
namespace models_test {

// @sap-ux/fiori-docs-embeddings: texts of documentation with the vectors that transformers.js made
// of them with all-MiniLM-L6-v2, cut at 512 tokens. Another tokenizer, another engine, texts with
// code and markup.
TEST(PretrainedModels, MiniLmGivesThePublishedVectorsOfTexts) {
  const std::string model = fetched_model("minilm", "model.safetensors"),
                    data = fetched_model("fiori-vectors", "records.jsonl");
  if (model.empty() || data.empty())
    GTEST_SKIP() << "no all-MiniLM-L6-v2 or no vectors; scripts/fetch-models.sh gets them";
  constexpr size_t kWidth = 384, kTexts = 15, kLongest = 600;
  const std::string bytes = read_bytes(data + "/embeddings.bin");
  std::vector<float> published(bytes.size() / sizeof(float));
  std::memcpy(published.data(), bytes.data(), published.size() * sizeof(float));

  const TempDirectory directory;
  const std::string bundle = directory / "minilm.safetensors";
  const Finished made = sluice({"import", model, "-o", bundle, "--context", "512"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  Arguments arguments{"run", bundle, "--json"};
  std::vector<size_t> rows;
  std::istringstream lines(read_bytes(data + "/records.jsonl"));
  std::string line;
  for (size_t row = 0; std::getline(lines, line) && rows.size() < kTexts; ++row) {
    const std::string text = Json::parse(line)["content"];
    if (text.size() > kLongest) continue;
    rows.push_back(row);
    arguments.insert(arguments.end(), {"--text", text});
  }
  ASSERT_EQ(rows.size(), kTexts);
  ASSERT_GE(published.size(), (rows.back() + 1) * kWidth);
  const Json found = json_of(sluice(arguments));
  ASSERT_EQ(found["results"].size(), rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json& result = found["results"][i];
    EXPECT_FALSE(result["cut"].get<bool>());
    const auto vector = result["vector"].get<std::vector<double>>();
    ASSERT_EQ(vector.size(), kWidth);
    double product = 0, a = 0, b = 0;
    for (size_t k = 0; k < kWidth; ++k) {
      const double other = static_cast<double>(published[rows[i] * kWidth + k]);
      product += vector[k] * other;
      a += vector[k] * vector[k];
      b += other * other;
    }
    EXPECT_GE(product / std::sqrt(a * b), 0.9999) << "text " << rows[i];
  }
}

}  // namespace models_test
}  // namespace sluice::test
#endif
