#include "sluice/bundle/import/bricks.h"

#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"

namespace sluice::bundle {
namespace {

using Names = std::map<std::string, std::string>;

/// Inside a layer: Llama and relatives, BERT and relatives, GPT-2. None uses a name of another for
/// something else.
const Names& inner_names() {
  static const Names names = {
      {"input_layernorm", "attn_norm"},
      {"self_attn.q_proj", "attn.q"},
      {"self_attn.k_proj", "attn.k"},
      {"self_attn.v_proj", "attn.v"},
      {"self_attn.o_proj", "attn.o"},
      {"self_attn.q_norm", "attn.q_norm"},
      {"self_attn.k_norm", "attn.k_norm"},
      {"self_attn.q_rope", "attn.q_rope"},
      {"self_attn.k_rope", "attn.k_rope"},
      {"self_attn", "attn.attention"},
      {"add_attention", "add_attn"},
      {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn.gate"},
      {"mlp.up_proj", "ffn.up"},
      {"mlp.down_proj", "ffn.down"},
      {"mlp.act", "ffn.act"},
      {"mlp.mul", "ffn.mul"},
      {"add_mlp", "add_ffn"},
      {"attention.self.query", "attn.q"},
      {"attention.self.key", "attn.k"},
      {"attention.self.value", "attn.v"},
      {"attention.self", "attn.attention"},
      {"attention.output.dense", "attn.o"},
      {"attention.output.add", "add_attn"},
      {"attention.output.LayerNorm", "attn_norm"},
      {"intermediate.dense", "ffn.up"},
      {"intermediate.act", "ffn.act"},
      {"output.dense", "ffn.down"},
      {"output.add", "add_ffn"},
      {"output.LayerNorm", "ffn_norm"},
      {"ln_1", "attn_norm"},
      {"attn", "attn.attention"},
      {"attn.c_proj", "attn.o"},
      {"ln_2", "ffn_norm"},
      {"mlp.c_fc", "ffn.up"},
      {"mlp.c_proj", "ffn.down"},
  };
  return names;
}

const Names& outer_names() {
  static const Names names = {
      {"model.embed_tokens", "embed"},
      {"model.norm", "norm"},
      {"lm_head", "head"},
      {"embeddings.word_embeddings", "embed"},
      {"embeddings.position_embeddings", "positions"},
      {"positions", "positions.index"},
      {"embeddings.add", "add_positions"},
      {"embeddings.LayerNorm", "embed_norm"},
      {"wte", "embed"},
      {"wpe", "positions"},
      {"ln_f", "norm"},
  };
  return names;
}

Json to_json(const Attribute& attribute) {
  return std::visit([](const auto& value) { return Json(value); }, attribute);
}

/// Reads the graph node by node; every node that a brick stands for is ticked off.
class Reader {
 public:
  Reader(const Builder& builder, int64_t context)
      : builder_(builder), graph_(builder.graph()), context_(context) {
    for (const Node& node : graph_.nodes) nodes_[node.path] = &node;
  }

  Json model() {
    if (!has("embed")) return nullptr;
    Json root = {{"kind", nullptr}, {"attributes", {{"context", context_}}}, {"slots", {}}};
    const bool pooled = has("pooling");
    Json& slots = root["slots"];
    slots["embed"] = table("embed");
    slots["positions"] = nullptr;
    if (has("positions")) {
      slots["positions"] = table("positions");
      tick("positions.index");
      tick("add_positions");
    }
    slots["embed_norm"] = norm("embed_norm");
    slots["blocks"] = {{"kind", "sequential"}, {"attributes", Json::object()}};
    for (int64_t i = 0; has("blocks." + std::to_string(i) + ".attn.q"); ++i)
      slots["blocks"]["slots"][std::to_string(i)] = block("blocks." + std::to_string(i));
    slots["norm"] = norm("norm");
    if (pooled) {
      root["kind"] = "text_encoder";
      root["attributes"]["pooling"] = attr_string(tick("pooling")->attrs, "kind", "mean");
      root["attributes"]["normalize"] = tick("normalize") != nullptr;
    } else {
      root["kind"] = "decoder";
      slots["head"] = nullptr;
      const Node* head = find("head");
      if (head && head->tensors.at("weight") != nodes_.at("embed")->tensors.at("weight"))
        slots["head"] = linear("head");
      tick("head");
    }
    if (!fits_ || ticked_.size() != graph_.nodes.size()) return nullptr;
    return {{"brick", root}, {"input_shape", graph_.inputs[0].shape}};
  }

 private:
  const Node* find(const std::string& path) const {
    const auto it = nodes_.find(path);
    return it == nodes_.end() ? nullptr : it->second;
  }
  bool has(const std::string& path) const { return find(path) != nullptr; }
  /// A node that may be missing.
  const Node* tick(const std::string& path) {
    const Node* node = find(path);
    if (node) ticked_.insert(path);
    return node;
  }
  /// One that must be there, of that operator.
  const Node* need(const std::string& path, const char* op) {
    const Node* node = tick(path);
    if (node && node->op == op) return node;
    fits_ = false;
    return nullptr;
  }
  const TensorSpec& weight(const Node& node) const {
    return graph_.tensors.at(node.tensors.at("weight"));
  }

  Json linear(const std::string& path) {
    const Node* node = need(path, "linear");
    if (!node) return nullptr;
    const TensorSpec& spec = weight(*node);
    Json attributes = {{"inputs", spec.shape[1]},
                       {"outputs", spec.shape[0]},
                       {"bias", node->tensors.count("bias") > 0}};
    if (spec.format == "f32") return {{"kind", "linear"}, {"attributes", attributes}};
    attributes["format"] = spec.format;
    attributes["activations"] = attr_string(node->attrs, "activations", "f32");
    return {{"kind", "quant_linear"}, {"attributes", attributes}};
  }

  Json table(const std::string& path) {
    const Node* node = need(path, "embedding");
    if (!node) return nullptr;
    const TensorSpec& spec = weight(*node);
    Json attributes = {{"rows", spec.shape[0]}, {"width", spec.shape[1]}};
    if (spec.format == "f32") return {{"kind", "embedding"}, {"attributes", attributes}};
    attributes["format"] = spec.format;
    return {{"kind", "quant_embedding"}, {"attributes", attributes}};
  }

  Json norm(const std::string& path) {
    const Node* node = tick(path);
    if (!node) return nullptr;
    if ((node->op != "rms_norm" && node->op != "layer_norm") || !node->tensors.count("weight")) {
      fits_ = false;
      return nullptr;
    }
    Json attributes = {{"width", weight(*node).shape[0]},
                       {"eps", attr_double(node->attrs, "eps", 1e-5)},
                       {"weight", true}};
    if (node->op == "layer_norm") attributes["bias"] = node->tensors.count("bias") > 0;
    return {{"kind", node->op}, {"attributes", attributes}};
  }

  Json rope(const Node& node, int64_t head_dim) const {
    Json json = {{"dims", attr_int(node.attrs, "dims", head_dim)},
                 {"base", attr_double(node.attrs, "base", 10000)}};
    for (const char* name : {"scale", "layout"})
      if (node.attrs.count(name)) json[name] = to_json(node.attrs.at(name));
    if (node.tensors.count("factors")) {
      const auto bytes = builder_.stored(node.tensors.at("factors"));
      std::vector<float> factors(bytes.size() / sizeof(float));
      std::memcpy(factors.data(), bytes.data(), bytes.size());
      json["factors"] = std::vector<double>(factors.begin(), factors.end());
    }
    return json;
  }

  Json attention(const std::string& path) {
    const Node* node = need(path + ".attention", "attention");
    Json slots = Json::object();
    for (const char* name : {"q", "k", "v", "o"}) slots[name] = linear(path + "." + name);
    if (!node || !fits_) return nullptr;
    const int64_t heads = attr_int(node->attrs, "heads", 1);
    const int64_t head_dim = weight(*nodes_.at(path + ".q")).shape[0] / heads;
    Json attributes = {{"head_dim", head_dim},
                       {"causal", attr_string(node->attrs, "mask", "causal") == "causal"}};
    for (const char* name : {"window", "scale"})
      if (node->attrs.count(name)) attributes[name] = to_json(node->attrs.at(name));
    if (const Node* turned = tick(path + ".q_rope")) attributes["rope"] = rope(*turned, head_dim);
    tick(path + ".k_rope");
    for (const char* name : {"cache", "cache_type"})
      if (node->attrs.count(name)) attributes[name] = to_json(node->attrs.at(name));
    for (const char* name : {"q_norm", "k_norm"}) slots[name] = norm(path + "." + name);
    slots["head_gate"] = nullptr;
    return {{"kind", "attention"}, {"attributes", attributes}, {"slots", slots}};
  }

  Json ffn(const std::string& path) {
    const Node* act = need(path + ".act", "activation");
    Json slots = {{"gate", nullptr}};
    if (has(path + ".gate")) {
      slots["gate"] = linear(path + ".gate");
      need(path + ".mul", "mul");
    }
    slots["up"] = linear(path + ".up");
    slots["down"] = linear(path + ".down");
    slots["neuron_gate"] = nullptr;
    const std::string kind = act ? attr_string(act->attrs, "kind", "") : "";
    return {{"kind", "ffn"}, {"attributes", {{"activation", kind}}}, {"slots", slots}};
  }

  Json block(const std::string& path) {
    const Node* first = find(path + ".attn_norm");
    const bool pre = first && nodes_.at(path + ".attn.q")->inputs[0] == first->output;
    need(path + ".add_attn", "add");
    need(path + ".add_ffn", "add");
    Json slots = Json::object();
    slots["attn_norm"] = norm(path + ".attn_norm");
    slots["attn"] = attention(path + ".attn");
    slots["ffn_norm"] = norm(path + ".ffn_norm");
    slots["ffn"] = ffn(path + ".ffn");
    return {{"kind", "transformer_block"},
            {"attributes", {{"norm", pre ? "pre" : "post"}}},
            {"slots", slots}};
  }

  const Builder& builder_;
  const Graph& graph_;
  int64_t context_;
  std::map<std::string, const Node*> nodes_;
  std::set<std::string> ticked_;
  bool fits_ = true;
};

}  // namespace

std::string brick_path(const std::string& name) {
  for (const char* prefix : {"model.layers.", "encoder.layer.", "h."}) {
    if (!name.starts_with(prefix)) continue;
    const size_t begin = strlen(prefix), dot = name.find('.', begin);
    if (dot == std::string::npos || dot == begin ||
        name.find_first_not_of("0123456789", begin) != dot)
      continue;
    const std::string inner = name.substr(dot + 1);
    const auto it = inner_names().find(inner);
    return "blocks." + name.substr(begin, dot - begin) + "." +
           (it == inner_names().end() ? inner : it->second);
  }
  const auto it = outer_names().find(name);
  return it == outer_names().end() ? name : it->second;
}

std::string brick_tensor(const std::string& name) {
  for (const char* role : {".weight", ".bias"})
    if (name.ends_with(role)) return brick_path(name.substr(0, name.size() - strlen(role))) + role;
  return name;
}

void rename_to_brick_paths(Builder& builder) { builder.rename(brick_path, brick_tensor); }

Json describe_bricks(const Builder& builder, int64_t context) {
  return Reader(builder, context).model();
}

}  // namespace sluice::bundle
