#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <filesystem>
#include <optional>

#include "sluice/base/error.h"
#include "sluice/bundle/export/decoder_structure.h"
#include "sluice/bundle/export/export.h"
#include "sluice/bundle/export/origin.h"
#include "sluice/bundle/gguf/packed_blocks.h"
#include "sluice/bundle/gguf/vocabulary.h"
#include "sluice/bundle/rotary_rows.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

using Weights = ExportOptions::Weights;

class GgufExporter {
 public:
  GgufExporter(const Bundle& bundle, const ExportOptions& options)
      : bundle_(bundle),
        options_(options),
        decoder_(find_decoder(bundle)),
        origin_(find_origin(bundle)) {}

  ExportResult write(const std::string& path) {
    choose_architecture();
    write_sizes();
    write_tokenizer();
    write_tensors();
    writer_.write(path);
    return std::move(result_);
  }

 private:
  void choose_architecture() {
    const DecoderStructure& d = decoder_;
    const DecoderLayer& first = d.layers[0];
    const bool head_norm = !first.q_norm.empty();
    bool qkv = true, others = false;
    for (const DecoderLayer& layer : d.layers) {
      if (head_norm != !layer.q_norm.empty() || head_norm != !layer.k_norm.empty())
        refuse(layer.path, "some heads are normed and some are not");
      if (layer.window > 0 && (d.context == 0 || layer.window < d.context))
        refuse(layer.path, fmt::format("its window of {} positions has no key in this architecture",
                                       layer.window));
      qkv = qkv && !layer.q.bias.empty() && !layer.k.bias.empty() && !layer.v.bias.empty();
      for (const LinearTensors* part : {&layer.out, &layer.gate, &layer.up, &layer.down})
        others = others || !part->bias.empty();
    }
    if (d.activation != "silu")
      refuse(first.gate.path, "its activation is " + d.activation + "; expected silu");
    const double usual = 1 / std::sqrt(static_cast<double>(d.head_width));
    if (std::abs(d.attention_scale / usual - 1) > 1e-6)
      refuse(first.path, fmt::format("products of queries and keys are scaled by {:.7g}, GGUF's "
                                     "decoders scale by {:.7g}",
                                     d.attention_scale, usual));
    if (!d.head.bias.empty()) refuse(d.head.path, "the head has a bias");
    if (head_norm) {
      if (d.any_bias()) refuse(first.q.path, "heads are normed and projections have biases");
      if (!d.rope_factors.empty())
        refuse(first.path, "heads are normed and rotary frequencies have factors");
      architecture_ = "qwen3";
    } else {
      architecture_ = qkv && !others && d.rope_factors.empty() ? "qwen2" : "llama";
    }
    if (architecture_ != "llama" && d.rope_dims != d.head_width)
      refuse(first.path, "rotary positions on a part of each head");
    result_.architecture = architecture_;
  }

  [[noreturn]] void refuse(const std::string& path, const std::string& why) const {
    fail(Code::unsupported, "{}: node '{}': {}; GGUF cannot say that", bundle_.path(),
         printable(path), why);
  }

  void number(const std::string& key, int64_t value) {
    writer_.set(architecture_ + "." + key, static_cast<uint32_t>(value));
  }
  void number(const std::string& key, double value) {
    writer_.set(architecture_ + "." + key, static_cast<float>(value));
  }

