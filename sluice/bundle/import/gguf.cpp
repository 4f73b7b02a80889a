#include "sluice/bundle/import/gguf.h"

#include <cstring>
#include <filesystem>
#include <map>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/gguf/packed_blocks.h"
#include "sluice/bundle/gguf/vocabulary.h"
#include "sluice/bundle/import/family.h"
#include "sluice/bundle/rotary_rows.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

using gguf::File;
using hf::kMaxSize;
using hf::StoredTensor;

struct Architecture {
  const char *name, *model;  ///< general.architecture, and the class of transformers
  bool interleaved;          ///< pairs of rotary columns lie side by side
};
constexpr Architecture kArchitectures[] = {{"llama", "LlamaForCausalLM", true},
                                           {"qwen2", "Qwen2ForCausalLM", false},
                                           {"qwen3", "Qwen3ForCausalLM", false}};

const Architecture& architecture_of(const File& file) {
  const std::string name = file.text("general.architecture");
  for (const Architecture& architecture : kArchitectures)
    if (name == architecture.name) return architecture;
  fail(Code::unsupported, "{}: expected llama, qwen2 or qwen3, found '{}'",
       file.field("general.architecture"), printable(name, 60));
}

/// Parts of names, in GGUF and at Hugging Face.
constexpr std::pair<const char*, const char*> kParts[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"}};

/// The name that a tensor has at Hugging Face; the same where none is known.
std::string canonical_name(const std::string& name) {
  if (name == "token_embd.weight") return "model.embed_tokens.weight";
  if (name == "output_norm.weight") return "model.norm.weight";
  if (name == "output.weight") return "lm_head.weight";
  if (!name.starts_with("blk.")) return name;
  const size_t dot = name.find('.', 4), end = name.rfind('.');
  if (dot == name.npos || end <= dot) return name;
  const std::string part = name.substr(dot + 1, end - dot - 1);
  for (const auto& [here, there] : kParts)
    if (part == here)
      return "model.layers." + name.substr(4, dot - 4) + "." + there + name.substr(end);
  return name;
}

/// The other way.
std::string gguf_name(const std::string& name) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  constexpr std::string_view kLayers = "model.layers.";
  const size_t dot = name.find('.', kLayers.size()), end = name.rfind('.');
  if (!name.starts_with(kLayers) || dot == name.npos || end <= dot) return name;
  const std::string part = name.substr(dot + 1, end - dot - 1);
  for (const auto& [here, there] : kParts)
    if (part == there)
      return "blk." + name.substr(kLayers.size(), dot - kLayers.size()) + "." + here +
             name.substr(end);
  return name;
}

struct Sizes {
  int64_t width, inner, layers, heads, kv_heads, head_width, rope_dims, vocabulary;
};

class GgufSource : public hf::Source {
 public:
  GgufSource(const File& file, const Sizes& sizes, bool interleaved)
      : file_(file), sizes_(sizes), interleaved_(interleaved) {
    for (const gguf::Tensor& tensor : file.tensors())
      if (tensor.name != "rope_freqs.weight") tensors_[canonical_name(tensor.name)] = &tensor;
  }

  const std::string& what() const override { return file_.path(); }
  const char* asker() const override { return "the metadata"; }
  std::string own_name(const std::string& name) const override { return gguf_name(name); }
  bool has(const std::string& name) const override { return tensors_.count(name) > 0; }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }

  StoredTensor get(const std::string& name) const override {
    const gguf::Tensor& tensor = *tensors_.at(name);
    StoredTensor result{file_.path(), tensor.name, tensor.shape, DType::f32, {}, tensor.bytes, {}};
    if (!gguf::find_type(tensor.type))
      fail(Code::dtype,
           "{}: tensor '{}': expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K, found {}",
           file_.path(), printable(tensor.name), gguf::type_name(tensor.type));
    // A bundle's stored matrices have two dimensions, and so have those of these models.
    if (tensor.shape.size() > 2) return result;
    unweave(name, tensor, result);
    convert(tensor, result);
    return result;
  }

 private:
  /// Rows of queries and keys in the order of Hugging Face, where the pairs are half a head apart.
  void unweave(const std::string& name, const gguf::Tensor& tensor, StoredTensor& result) const {
    const bool q = name.find(".self_attn.q_proj.") != name.npos,
               k = name.find(".self_attn.k_proj.") != name.npos;
    const int64_t heads = q ? sizes_.heads : sizes_.kv_heads;
    const bool vector = tensor.shape.size() == 1;
    const int64_t rows = tensor.shape[0];
    if (!interleaved_ || !(q || k) || rows != heads * sizes_.head_width) return;
    // convert() refuses vectors in blocks, which have no row by itself.
    if (vector && gguf::find_type(tensor.type)->block > 1) return;
    own(result,
        reorder_rotary_rows(tensor.bytes, rows, heads, sizes_.rope_dims, RotaryPairs::halves));
  }

  static void own(StoredTensor& result, std::vector<std::byte> bytes) {
    result.owned = std::make_shared<std::vector<std::byte>>(std::move(bytes));
    result.bytes = *result.owned;
  }

  /// What the bundle has no type for becomes f32.
  static void convert(const gguf::Tensor& tensor, StoredTensor& result) {
    if (tensor.type == gguf::kF32) return;
    if (tensor.type == gguf::kF16 || tensor.type == gguf::kBF16) {
      result.dtype = tensor.type == gguf::kF16 ? DType::f16 : DType::bf16;
      return;
    }
    const std::optional<Format> format = gguf::format_of(tensor.type);
    if (format && tensor.shape.size() == 2) {
      if (auto stored =
              gguf::from_blocks(tensor.type, result.bytes, tensor.shape[0], tensor.shape[1])) {
        result.packed = format;
        result.dtype = DType::u8;
        own(result, std::move(*stored));
        return;
      }
    }
    std::vector<float> values(static_cast<size_t>(numel(tensor.shape)));
    gguf::dequantize(tensor.type, result.bytes, values);
    const auto bytes = std::as_bytes(std::span(values));
    own(result, {bytes.begin(), bytes.end()});
  }

  const File& file_;
  Sizes sizes_;
  bool interleaved_;
  std::map<std::string, const gguf::Tensor*> tensors_;
};

