// Llama-type decoders as folders that transformers reads: config.json, model.safetensors,
// tokenizer.json.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/bundle/export/decoder_structure.h"
#include "sluice/bundle/export/export.h"
#include "sluice/bundle/export/origin.h"
#include "sluice/bundle/export/replay.h"
#include "sluice/bundle/import/rope_scaling.h"
#include "sluice/bundle/rotary_rows.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

using Weights = ExportOptions::Weights;

/// The classes that are found in a graph, and what config.json calls their kind.
constexpr std::pair<const char*, const char*> kDecoders[] = {{"LlamaForCausalLM", "llama"},
                                                             {"MistralForCausalLM", "mistral"},
                                                             {"Qwen2ForCausalLM", "qwen2"},
                                                             {"Qwen3ForCausalLM", "qwen3"}};

class FolderExporter {
 public:
  FolderExporter(const Bundle& bundle, const ExportOptions& options)
      : bundle_(bundle),
        options_(options),
        decoder_(find_decoder(bundle)),
        origin_(find_origin(bundle)) {}

  ExportResult write(const std::string& folder) {
    choose_architecture();
    make_config();
    collect_tensors();
    make_directories(folder);
    write_safetensors(folder + "/model.safetensors", views_, {{"format", "pt"}});
    if (!bundle_.tokenizer_json().empty()) {
      write_text_file(folder + "/tokenizer.json", bundle_.tokenizer_json());
      result_.tokenizer = true;
    }
    write_text_file(folder + "/config.json", config_.dump(2) + "\n");
    return std::move(result_);
  }

 private:
  [[noreturn]] void refuse(const std::string& path, const std::string& why) const {
    fail(Code::unsupported, "{}: node '{}': {}; a config.json cannot say that", bundle_.path(),
         printable(path), why);
  }

  /// All layers, or none, have a bias here.
  bool all_or_none(std::initializer_list<LinearTensors DecoderLayer::*> parts) const {
    const bool first = !(decoder_.layers[0].*(*parts.begin())).bias.empty();
    for (const DecoderLayer& layer : decoder_.layers)
      for (const auto part : parts)
        if ((layer.*part).bias.empty() == first)
          refuse((layer.*part).path, "some projections have a bias and some have none");
    return first;
  }

  void choose_architecture() {
    const DecoderStructure& d = decoder_;
    const DecoderLayer& first = d.layers[0];
    const bool head_norm = !first.q_norm.empty();
    size_t windows = 0;
    for (const DecoderLayer& layer : d.layers) {
      if (head_norm != !layer.q_norm.empty() || head_norm != !layer.k_norm.empty())
        refuse(layer.path, "some heads are normed and some are not");
      if (layer.window > 0 && window_ > 0 && layer.window != window_)
        refuse(layer.path, "windows of several sizes");
      windows += layer.window > 0;
      window_ = std::max(window_, layer.window);
    }
    if (!d.head.bias.empty()) refuse(d.head.path, "the head has a bias");
    qkv_bias_ = all_or_none({&DecoderLayer::q, &DecoderLayer::k, &DecoderLayer::v});
    out_bias_ = all_or_none({&DecoderLayer::out});
    mlp_bias_ = all_or_none({&DecoderLayer::gate, &DecoderLayer::up, &DecoderLayer::down});
    if (head_norm) {
      architecture_ = "Qwen3ForCausalLM";
      if (qkv_bias_ != out_bias_) refuse(first.out.path, "biases on a part of attention");
    } else if (qkv_bias_ && !out_bias_) {
      architecture_ = "Qwen2ForCausalLM";
    } else if (windows > 0) {
      architecture_ = "MistralForCausalLM";
      if (windows < d.layers.size())
        refuse(first.path, "windows in some layers without biases or norms of heads");
      if (qkv_bias_ || out_bias_) refuse(first.path, "windows and biases");
    } else {
      architecture_ = "LlamaForCausalLM";
      if (qkv_bias_ != out_bias_) refuse(first.out.path, "biases on a part of attention");
    }
    if (architecture_ == "LlamaForCausalLM" && origin_.architecture == "MistralForCausalLM" &&
        !qkv_bias_ && !mlp_bias_)
      architecture_ = origin_.architecture;
    if (mlp_bias_ && architecture_ != "LlamaForCausalLM")
      refuse(first.gate.path, "biases in the feed-forward of a " + architecture_);
    if (architecture_ == "Qwen2ForCausalLM" && d.head_width * d.heads != d.width)
      refuse(first.path, "heads of another width than the model's in a Qwen2ForCausalLM");
    result_.architecture = architecture_;
  }