  /// Positions and name from the step that imported it, where there is one.
  void write_sizes() {
    const DecoderStructure& d = decoder_;
    int64_t positions = d.context > 0 ? d.context : bundle_.graph().inputs[0].shape[0];
    std::string name = std::filesystem::path(bundle_.path()).stem().string();
    if (origin_.positions > 0) positions = origin_.positions;
    // A window that no run of this bundle reaches beyond: longer ones would.
    for (const DecoderLayer& layer : d.layers)
      if (layer.window > 0) positions = std::min(positions, layer.window);
    if (!origin_.name.empty()) name = origin_.name;
    writer_.set("general.architecture", std::string_view(architecture_));
    writer_.set("general.name", std::string_view(name));
    writer_.set("general.quantization_version", uint32_t{2});
    number("vocab_size", d.vocabulary);
    number("context_length", positions);
    number("embedding_length", d.width);
    number("block_count", static_cast<int64_t>(d.layers.size()));
    number("feed_forward_length", d.inner);
    number("attention.head_count", d.heads);
    number("attention.head_count_kv", d.kv_heads);
    number("attention.key_length", d.head_width);
    number("attention.value_length", d.head_width);
    number("attention.layer_norm_rms_epsilon", d.eps);
    number("rope.dimension_count", d.rope_dims);
    number("rope.freq_base", d.rope_base);
    if (d.rope_scale != 1) {
      writer_.set(architecture_ + ".rope.scaling.type", std::string_view("linear"));
      number("rope.scaling.factor", d.rope_scale);
    }
  }

  void write_tokenizer() {
    gguf::Vocabulary vocabulary;
    vocabulary.model = "none";
    if (!bundle_.tokenizer_json().empty()) {
      vocabulary = gguf::vocabulary_of(bundle_.tokenizer_json(), decoder_.vocabulary,
                                       bundle_.path() + ": tokenizer", &result_.notes);
      result_.tokenizer = true;
    } else {
      result_.notes.push_back("no tokenizer: the file takes ids only");
    }
    if (const auto& stops = bundle_.task().stop_tokens; !stops.empty()) {
      // What llama.cpp appends to a text is the first; the other stops only end it.
      std::vector<int64_t> ids = vocabulary.add_end ? vocabulary.end_ids : std::vector<int64_t>{};
      ids.resize(std::min<size_t>(ids.size(), 1));
      for (const int64_t id : stops)
        if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
      vocabulary.end_ids = std::move(ids);
      if (stops.size() > 2)
        result_.notes.push_back("more than two stop tokens: GGUF has keys for the first two");
    }
    gguf::write_vocabulary(vocabulary, writer_);
  }

