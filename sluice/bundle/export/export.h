// Bundles as the files of others: GGUF for llama.cpp, folders as Hugging Face has them. What such a
// file cannot say (gates, sparse operators, layers of different widths, packed formats without a
// counterpart) is refused with the node or tensor and the reason; nothing is dropped in silence.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

struct ExportOptions {
  /// Type of the matrices. keep: as they are, where the format has a counterpart; the others go
  /// through f32. Vectors (norms, biases) stay f32 in GGUF.
  enum class Weights : uint8_t { keep, f32, f16, bf16, q8_0, q4_0 } weights = Weights::keep;
  /// Called now and then with the layers written and those in all.
  std::function<void(int64_t done, int64_t total)> progress{};
};

struct ExportResult {
  std::string architecture;  ///< "llama", "Qwen3ForCausalLM"
  int64_t tensors = 0;
  bool tokenizer = false;
  std::vector<std::string> notes;  ///< what the reader of the file should know
};

/// A GGUF file of a Llama-type decoder (architecture llama, qwen2 or qwen3) with its tokenizer.
/// i8-32, i4-32 and i4-32-min go over as Q8_0, Q4_0 and Q4_1 with the same numbers. Throws
/// Error{unsupported, numeric} naming node or tensor; then `path` is as it was.
ExportResult export_gguf(const Bundle& bundle, const std::string& path,
                         const ExportOptions& options = {});

/// A folder with config.json, model.safetensors and tokenizer.json, as transformers reads it: a
/// LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM. Fields of the
/// config.json that the bundle was imported with are kept. config.json is written last; throws as
/// export_gguf, before anything is written.
ExportResult export_hugging_face(const Bundle& bundle, const std::string& folder,
                                 const ExportOptions& options = {});

}  // namespace sluice::bundle