  void make_config() {
    const DecoderStructure& d = decoder_;
    Json& c = config_;
    // What was imported keeps the fields that running needs not, where it is still of that kind.
    if (origin_.config && origin_.architecture == architecture_) c = *origin_.config;
    for (const char* key : {"sliding_window", "layer_types", "use_sliding_window", "rope_scaling",
                            "rope_parameters", "partial_rotary_factor", "quantization_config"})
      c.erase(key);
    const auto type =
        std::ranges::find_if(kDecoders, [&](const auto& t) { return architecture_ == t.first; });
    c["architectures"] = Json::array({architecture_});
    c["model_type"] = type->second;
    c["vocab_size"] = d.vocabulary;
    c["hidden_size"] = d.width;
    c["intermediate_size"] = d.inner;
    c["num_hidden_layers"] = d.layers.size();
    c["num_attention_heads"] = d.heads;
    c["num_key_value_heads"] = d.kv_heads;
    if (architecture_ != "Qwen2ForCausalLM") c["head_dim"] = d.head_width;
    c["rms_norm_eps"] = d.eps;
    c["tie_word_embeddings"] = d.tied;
    c["hidden_act"] = d.activation == "gelu_tanh" ? "gelu_pytorch_tanh" : d.activation;
    if (architecture_ == "LlamaForCausalLM" || architecture_ == "Qwen3ForCausalLM")
      c["attention_bias"] = qkv_bias_;
    if (architecture_ == "LlamaForCausalLM") c["mlp_bias"] = mlp_bias_;
    if (!bundle_.task().stop_tokens.empty()) {
      const auto& stops = bundle_.task().stop_tokens;
      c["eos_token_id"] = stops.size() == 1 ? Json(stops[0]) : Json(stops);
    }
    if (origin_.positions > 0)
      c["max_position_embeddings"] = origin_.positions;
    else
      c["max_position_embeddings"] = d.context > 0 ? d.context : bundle_.graph().inputs[0].shape[0];
    make_windows();
    make_rope();
  }

  void make_windows() {
    if (window_ == 0) {
      if (architecture_ == "MistralForCausalLM") config_["sliding_window"] = nullptr;
      return;
    }
    config_["sliding_window"] = window_;
    if (architecture_ == "MistralForCausalLM") return;
    config_["use_sliding_window"] = true;
    Json types = Json::array();
    for (const DecoderLayer& layer : decoder_.layers)
      types.push_back(layer.window > 0 ? "sliding_attention" : "full_attention");
    config_["layer_types"] = std::move(types);
  }

  std::vector<float> factors() const {
    if (decoder_.rope_factors.empty()) return {};
    const auto bytes = bundle_.tensor(decoder_.rope_factors).bytes;
    std::vector<float> result(bytes.size() / sizeof(float));
    std::memcpy(result.data(), bytes.data(), bytes.size());
    return result;
  }

  /// Factors without a config.json (from GGUF) may be those of Llama 3, whose parameters but two
  /// are the same everywhere: these are tried.
  bool add_llama3(Json& fields) const {
    const std::vector<float> found = factors();
    if (found.empty()) return false;
    for (int64_t original = 8; original <= hf::kMaxSize; original *= 2) {
      fields["rope_scaling"] = {{"rope_type", "llama3"},
                                {"factor", *std::ranges::max_element(found)},
                                {"low_freq_factor", 1.0},
                                {"high_freq_factor", 4.0},
                                {"original_max_position_embeddings", original}};
      if (says_rope(fields)) return true;
    }
    return false;
  }