class Importer {
 public:
  Importer(const std::string& path, const ImportOptions& options)
      : file_(File::open(path)), options_(options), architecture_(architecture_of(file_)) {}

  ImportResult run(const std::string& output) {
    read_sizes();
    const hf::Config config = config_json();
    hf::Weights weights(std::make_unique<GgufSource>(file_, sizes_, architecture_.interleaved),
                        options_);
    std::optional<hf::Pooling> pooling;
    if (!options_.pooling.empty()) pooling = hf::Pooling{options_.pooling, options_.normalize, 0};
    if (!pooling && options_.normalize)
      fail(Code::usage, "--normalize needs a pooling: give --pooling mean, first or last");
    hf::Model model{config, weights, options_, pooling, architecture_.model, Builder(), {}};
    model.biases_as_stored = true;
    model.rope_factors = rope_factors();
    hf::build_decoder(model);
    hf::Texts texts;
    const gguf::Vocabulary vocabulary = gguf::read_vocabulary(file_);
    if (!vocabulary.tokens.empty()) {
      if (static_cast<int64_t>(vocabulary.tokens.size()) > sizes_.vocabulary)
        fail(Code::shape, "{}: {} tokens; the embedding has {} rows",
             file_.field("tokenizer.ggml.tokens"), vocabulary.tokens.size(), sizes_.vocabulary);
      texts.tokenizer = gguf::tokenizer_json(vocabulary, file_.path());
    }
    if (model.result.kind == "generate") texts.stop_tokens = vocabulary.end_ids;
    texts.step = {
        {"step", "import"}, {"format", "gguf"}, {"source", printable(source_name(), 200)}};
    return hf::finish_import(model, std::move(texts), output);
  }

 private:
  std::string key(const char* name) const { return std::string(architecture_.name) + "." + name; }
  int64_t size(const char* name, int64_t most = kMaxSize) const {
    return file_.integer(key(name), 1, most);
  }
  int64_t size_or(const char* name, int64_t fallback, int64_t most) const {
    return file_.has(key(name)) ? size(name, most) : fallback;
  }

  std::string source_name() const {
    return std::filesystem::path(file_.path()).filename().string();
  }

  void read_sizes() {
    Sizes& s = sizes_;
    s.width = size("embedding_length");
    s.inner = size("feed_forward_length");
    s.layers = size("block_count", 65536);
    s.heads = size("attention.head_count", 65536);
    s.kv_heads = size_or("attention.head_count_kv", s.heads, 65536);
    if (!file_.has(key("attention.key_length")) && s.width % s.heads != 0)
      fail(Code::config, "{}: {} does not divide the embedding_length {}",
           file_.field(key("attention.head_count")), s.heads, s.width);
    s.head_width = size_or("attention.key_length", std::max<int64_t>(s.width / s.heads, 1), 65536);
    if (size_or("attention.value_length", s.head_width, 65536) != s.head_width)
      fail(Code::unsupported, "{}: expected the {} of attention.key_length, found {}",
           file_.field(key("attention.value_length")), s.head_width,
           size("attention.value_length", 65536));
    s.rope_dims = size_or("rope.dimension_count", s.head_width, 65536);
    if (s.rope_dims > s.head_width || s.rope_dims % 2 != 0)
      fail(Code::config, "{}: expected an even number up to the {} columns of a head, found {}",
           file_.field(key("rope.dimension_count")), s.head_width, s.rope_dims);
    for (const char* name : {"expert_count", "attention.sliding_window"})
      if (file_.has(key(name)) && file_.integer(key(name), 0, kMaxSize) > 0)
        fail(Code::unsupported, "{}: found {}; experts and windows are not imported from GGUF",
             file_.field(key(name)), size(name));
    const gguf::Tensor* words = file_.find_tensor("token_embd.weight");
    if (!words) fail(Code::missing, "{}: tensor 'token_embd.weight' is not there", file_.path());
    s.vocabulary = words->shape[0];
    if (s.vocabulary > kMaxSize)
      fail(Code::limit, "{}: tensor 'token_embd.weight': {} rows; at most {} are read",
           file_.path(), s.vocabulary, kMaxSize);
    if (file_.has(key("vocab_size")) && size("vocab_size") != s.vocabulary)
      fail(Code::shape, "{}: {}; 'token_embd.weight' has {} rows", file_.field(key("vocab_size")),
           size("vocab_size"), s.vocabulary);
  }

