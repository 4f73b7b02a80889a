// GGUF files of Llama-type decoders as bundles.
#pragma once
#include <string>

#include "sluice/bundle/import/hf.h"

namespace sluice::bundle {

/// Architectures llama (also Mistral's), qwen2 and qwen3. F32, BF16, Q8_0, Q4_0 and Q4_1 matrices
/// are kept with the same numbers (as f32, bf16, i8-32, i4-32, i4-32-min), F16, Q4_K and Q6_K
/// become f32 unless the options say otherwise; the tokenizer becomes the text of a tokenizer.json.
/// Throws as import_hugging_face, naming file, key or tensor; then `output` is as it was.
ImportResult import_gguf(const std::string& source, const std::string& output,
                         const ImportOptions& options = {});

}  // namespace sluice::bundle
