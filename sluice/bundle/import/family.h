// What the families of architectures share: one source file each turns config and tensors into a
// graph.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "sluice/base/json.h"
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
  std::vector<std::string> ignorable{};
  /// Where the source has no field for it: a projection has a bias when one is stored.
  bool biases_as_stored = false;
  /// Divisors of the rotary frequencies that are stored as a tensor; empty: config says.
  std::vector<float> rope_factors{};
  /// preprocessor_config.json, of models of pictures.
  std::optional<Config> preprocessor{};
  /// What the family knows of the task besides its kind, which result has.
  Task task{};

  /// path.weight [out, columns of x], and path.bias where there is one.
  Value linear(const std::string& path, const Value& x, int64_t out, bool bias);
  /// Attributes of an operator with that weight: the options' activations, where they matter.
  Attributes rounding(const std::string& weight) const;
  Value norm(const std::string& op, const std::string& path, const Value& x, double eps);
  Value activation(const std::string& path, const Value& x, const std::string& field,
                   const std::string& fallback);
  /// The activation operator's name of what the field says.
  std::string activation_kind(const std::string& field, const std::string& fallback) const;
  Value add(const std::string& path, const Value& a, const Value& b);
  /// Ends a graph whose rows are `x`: pooled when there is a pooling.
  void finish_embedding(const Value& x);
  /// Rows of a run and of a sequence; `most` is what the model can, `capacity` the default.
  struct Lengths {
    int64_t block, context;
  };
  Lengths lengths(int64_t most);
};

/// What a source gives besides tensors.
struct Texts {
  std::vector<int64_t> stop_tokens;
  std::string tokenizer;  ///< tokenizer.json; "": none
  Json step;              ///< of the provenance
};
/// Refuses tensors that nothing used, adds task, tokenizer and provenance, writes the bundle.
ImportResult finish_import(Model& model, Texts texts, const std::string& output);

/// Where a feed-forward of experts has its tensors and how it chooses.
struct Experts {
  int64_t count, chosen, width;
  bool normalize;  ///< the weights of the chosen ones add up to 1
  const char *router, *folder, *gate, *up, *down;
  int64_t shared_width = 0;  ///< of an expert that every token takes; 0: none
};
/// From config, for the architectures that have them.
Experts read_experts(const Config& config, const std::string& architecture);
/// The sum over the chosen experts of rows z, as nodes below `path`.
Value add_experts(Model& model, const Experts& experts, const std::string& path, const Value& z);

/// The builder of config's architecture; throws Error{unsupported} where there is none.
void build_family(Model& model);
/// Adds input, layers and output; fills result.layers, width, vocabulary, context and kind.
void build_decoder(Model& model);
void build_gpt2(Model& model);
void build_encoder(Model& model);
void build_vision(Model& model);

}  // namespace sluice::bundle::hf