  std::vector<float> rope_factors() const {
    const gguf::Tensor* tensor = file_.find_tensor("rope_freqs.weight");
    if (!tensor) return {};
    if (tensor->type != gguf::kF32 || tensor->shape != Shape{sizes_.rope_dims / 2})
      fail(Code::shape, "{}: tensor 'rope_freqs.weight': expected {} of F32, found {} of {}",
           file_.path(), sizes_.rope_dims / 2, to_string(tensor->shape),
           gguf::type_name(tensor->type));
    std::vector<float> factors(static_cast<size_t>(sizes_.rope_dims / 2));
    gguf::dequantize(gguf::kF32, tensor->bytes, factors);
    for (size_t i = 0; i < factors.size(); ++i)
      if (!(factors[i] > 0 && factors[i] <= 1e30f))
        fail(Code::numeric,
             "{}: tensor 'rope_freqs.weight': element {}: expected a number above "
             "0, found {}",
             file_.path(), i, factors[i]);
    return factors;
  }

  /// The metadata as the fields that the builders of families read.
  hf::Config config_json() const {
    const Sizes& s = sizes_;
    Json json = {{"hidden_size", s.width},
                 {"intermediate_size", s.inner},
                 {"num_hidden_layers", s.layers},
                 {"num_attention_heads", s.heads},
                 {"num_key_value_heads", s.kv_heads},
                 {"head_dim", s.head_width},
                 {"vocab_size", s.vocabulary},
                 {"rms_norm_eps", file_.number(key("attention.layer_norm_rms_epsilon"), 0, 1)},
                 {"max_position_embeddings", size("context_length")},
                 {"hidden_act", "silu"},
                 {"tie_word_embeddings", file_.find_tensor("output.weight") == nullptr}};
    if (file_.has(key("rope.freq_base")))
      json["rope_theta"] = file_.number(key("rope.freq_base"), 1 + 1e-6, 1e30);
    if (s.rope_dims != s.head_width)
      json["partial_rotary_factor"] =
          static_cast<double>(s.rope_dims) / static_cast<double>(s.head_width);
    add_scaling(json);
    hf::Config config(std::move(json), file_.path());
    config.set_aliases({{"hidden_size", key("embedding_length")},
                        {"intermediate_size", key("feed_forward_length")},
                        {"num_hidden_layers", key("block_count")},
                        {"num_attention_heads", key("attention.head_count")},
                        {"num_key_value_heads", key("attention.head_count_kv")},
                        {"head_dim", key("attention.key_length")},
                        {"rms_norm_eps", key("attention.layer_norm_rms_epsilon")},
                        {"max_position_embeddings", key("context_length")},
                        {"rope_theta", key("rope.freq_base")},
                        {"partial_rotary_factor", key("rope.dimension_count")},
                        {"rope_scaling.factor", key("rope.scaling.factor")}});
    return config;
  }

  void add_scaling(Json& json) const {
    const std::string type =
        file_.has(key("rope.scaling.type")) ? file_.text(key("rope.scaling.type")) : "none";
    if (type == "none") return;
    if (type != "linear" && type != "yarn")
      fail(Code::unsupported, "{}: expected none, linear or yarn, found '{}'",
           file_.field(key("rope.scaling.type")), printable(type, 60));
    if (file_.has(key("rope.scaling.attn_factor")) &&
        file_.number(key("rope.scaling.attn_factor"), -1e6, 1e6) != 1)
      fail(Code::unsupported, "{}: expected 1, or none: attention is not scaled by it",
           file_.field(key("rope.scaling.attn_factor")));
    json["rope_scaling"] = {{"rope_type", type},
                            {"factor", file_.number(key("rope.scaling.factor"), 1e-3, 1e6)}};
    if (file_.has(key("rope.scaling.original_context_length")))
      json["rope_scaling"]["original_max_position_embeddings"] =
          size("rope.scaling.original_context_length");
  }

  const File file_;
  const ImportOptions& options_;
  const Architecture& architecture_;
  Sizes sizes_{};
};

}  // namespace

ImportResult import_gguf(const std::string& source, const std::string& output,
                         const ImportOptions& options) {
  return Importer(source, options).run(output);
}

}  // namespace sluice::bundle