  void write_tensors() {
    const DecoderStructure& d = decoder_;
    matrix("token_embd", d.words);
    for (size_t i = 0; i < d.layers.size(); ++i) {
      const DecoderLayer& layer = d.layers[i];
      const std::string block = fmt::format("blk.{}.", i);
      vector(block + "attn_norm.weight", layer.input_norm);
      linear(block + "attn_q", layer.q, d.heads);
      linear(block + "attn_k", layer.k, d.kv_heads);
      linear(block + "attn_v", layer.v);
      linear(block + "attn_output", layer.out);
      if (!layer.q_norm.empty()) {
        vector(block + "attn_q_norm.weight", layer.q_norm, 1);
        vector(block + "attn_k_norm.weight", layer.k_norm, 1);
      }
      vector(block + "ffn_norm.weight", layer.middle_norm);
      linear(block + "ffn_gate", layer.gate);
      linear(block + "ffn_up", layer.up);
      linear(block + "ffn_down", layer.down);
      if (options_.progress)
        options_.progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(d.layers.size()));
    }
    vector("output_norm.weight", d.final_norm);
    if (!d.tied) matrix("output", d.head.weight);
    if (!d.rope_factors.empty()) vector("rope_freqs.weight", d.rope_factors);
  }

  void linear(const std::string& name, const LinearTensors& tensors, int64_t heads = 0) {
    matrix(name, tensors.weight, heads);
    if (!tensors.bias.empty()) vector(name + ".bias", tensors.bias, heads);
  }

  /// llama.cpp turns columns (2i, 2i+1) of a head for the architecture llama, (i, i + dims/2) for
  /// the others; rows of queries and keys, and norms of heads, go where their pair is. `heads` 0:
  /// as they are.
  std::vector<std::byte> in_order(std::span<const std::byte> rows, int64_t count, int64_t heads) {
    const bool interleaved = architecture_ == "llama";
    if (heads == 0 || decoder_.rope_interleaved == interleaved) return {rows.begin(), rows.end()};
    return reorder_rotary_rows(rows, count, heads, decoder_.rope_dims,
                               interleaved ? RotaryPairs::interleaved : RotaryPairs::halves);
  }

  void vector(const std::string& name, const std::string& tensor, int64_t heads = 0) {
    const TensorSpec& spec = bundle_.graph().tensors.at(tensor);
    add(name, gguf::kF32, spec.shape, in_order(bundle_.tensor(tensor).bytes, spec.shape[0], heads));
  }

  void matrix(const std::string& name, const std::string& tensor, int64_t heads = 0) {
    const TensorSpec& spec = bundle_.graph().tensors.at(tensor);
    const Format format = *format_from_name(spec.format);
    const int64_t rows = spec.shape[0], columns = spec.shape[1];
    const PackedMatrix stored = view_packed(format, rows, columns, bundle_.tensor(tensor).bytes,
                                            "tensor '" + printable(tensor) + "'");
    const auto [type, blocks] = converted(stored, tensor);
    add(name + ".weight", type, spec.shape, in_order(blocks, rows, heads));
  }

  std::pair<uint32_t, std::vector<std::byte>> converted(const PackedMatrix& stored,
                                                        const std::string& tensor) const {
    std::optional<uint32_t> type = gguf::type_of(stored.format);
    switch (options_.weights) {
      case Weights::keep:
        if (!type)
          fail(Code::unsupported,
               "{}: tensor '{}' is {}, for which GGUF has no type; export with --dtype f16, q8_0 "
               "or another",
               bundle_.path(), printable(tensor), format_name(stored.format));
        if (origin_.f16 && is_exact_f16(stored)) type = gguf::kF16;
        break;
      case Weights::f32:
        type = gguf::kF32;
        break;
      case Weights::f16:
        type = gguf::kF16;
        break;
      case Weights::bf16:
        type = gguf::kBF16;
        break;
      case Weights::q8_0:
        type = gguf::kQ8_0;
        break;
      case Weights::q4_0:
        type = gguf::kQ4_0;
        break;
    }
    const gguf::TensorType& chosen = *gguf::find_type(*type);
    if (stored.columns % chosen.block != 0)
      fail(Code::unsupported,
           "{}: tensor '{}': rows of {} columns; {} stores blocks of {}. Export with --dtype f16",
           bundle_.path(), printable(tensor), stored.columns, chosen.name, chosen.block);
    const std::optional<Format> packed = gguf::format_of(*type);
    if (packed == stored.format) return {*type, gguf::to_blocks(stored)};
    std::vector<float> values(static_cast<size_t>(stored.rows * stored.columns));
    unpack(stored, values);
    if (packed) {
      const std::vector<std::byte> bytes = pack(*packed, values, stored.rows, stored.columns);
      return {*type, gguf::to_blocks(
                         view_packed(*packed, stored.rows, stored.columns, bytes, tensor, true))};
    }
    std::vector<std::byte> halves(2 * values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t bits = f32_to_f16(values[i]);
      if (!std::isfinite(f16_to_f32(bits)))
        fail(Code::numeric,
             "{}: tensor '{}': element {} is {}, too large for f16; export with "
             "--dtype bf16",
             bundle_.path(), printable(tensor), i, values[i]);
      std::memcpy(halves.data() + 2 * i, &bits, 2);
    }
    return {*type, std::move(halves)};
  }

  void add(const std::string& name, uint32_t type, const Shape& shape,
           std::vector<std::byte> bytes) {
    kept_.push_back(std::move(bytes));
    writer_.tensor(name, type, shape, kept_.back());
    ++result_.tensors;
  }

  const Bundle& bundle_;
  const ExportOptions& options_;
  const DecoderStructure decoder_;
  const Origin origin_;
  std::string architecture_;
  gguf::Writer writer_;
  std::deque<std::vector<std::byte>> kept_;
  ExportResult result_;
};

}  // namespace

ExportResult export_gguf(const Bundle& bundle, const std::string& path,
                         const ExportOptions& options) {
  return GgufExporter(bundle, options).write(path);
}

}  // namespace sluice::bundle
