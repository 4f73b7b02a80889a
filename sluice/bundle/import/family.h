// What the families of architectures share: one source file each turns config and tensors into a
// graph.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/bundle/import/config.h"
#include "sluice/bundle/import/weights.h"

namespace sluice::bundle::hf {

/// How the rows of a text become its vector.
struct Pooling {
  std::string kind;  ///< pool_rows': mean, first, last
  bool normalize = false;
  int64_t max_tokens = 0;  ///< that sentence-transformers gives the model; 0: as many as it can
};

struct Model {
  const Config& config;
  Weights& weights;
  const ImportOptions& options;
  std::optional<Pooling> pooling;
  std::string architecture;
  Builder builder;
  ImportResult result;
  /// What is left of the files may hold these: exact names or, with a leading *, endings.
  std::vector<std::string> ignorable;

  /// path.weight [out, columns of x], and path.bias where there is one.
  Value linear(const std::string& path, const Value& x, int64_t out, bool bias);
  Value norm(const std::string& op, const std::string& path, const Value& x, double eps);
  Value activation(const std::string& path, const Value& x, const std::string& field,
                   const std::string& fallback);
  Value add(const std::string& path, const Value& a, const Value& b);
  /// Ends a graph whose rows are `x`: pooled when there is a pooling.
  void finish_embedding(const Value& x);
  /// Rows of a run and of a sequence; `most` is what the model can, `capacity` the default.
  struct Lengths {
    int64_t block, context;
  };
  Lengths lengths(int64_t most);
};

/// Adds input, layers and output; fills result.layers, width, vocabulary, context and kind.
void build_decoder(Model& model);
void build_gpt2(Model& model);
void build_encoder(Model& model);

}  // namespace sluice::bundle::hf