  /// Is what the graph computes what these fields say?
  bool says_rope(const Json& fields) const {
    const DecoderStructure& d = decoder_;
    try {
      const hf::RopeScaling rope = hf::read_rope(hf::Config(fields, "config"), d.head_width);
      const double scale = rope.attention / std::sqrt(static_cast<double>(d.head_width));
      return rope.base == d.rope_base && rope.dims == d.rope_dims && rope.scale == d.rope_scale &&
             rope.factors == factors() && std::abs(scale / d.attention_scale - 1) < 1e-9;
    } catch (const Error&) {
      return false;
    }
  }

  void make_rope() {
    const DecoderStructure& d = decoder_;
    const auto add = [&](const Json& from) {
      for (const char* key : {"rope_theta", "rope_scaling", "rope_parameters",
                              "partial_rotary_factor", "original_max_position_embeddings"})
        if (const auto it = from.find(key); it != from.end()) config_[key] = *it;
    };
    if (origin_.config) {
      if (says_rope(*origin_.config)) {
        add(*origin_.config);
        if (const auto it = origin_.config->find("max_position_embeddings");
            it != origin_.config->end())
          config_["max_position_embeddings"] = *it;
        return;
      }
    }
    Json fields = {{"rope_theta", d.rope_base},
                   {"max_position_embeddings", config_["max_position_embeddings"]}};
    if (d.rope_scale != 1)
      fields["rope_scaling"] = {{"rope_type", "linear"}, {"factor", d.rope_scale}};
    if (d.rope_dims != d.head_width)
      fields["partial_rotary_factor"] =
          static_cast<double>(d.rope_dims) / static_cast<double>(d.head_width);
    if (!says_rope(fields) && !add_llama3(fields))
      refuse(d.layers[0].path,
             "its rotary frequencies have factors, or its products a scale, that come from no "
             "known scaling");
    add(fields);
  }

