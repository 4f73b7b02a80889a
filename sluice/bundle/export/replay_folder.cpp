#include <cmath>
#include <cstring>
#include <deque>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/bundle/export/replay.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

using Weights = ExportOptions::Weights;

/// What sentence-transformers reads beside a model that embeds.
void write_pooling(const hf::Pooling& pooling, int64_t context, const std::string& folder) {
  const auto module = [](int index, const char* path, const char* type) {
    return Json{{"idx", index},
                {"name", std::to_string(index)},
                {"path", path},
                {"type", std::string("sentence_transformers.models.") + type}};
  };
  Json modules = Json::array({module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")});
  if (pooling.normalize) modules.push_back(module(2, "2_Normalize", "Normalize"));
  make_directories(folder + "/1_Pooling");
  const Json kinds = {{"pooling_mode_cls_token", pooling.kind == "first"},
                      {"pooling_mode_mean_tokens", pooling.kind == "mean"},
                      {"pooling_mode_lasttoken", pooling.kind == "last"}};
  write_text_file(folder + "/1_Pooling/config.json", kinds.dump(2) + "\n");
  write_text_file(folder + "/sentence_bert_config.json",
                  Json{{"max_seq_length", context}}.dump(2) + "\n");
  write_text_file(folder + "/modules.json", modules.dump(2) + "\n");
}

/// The type that a tensor is written in.
DType type_of(const hf::StoredTensor& tensor, const ExportOptions& options, bool any_bf16,
              const Origin& origin) {
  if (options.weights == Weights::f32) return DType::f32;
  if (options.weights == Weights::f16) return DType::f16;
  if (options.weights == Weights::bf16) return DType::bf16;
  if (tensor.dtype != DType::f32 || tensor.bytes.empty()) return tensor.dtype;
  const PackedMatrix matrix = view_packed(
      Format::f32, 1, static_cast<int64_t>(tensor.bytes.size() / 4), tensor.bytes, tensor.name);
  if (origin.f16 && is_exact_f16(matrix)) return DType::f16;
  if (any_bf16 && is_exact_bf16(matrix)) return DType::bf16;
  return DType::f32;
}

std::vector<std::byte> converted(const hf::StoredTensor& tensor, DType to,
                                 const std::string& what) {
  const size_t count = static_cast<size_t>(numel(tensor.shape));
  const size_t each = static_cast<size_t>(dtype_size(to));
  std::vector<std::byte> out(count * each);
  for (size_t i = 0; i < count; ++i) {
    float value;
    if (tensor.dtype == DType::bf16) {
      uint16_t bits;
      std::memcpy(&bits, tensor.bytes.data() + 2 * i, 2);
      value = bf16_to_f32(bits);
    } else {
      std::memcpy(&value, tensor.bytes.data() + 4 * i, 4);
    }
    if (to == DType::f32) {
      std::memcpy(out.data() + 4 * i, &value, 4);
      continue;
    }
    const uint16_t bits = to == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    if (!std::isfinite(to == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits)))
      fail(Code::numeric, "{}: tensor '{}': element {} is {}, too large for {}", what,
           printable(tensor.name), i, value, dtype_name(to));
    std::memcpy(out.data() + 2 * i, &bits, 2);
  }
  return out;
}

}  // namespace

ExportResult export_replayed(const Bundle& bundle, const Origin& origin, const std::string& folder,
                             const ExportOptions& options) {
  const Replayed model = replay_import(bundle, origin);
  bool any_bf16 = false;
  for (const auto& [name, tensor] : model.tensors)
    any_bf16 = any_bf16 || tensor.dtype == DType::bf16;
  std::deque<std::vector<std::byte>> kept;
  std::vector<TensorView> views;
  for (const auto& [name, tensor] : model.tensors) {
    const DType type = type_of(tensor, options, any_bf16, origin);
    TensorView view{name, type, tensor.shape, tensor.bytes};
    if (type != tensor.dtype)
      view.bytes = kept.emplace_back(converted(tensor, type, bundle.path()));
    views.push_back(std::move(view));
    if (options.progress)
      options.progress(static_cast<int64_t>(views.size()),
                       static_cast<int64_t>(model.tensors.size()));
  }
  ExportResult result;
  result.architecture = model.architecture;
  result.tensors = static_cast<int64_t>(views.size());
  make_directories(folder);
  write_safetensors(folder + "/model.safetensors", views, {{"format", "pt"}});
  if (!bundle.tokenizer_json().empty()) {
    write_text_file(folder + "/tokenizer.json", bundle.tokenizer_json());
    result.tokenizer = true;
  }
  if (model.pooling) write_pooling(*model.pooling, model.context, folder);
  write_text_file(folder + "/config.json", model.config.dump(2) + "\n");
  if (origin.preprocessor)
    write_text_file(folder + "/preprocessor_config.json", origin.preprocessor->dump(2) + "\n");
  if (model.architecture.starts_with("Bert") ||
      model.architecture.find("Roberta") != std::string::npos)
    result.notes.push_back(
        "the vector of token types is part of the positions, and there are no heads beside the "
        "encoder: neither was imported");
  return result;
}

}  // namespace sluice::bundle
