// Models as Hugging Face stores them: a folder with config.json, safetensors (one file, or shards
// with an index) and tokenizer.json, made into a bundle that needs none of them.
//
// Decoders: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM,
// GPT2LMHeadModel; with experts MixtralForCausalLM, Qwen2MoeForCausalLM, Qwen3MoeForCausalLM.
// Encoders: BertModel, RobertaModel, XLMRobertaModel and their masked language models, with the
// pooling of sentence-transformers. A decoder with a pooling embeds, too. Pictures:
// ViTForImageClassification, DeiTForImageClassification and its distilled one.
//
// What a model has and the bundle could not hold is refused, never dropped: other architectures,
// RoPE scalings, activations, and tensors that no layer uses. Every size is checked against the
// stored tensor, so that nothing is allocated that is not in the files.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace sluice::bundle {

struct ImportOptions {
  /// How matrices are stored. keep: f32, bf16 and packed ones (of GGUF) as they are, others (f16,
  /// for which the engine has no product) as f32.
  enum class Weights : uint8_t {
    keep,
    f32,
    bf16,
    i8,
    i8_32,
    i4_32,
    i4_32_min
  } weights = Weights::keep;
  /// What linear layers and experts with matrices in less than f32 round their inputs to: f32 (not
  /// at all), bf16 or i8.
  std::string activations = "f32";
  /// Most tokens of a sequence; 0: the model's own number, of a decoder at most 4096 (its cache has
  /// memory for all of them).
  int64_t context = 0;
  /// Most tokens that a decoder takes in one run; 0: 128.
  int64_t block = 0;
  std::string cache_type = "f32";  ///< of a decoder's keys and values: f32, bf16 or f16
  /// mean, first, last: what an encoder without modules.json gives; "": modules.json says.
  std::string pooling{};
  bool normalize = false;  ///< with pooling: to length 1
  /// Called now and then with the tensors read and those in the files.
  std::function<void(int64_t done, int64_t total)> progress{};
};

struct ImportResult {
  std::string architecture;  ///< "BertModel"
  std::string kind;          ///< of the task: "embed", "generate", "classify" (pictures)
  int64_t layers = 0, width = 0, vocabulary = 0, context = 0;
  int64_t positions = 0;             ///< that the model was made for: the most context can be
  bool tokenizer = false;            ///< there was one
  std::vector<std::string> ignored;  ///< tensors of the files that running the model does not need
};

/// `source` is the folder, or the safetensors file in it. Throws Error{missing, format, dtype,
/// shape, config, unsupported, limit, numeric} naming file, field, expected and found; then
/// `output` is as it was.
ImportResult import_hugging_face(const std::string& source, const std::string& output,
                                 const ImportOptions& options = {});

}  // namespace sluice::bundle