  void collect_tensors() {
    const DecoderStructure& d = decoder_;
    add("model.embed_tokens.weight", d.words);
    for (size_t i = 0; i < d.layers.size(); ++i) {
      const DecoderLayer& layer = d.layers[i];
      const std::string path = fmt::format("model.layers.{}.", i), self = path + "self_attn.";
      add(path + "input_layernorm.weight", layer.input_norm);
      linear(self + "q_proj", layer.q, d.heads);
      linear(self + "k_proj", layer.k, d.kv_heads);
      linear(self + "v_proj", layer.v);
      linear(self + "o_proj", layer.out);
      if (!layer.q_norm.empty()) {
        add(self + "q_norm.weight", layer.q_norm, 1);
        add(self + "k_norm.weight", layer.k_norm, 1);
      }
      add(path + "post_attention_layernorm.weight", layer.middle_norm);
      linear(path + "mlp.gate_proj", layer.gate);
      linear(path + "mlp.up_proj", layer.up);
      linear(path + "mlp.down_proj", layer.down);
      if (options_.progress)
        options_.progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(d.layers.size()));
    }
    add("model.norm.weight", d.final_norm);
    if (!d.tied) add("lm_head.weight", d.head.weight);
    result_.tensors = static_cast<int64_t>(views_.size());
  }

  void linear(const std::string& name, const LinearTensors& tensors, int64_t heads = 0) {
    add(name + ".weight", tensors.weight, heads);
    if (!tensors.bias.empty()) add(name + ".bias", tensors.bias, heads);
  }

  /// `heads` above 0: rows of queries or keys, whose pairs transformers has half a head apart.
  void add(const std::string& name, const std::string& tensor, int64_t heads = 0) {
    const TensorSpec& spec = bundle_.graph().tensors.at(tensor);
    const bool matrix = spec.shape.size() == 2;
    const Format format = *format_from_name(spec.format);
    const std::span<const std::byte> bytes = bundle_.tensor(tensor).bytes;
    const PackedMatrix stored = view_packed(format, matrix ? spec.shape[0] : 1, spec.shape.back(),
                                            bytes, "tensor '" + printable(tensor) + "'");
    const DType dtype = type_of(stored, tensor);
    TensorView view{name, dtype, spec.shape, bytes};
    if (dtype != spec.dtype) view.bytes = kept_.emplace_back(converted(stored, dtype, tensor));
    if (heads > 0 && decoder_.rope_interleaved)
      view.bytes = kept_.emplace_back(reorder_rotary_rows(view.bytes, spec.shape[0], heads,
                                                          decoder_.rope_dims, RotaryPairs::halves));
    views_.push_back(std::move(view));
  }

  DType type_of(const PackedMatrix& stored, const std::string& tensor) const {
    switch (options_.weights) {
      case Weights::f32:
        return DType::f32;
      case Weights::f16:
        return DType::f16;
      case Weights::bf16:
        return DType::bf16;
      default:
        break;
    }
    if (stored.format == Format::bf16) return DType::bf16;
    if (stored.format != Format::f32)
      fail(Code::unsupported,
           "{}: tensor '{}' is {}, for which this layout has no type; export with --dtype bf16, "
           "f16 or f32",
           bundle_.path(), printable(tensor), format_name(stored.format));
    // A bundle holds f16, and vectors in bf16, as f32: what was narrow is narrow again.
    if (origin_.f16 && is_exact_f16(stored)) return DType::f16;
    if (bf16_before() && is_exact_bf16(stored)) return DType::bf16;
    return DType::f32;
  }

  bool bf16_before() const {
    return bundle_.graph().tensors.at(decoder_.words).format == "bf16" && !origin_.name.empty();
  }

  std::vector<std::byte> converted(const PackedMatrix& stored, DType dtype,
                                   const std::string& tensor) const {
    std::vector<float> values(static_cast<size_t>(stored.rows * stored.columns));
    unpack(stored, values);
    if (dtype == DType::f32) {
      const auto bytes = std::as_bytes(std::span(values));
      return {bytes.begin(), bytes.end()};
    }
    std::vector<std::byte> out(2 * values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t bits = dtype == DType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
      if (!std::isfinite(dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits)))
        fail(Code::numeric, "{}: tensor '{}': element {} is {}, too large for {}", bundle_.path(),
             printable(tensor), i, values[i], dtype_name(dtype));
      std::memcpy(out.data() + 2 * i, &bits, 2);
    }
    return out;
  }

  const Bundle& bundle_;
  const ExportOptions& options_;
  const DecoderStructure decoder_;
  const Origin origin_;
  std::string architecture_;
  int64_t window_ = 0;
  bool qkv_bias_ = false, out_bias_ = false, mlp_bias_ = false;
  Json config_ = Json::object();
  std::vector<TensorView> views_;
  std::deque<std::vector<std::byte>> kept_;
  ExportResult result_;
};

}  // namespace

ExportResult export_hugging_face(const Bundle& bundle, const std::string& folder,
                                 const ExportOptions& options) {
  if (options.weights == Weights::q8_0 || options.weights == Weights::q4_0)
    fail(Code::usage, "--dtype: this layout has f32, f16 and bf16; q8_0 and q4_0 are GGUF's");
  const Origin origin = find_origin(bundle);
  const bool plain = std::ranges::any_of(
      kDecoders, [&](const auto& decoder) { return origin.architecture == decoder.first; });
  const bool embeds = bundle.task().kind == "embed";
  if (origin.config && (!plain || embeds)) return export_replayed(bundle, origin, folder, options);
  return FolderExporter(bundle, options).write(folder);
}

}  // namespace sluice::bundle
