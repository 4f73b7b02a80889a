// Imported models other than plain decoders as folders again. The way in is walked a second time,
// with the bundle as the source: the family's builder asks for every tensor by its old name and
// makes a graph, and only if that graph is the bundle's, tensor by tensor, the names and the
// tensors are a true description of it.
#include <cstring>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/bundle/export/replay.h"
#include "sluice/bundle/import/bricks.h"
#include "sluice/bundle/import/family.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

using hf::StoredTensor;

/// Bytes of one matrix [rows][columns], transposed.
std::vector<std::byte> transposed(std::span<const std::byte> bytes, size_t rows, size_t columns) {
  const size_t each = bytes.size() / (rows * columns);
  std::vector<std::byte> out(bytes.size());
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 0; c < columns; ++c)
      std::memcpy(out.data() + (c * rows + r) * each, bytes.data() + (r * columns + c) * each,
                  each);
  return out;
}

class BundleSource : public hf::Source {
 public:
  explicit BundleSource(const Bundle& bundle, const hf::Config& config)
      : bundle_(bundle), config_(config) {}

  const std::string& what() const override { return bundle_.path(); }
  const char* asker() const override { return "config.json of its import"; }
  bool has(const std::string& name) const override { return find(name).has_value(); }
  StoredTensor get(const std::string& name) const override {
    StoredTensor tensor = *find(name);
    given_[name] = tensor;
    return tensor;
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : given_) names.push_back(name);
    return names;
  }
  const std::map<std::string, StoredTensor>& given() const { return given_; }

 private:
  std::optional<StoredTensor> find(const std::string& name) const {
    if (auto made = gpt2(name)) return made;
    if (auto made = bert(name)) return made;
    if (auto made = expert(name)) return made;
    std::optional<StoredTensor> tensor = stored(name);
    // Tokens and positions of pictures have a dimension for the batch there.
    if (tensor && (name.ends_with("_token") || name.ends_with(".position_embeddings")))
      tensor->shape.insert(tensor->shape.begin(), 1);
    return tensor;
  }

  std::optional<StoredTensor> stored(const std::string& name) const {
    const auto it = bundle_.graph().tensors.find(brick_tensor(name));
    if (it == bundle_.graph().tensors.end()) return std::nullopt;
    const TensorSpec& spec = it->second;
    if (spec.format != "f32" && spec.format != "bf16")
      fail(Code::unsupported,
           "{}: tensor '{}' is {}; this layout has f32 and bf16, and no --dtype for models of this "
           "kind",
           bundle_.path(), printable(name), spec.format);
    return StoredTensor{bundle_.path(), name,         spec.shape,
                        spec.dtype,     std::nullopt, bundle_.tensor(it->first).bytes,
                        nullptr};
  }

  static StoredTensor with(StoredTensor tensor, Shape shape, std::vector<std::byte> bytes) {
    tensor.owned = std::make_shared<std::vector<std::byte>>(std::move(bytes));
    tensor.bytes = *tensor.owned;
    tensor.shape = std::move(shape);
    return tensor;
  }

  static StoredTensor turned(const StoredTensor& tensor) {
    return with(tensor, {tensor.shape[1], tensor.shape[0]},
                transposed(tensor.bytes, static_cast<size_t>(tensor.shape[0]),
                           static_cast<size_t>(tensor.shape[1])));
  }

  /// Its matrices are stored as [in, out], those of queries, keys and values side by side.
  std::optional<StoredTensor> gpt2(const std::string& name) const {
    constexpr std::string_view kPrefix = "transformer.";
    if (!name.starts_with(kPrefix)) return std::nullopt;
    const std::string own = name.substr(kPrefix.size());
    const size_t fused = own.find(".c_attn.");
    if (fused == own.npos) {
      const auto tensor = stored(own);
      const bool matrix = own.find(".c_") != own.npos && own.ends_with(".weight");
      return tensor && matrix ? turned(*tensor) : tensor;
    }
    const std::string layer = own.substr(0, fused), role = own.substr(fused + 8);
    std::vector<std::byte> all;
    std::optional<StoredTensor> part;
    for (const char* which : {".q.", ".k.", ".v."}) {
      part = stored(layer + which + role);
      if (!part) return part;
      all.insert(all.end(), part->bytes.begin(), part->bytes.end());
    }
    Shape shape = part->shape;
    shape[0] *= 3;
    const StoredTensor joined = with(*part, shape, std::move(all));
    return role == "weight" ? turned(joined) : joined;
  }

  /// The vector of the one type of tokens lies in the positions, which begin behind the padding's.
  std::optional<StoredTensor> bert(const std::string& name) const {
    const bool types = name == "embeddings.token_type_embeddings.weight";
    if (!types && name != "embeddings.position_embeddings.weight") return std::nullopt;
    const auto rows = stored("embeddings.position_embeddings.weight");
    if (!rows) return rows;
    const int64_t width = rows->shape[1], count = types
                                                      ? config_.integer_or("type_vocab_size", 2, 0)
                                                      : config_.integer("max_position_embeddings");
    const size_t bytes = static_cast<size_t>(checked_mul(checked_mul(count, width, name), 4, name));
    std::vector<std::byte> all(bytes);
    if (!types) {
      if (bytes < rows->bytes.size()) return rows;
      std::memcpy(all.data() + bytes - rows->bytes.size(), rows->bytes.data(), rows->bytes.size());
    }
    return with(*rows, {count, width}, std::move(all));
  }

  /// "<folder>.experts.<i>.<part>.weight" of "<folder>.experts.<part>.weight"
  std::optional<StoredTensor> expert(const std::string& name) const {
    constexpr std::string_view kExperts = ".experts.";
    const size_t at = name.find(kExperts);
    if (at == name.npos) return std::nullopt;
    const size_t number = at + kExperts.size(), dot = name.find('.', number);
    const std::string digits = name.substr(number, dot - number);
    if (dot == name.npos || digits.empty() || digits.size() > 6 ||
        digits.find_first_not_of("0123456789") != digits.npos)
      return std::nullopt;
    const auto all = stored(name.substr(0, number) + name.substr(dot + 1));
    const int64_t index = std::stoll(digits);
    if (!all || all->shape.size() != 3 || index >= all->shape[0]) return std::nullopt;
    const size_t each = all->bytes.size() / static_cast<size_t>(all->shape[0]);
    StoredTensor one = *all;
    one.shape = {all->shape[1], all->shape[2]};
    one.bytes = all->bytes.subspan(static_cast<size_t>(index) * each, each);
    const bool down = name.ends_with(".w2.weight") || name.ends_with(".down_proj.weight");
    return down ? turned(one) : one;
  }

  const Bundle& bundle_;
  const hf::Config& config_;
  mutable std::map<std::string, StoredTensor> given_;
};

