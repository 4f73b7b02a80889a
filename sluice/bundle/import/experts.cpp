// Feed-forwards of which each token takes a few: Mixtral's and Qwen's.
#include "sluice/base/error.h"
#include "sluice/bundle/import/family.h"

namespace sluice::bundle::hf {

Experts read_experts(const Config& config, const std::string& architecture) {
  constexpr int64_t kMost = 65536;
  Experts e{};
  if (architecture == "MixtralForCausalLM") {
    e = {config.integer("num_local_experts", 1, kMost),
         config.integer_or("num_experts_per_tok", 2),
         config.integer("intermediate_size"),
         true,
         "block_sparse_moe.gate",
         "block_sparse_moe.experts",
         "w1",
         "w3",
         "w2"};
  } else {
    e = {config.integer("num_experts", 1, kMost),
         config.integer("num_experts_per_tok"),
         config.integer("moe_intermediate_size"),
         config.flag_or("norm_topk_prob", false),
         "mlp.gate",
         "mlp.experts",
         "gate_proj",
         "up_proj",
         "down_proj"};
    if (architecture == "Qwen2MoeForCausalLM")
      e.shared_width = config.integer("shared_expert_intermediate_size");
  }
  if (e.chosen > e.count)
    fail(Code::config, "{}: expected at most the {} experts that there are, found {}",
         config.field("num_experts_per_tok"), e.count, e.chosen);
  return e;
}

Value add_experts(Model& m, const Experts& e, const std::string& path, const Value& z) {
  Builder& b = m.builder;
  const int64_t width = z.shape.back();
  const std::string folder = path + "." + e.folder;
  const auto stack = [&](const char* part, const Shape& shape, bool turn) {
    std::vector<std::string> names;
    for (int64_t i = 0; i < e.count; ++i)
      names.push_back(fmt::format("{}.{}.{}.weight", folder, i, part));
    return m.weights.stacked(b, names, shape, turn, folder + "." + part + ".weight");
  };
  const Value logits = m.linear(path + "." + e.router, z, e.count, false);
  const std::string act = m.activation_kind("hidden_act", "silu");
  const std::string up_weight = stack(e.up, {e.width, width}, false);
  Attributes attrs = m.rounding(up_weight);
  attrs["top_k"] = e.chosen;
  attrs["activation"] = act;
  attrs["normalize"] = std::string(e.normalize ? "after" : "before");
  const Value chosen = b.node("experts", folder, {z, logits}, attrs,
                              {{"up", up_weight},
                               {"gate", stack(e.gate, {e.width, width}, false)},
                               // down has a row for each neuron
                               {"down", stack(e.down, {width, e.width}, true)}});
  if (e.shared_width == 0) return chosen;
  const std::string shared = path + ".mlp.shared_expert";
  const Value gate =
      m.activation(shared + ".act", m.linear(shared + ".gate_proj", z, e.shared_width, false),
                   "hidden_act", "silu");
  const Value up = m.linear(shared + ".up_proj", z, e.shared_width, false);
  const Value down =
      m.linear(shared + ".down_proj", b.node("mul", shared + ".mul", {gate, up}), width, false);
  const Value share =
      b.node("activation", shared + "_gate.sigmoid", {m.linear(shared + "_gate", z, 1, false)},
             {{"kind", std::string("sigmoid")}});
  return m.add(path + ".mlp.add_shared", chosen,
               b.node("mul", shared + "_gate.mul", {down, share}));
}

}  // namespace sluice::bundle::hf