/// The options with which the import was made, as far as the graph depends on them.
ImportOptions options_of(const Bundle& bundle) {
  ImportOptions options;
  const Graph& graph = bundle.graph();
  options.block = graph.inputs[0].shape[0];
  options.context = options.block;
  if (bundle.task().kind == "classify") return options;
  int64_t window_free = 0;
  for (const Node& node : graph.nodes) {
    if (node.op == "attention") {
      window_free = std::max(window_free, attr_int(node.attrs, "cache", 0));
      options.cache_type = attr_string(node.attrs, "cache_type", "f32");
    }
    if (node.op == "pool_rows") options.pooling = attr_string(node.attrs, "kind", "mean");
    if (node.op == "l2_normalize") options.normalize = true;
  }
  if (window_free > 0) options.context = window_free;
  return options;
}

/// Throws naming the first node that is another, or says that tensors are.
void require_same(const Graph& made, const Bundle& bundle, const std::string& architecture) {
  const auto text = [](const Node& node) { return graph_to_json({{}, {}, {node}, {}}); };
  const Graph& found = bundle.graph();
  for (size_t i = 0; i < found.nodes.size(); ++i)
    if (i >= made.nodes.size() || text(made.nodes[i]) != text(found.nodes[i]))
      fail(Code::unsupported,
           "{}: node '{}' ({}) is not as a {} has it; only what is still as it was imported can go "
           "back",
           bundle.path(), printable(found.nodes[i].path), found.nodes[i].op, architecture);
  if (made.nodes.size() != found.nodes.size() || made.outputs != found.outputs)
    fail(Code::unsupported, "{}: it ends before a {} does", bundle.path(), architecture);
  for (const auto& [name, spec] : found.tensors) {
    const auto it = made.tensors.find(name);
    if (it == made.tensors.end() || it->second.shape != spec.shape ||
        it->second.format != spec.format || (spec.xxh64 && it->second.xxh64 != spec.xxh64))
      fail(Code::unsupported, "{}: tensor '{}' is not as a {} has it", bundle.path(),
           printable(name), architecture);
  }
}

}  // namespace

Replayed replay_import(const Bundle& bundle, const Origin& origin) {
  Replayed result;
  result.config = *origin.config;
  result.architecture = origin.architecture;
  // The heads for masked words were not imported.
  for (const auto& [with, without] : {std::pair{"BertForMaskedLM", "BertModel"},
                                      {"RobertaForMaskedLM", "RobertaModel"},
                                      {"XLMRobertaForMaskedLM", "XLMRobertaModel"}})
    if (result.architecture == with) result.architecture = without;
  result.config["architectures"] = Json::array({result.architecture});
  const hf::Config config(result.config, bundle.path() + ": config.json of its import");
  const ImportOptions options = options_of(bundle);
  std::optional<hf::Pooling> pooling;
  if (!options.pooling.empty()) pooling = hf::Pooling{options.pooling, options.normalize, 0};
  auto owned = std::make_unique<BundleSource>(bundle, config);
  const BundleSource& source = *owned;
  hf::Weights weights(std::move(owned), options);
  hf::Model model{config, weights, options, pooling, result.architecture, Builder(), {}};
  if (origin.preprocessor)
    model.preprocessor.emplace(*origin.preprocessor,
                               bundle.path() + ": preprocessor_config.json of its import");
  hf::build_family(model);
  rename_to_brick_paths(model.builder);
  require_same(model.builder.graph(), bundle, result.architecture);
  result.tensors = source.given();
  result.pooling = pooling;
  result.context = options.context;
  return result;
}

}  // namespace sluice::bundle
