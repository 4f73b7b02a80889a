// Norms over the last dimension folded into the layers that read them; the residual stream turned.
#include "sluice/lab/pass/stream.h"

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/norms.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/brick/transformer.h"

namespace sluice::lab {
namespace {

/// A layer in place of `old` with these values (bias undefined: none).
BrickPtr with_values(const Linear& old, const at::Tensor& weight, const at::Tensor& bias) {
  const WithoutInit without_init;
  auto layer = std::make_shared<Linear>(weight.size(1), weight.size(0), bias.defined());
  layer->weight.set_data(weight.to(old.weight.scalar_type()));
  layer->weight.set_requires_grad(old.weight.requires_grad());
  if (bias.defined()) {
    layer->bias.set_data(bias.to(old.weight.scalar_type()));
    layer->bias.set_requires_grad(old.weight.requires_grad());
  }
  layer->train(old.is_training());
  return layer;
}

Slot& slot_at(Brick& owner, const std::string& path) {
  const size_t dot = path.find('.');
  Slot& slot = owner.slot(path.substr(0, dot));
  return dot == std::string::npos ? slot : slot_at(*slot, path.substr(dot + 1));
}

struct Affine {
  at::Tensor scale, shift;  ///< undefined when absent
  BrickPtr plain;           ///< the norm without them
};

/// Of a norm that has something to fold; `plain` is null otherwise.
Affine affine_of(const Brick& norm) {
  Affine result;
  if (const auto* rms = dynamic_cast<const RmsNorm*>(&norm)) {
    if (!rms->weight.defined()) return result;
    result = {rms->weight, {}, std::make_shared<RmsNorm>(rms->width(), rms->eps(), false)};
  } else if (const auto* layer = dynamic_cast<const LayerNorm*>(&norm)) {
    if (!layer->weight.defined() && !layer->bias.defined()) return result;
    result = {layer->weight, layer->bias,
              std::make_shared<LayerNorm>(layer->width(), layer->eps(), false, false)};
  }
  return result;
}

BrickPtr reading(const Linear& layer, const Affine& norm) {
  at::Tensor weight = in_doubles(layer.weight), bias;
  if (layer.bias.defined()) bias = in_doubles(layer.bias);
  if (norm.shift.defined()) {
    const at::Tensor added = at::mv(weight, in_doubles(norm.shift));
    bias = bias.defined() ? bias + added : added;
  }
  if (norm.scale.defined()) weight = weight * in_doubles(norm.scale);
  return with_values(layer, weight, bias);
}

}  // namespace

Json fold_norm_readers(Model& model) {
  Json paths = Json::array();
  for (const BrickRef& ref : all_bricks(model)) {
    for (const NormReaders& entry : ref.brick->norm_readers()) {
      Slot& norm = ref.brick->slot(entry.norm);
      const Affine affine = affine_of(*norm);
      bool linear = affine.plain != nullptr && !entry.readers.empty();
      for (const std::string& path : entry.readers) {
        const Slot& slot = slot_at(*ref.brick, path);
        linear = linear && dynamic_cast<const Linear*>(slot.get().get()) != nullptr;
      }
      if (!linear) continue;
      for (const std::string& path : entry.readers) {
        Slot& slot = slot_at(*ref.brick, path);
        slot.exchange(reading(slot.as<Linear>(), affine));
      }
      affine.plain->train(norm->is_training());
      norm.exchange(affine.plain);
      paths.push_back(join_path(ref.path, entry.norm));
    }
  }
  return paths;
}

namespace {

const std::string kRotate = "pass rotate-residual";

/// [width, width], orthogonal, from normal numbers (Mezzadri 2007), in double.
at::Tensor random_rotation(int64_t width, uint64_t seed) {
  at::Tensor numbers = at::empty({width, width}, at::kDouble);
  fill_normal(numbers, 1.0, seed);
  const auto [q, r] = at::linalg_qr(numbers);
  return q * at::sign(at::diagonal(r));
}

void require_plain_norm(const Slot& slot, const std::string& path) {
  if (slot.empty()) return;
  const auto* norm = dynamic_cast<const RmsNorm*>(slot.get().get());
  if (norm == nullptr || norm->weight.defined()) {
    fail(Code::unsupported,
         "{}: {} holds a {}{}; a turned stream passes only RMS norms whose scales fold into linear "
         "layers",
         kRotate, path, (*slot).kind(), norm == nullptr ? "" : " with a scale");
  }
}

/// Turns what a table or layer reads from the stream (W Q) or writes to it (Q^T W, Q^T b).
void turn(Slot& slot, const std::string& path, const at::Tensor& q, bool writes) {
  if (const auto* table = dynamic_cast<const Embedding*>(slot.get().get())) {
    const WithoutInit without_init;
    auto turned = std::make_shared<Embedding>(table->rows(), table->width());
    turned->weight.set_data(
        at::matmul(in_doubles(table->weight), q).to(table->weight.scalar_type()));
    turned->weight.set_requires_grad(table->weight.requires_grad());
    turned->train(table->is_training());
    slot.exchange(std::move(turned));
    return;
  }
  const auto* layer = dynamic_cast<const Linear*>(slot.get().get());
  if (layer == nullptr) {
    fail(Code::unsupported, "{}: {} holds a {}; expected an ordinary linear layer", kRotate, path,
         (*slot).kind());
  }
  const at::Tensor weight = in_doubles(layer->weight);
  at::Tensor bias;
  if (layer->bias.defined()) bias = in_doubles(layer->bias);
  if (writes && bias.defined()) bias = at::matmul(bias, q);
  slot.exchange(
      with_values(*layer, writes ? at::matmul(q.t(), weight) : at::matmul(weight, q), bias));
}

/// Gives a tied decoder whose last norm has a scale a head of its own, with the scale in it.
bool untie(Decoder& decoder) {
  Slot& norm = decoder.slot("norm");
  if (!decoder.tied() || norm.empty()) return false;
  const auto* rms = dynamic_cast<const RmsNorm*>(norm.get().get());
  const auto* table = dynamic_cast<const Embedding*>(decoder.slot("embed").get().get());
  if (rms == nullptr || table == nullptr || !rms->weight.defined()) return false;
  const WithoutInit without_init;
  const Linear like(table->width(), table->rows(), false);
  like.weight.set_data(table->weight.detach());
  decoder.slot("head").exchange(
      with_values(like, in_doubles(table->weight) * in_doubles(rms->weight), {}));
  auto plain = std::make_shared<RmsNorm>(rms->width(), rms->eps(), false);
  plain->train(rms->is_training());
  norm.exchange(std::move(plain));
  return true;
}

/// A branch of the decoder that reads the stream and adds to it.
struct Branch {
  std::string path;  ///< "blocks.0.attn"
  std::string name;  ///< "attn"
  TransformerBlock* block;
  Slot* body;

  /// Null or empty: nothing happens to the stream beside the branch.
  const Slot* turn() const {
    const std::string slot = name + "_turn";
    return block->has_slot(slot) ? &block->slot(slot) : nullptr;
  }
  bool turns() const { return turn() != nullptr && !turn()->empty(); }
};

std::vector<Branch> branches_of(Decoder& decoder) {
  std::vector<Branch> result;
  for (const SlotRef& ref : walk(decoder)) {
    auto* block = dynamic_cast<TransformerBlock*>(ref.slot->get().get());
    if (block == nullptr) continue;
    if (block->has_slot("token_gate") && decides_by_input(block->token_gate())) {
      fail(Code::unsupported, "{}: {}.token_gate reads the stream; freeze-gates first", kRotate,
           ref.path);
    }
    for (const char* name : {"attn", "ffn"}) {
      Slot& body = block->slot(name);
      const std::string path = join_path(ref.path, name);
      const Branch branch{path, name, block, &body};
      if (body.empty()) {
        if (!branch.turns()) continue;
        fail(Code::unsupported, "{}: {} is empty, but its stream is turned", kRotate, path);
      }
      if (block->post_norm() || ((*body).kind() != "attention" && (*body).kind() != "ffn")) {
        fail(Code::unsupported, "{}: {} is a {}{}", kRotate, path, (*body).kind(),
             block->post_norm() ? " with its norm behind it" : "");
      }
      if (const Slot* gate = branch_gate(*body)) {
        fail(Code::unsupported, "{}: {}.{} holds a {} that reads the stream; freeze-gates first",
             kRotate, path, gate->name(), (**gate).kind());
      }
      require_plain_norm(block->slot(std::string(name) + "_norm"), path + "_norm");
      result.push_back(branch);
    }
  }
  return result;
}

/// Right singular vectors [D, D] of the matrix whose columns are to become orthogonal: k of
/// attention, gate (up where there is none) of a feed-forward network.
at::Tensor orthogonalizing(const Branch& branch) {
  const Brick& body = **branch.body;
  const char* name = "up";
  if (body.has_slot("k")) name = "k";
  if (body.has_slot("gate") && !body.slot("gate").empty()) name = "gate";
  const auto* layer = dynamic_cast<const Linear*>(body.slot(name).get().get());
  if (layer == nullptr) {
    fail(Code::unsupported, "{}: {}.{} holds a {}; expected an ordinary linear layer", kRotate,
         branch.path, name, body.slot(name)->kind());
  }
  return std::get<2>(at::linalg_svd(in_doubles(layer->weight), /*full_matrices=*/true))
      .t()
      .contiguous();
}

/// What the stream beside a branch is multiplied with between the bases `from` and `to`.
void turn_beside(const Branch& branch, const at::Tensor& from, const at::Tensor& to) {
  if (!branch.turns() && from.is_same(to)) return;
  Slot& slot = branch.block->turn(branch.name);
  if (slot.empty()) {
    // x' = x from, so that x to = x' from^T to.
    const Brick& body = **branch.body;
    const auto& like = body.slot(body.has_slot("o") ? "o" : "down").as<Linear>();
    slot.exchange(with_values(like, at::matmul(to.t(), from), {}));
    return;
  }
  const auto& old = slot.as<Linear>();
  slot.exchange(with_values(old, at::matmul(at::matmul(to.t(), in_doubles(old.weight)), from), {}));
}

}  // namespace

Json rotate_residual(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"seed", "by"}, kRotate);
  const auto seed = static_cast<uint64_t>(json_get_or<int64_t>(input.options, "seed", 0, kRotate));
  const auto by = json_get_or<std::string>(input.options, "by", "random", kRotate);
  if (by != "random" && by != "columns") {
    fail(Code::config, "{}: by: expected random or columns, found '{}'", kRotate, by.substr(0, 60));
  }
  // The exits of another kind of decoder read the stream where they are.
  auto* decoder =
      model.root->kind() == "decoder" ? dynamic_cast<Decoder*>(model.root.get()) : nullptr;
  if (decoder == nullptr) {
    fail(Code::unsupported,
         "{}: the network is a {}; its stream is seen from outside only in a "
         "decoder through a head",
         kRotate, model.root->kind());
  }
  const Json folded = fold_norm_readers(model);
  const bool untied = untie(*decoder);
  require_plain_norm(decoder->slot("norm"), "norm");
  require_plain_norm(decoder->slot("embed_norm"), "embed_norm");
  const std::vector<Branch> branches = branches_of(*decoder);
  // The basis that each branch reads the stream in; behind the last one nothing changes any more.
  std::vector<at::Tensor> bases;
  if (by == "random") {
    const at::Tensor q = random_rotation(decoder->slot("embed").as<TokenTable>().width(),
                                         derive_seed(seed, "rotate"))
                             .to(device_of(*decoder));
    bases.assign(branches.size() + 1, q);
  } else {
    if (branches.empty()) fail(Code::unsupported, "{}: no block reads the stream", kRotate);
    for (const Branch& branch : branches) bases.push_back(orthogonalizing(branch));
    bases.push_back(bases.back());
  }
  for (const char* name : {"embed", "positions", "head"}) {
    Slot& slot = decoder->slot(name);
    const bool last = std::string_view(name) == "head";
    if (!slot.empty()) turn(slot, name, last ? bases.back() : bases.front(), false);
  }
  int64_t turns = 0;
  for (size_t i = 0; i < branches.size(); ++i) {
    const Branch& branch = branches[i];
    const Brick& body = **branch.body;
    for (const char* layer : {"q", "k", "v", "gate", "up", "o", "down"}) {
      if (!body.has_slot(layer) || body.slot(layer).empty()) continue;
      const bool writes = std::string_view(layer) == "o" || std::string_view(layer) == "down";
      turn(body.slot(layer), join_path(branch.path, layer), writes ? bases[i + 1] : bases[i],
           writes);
    }
    turn_beside(branch, bases[i], bases[i + 1]);
    turns += branch.turns() ? 1 : 0;
  }
  const int64_t width = bases.front().size(0);
  return {{"by", by},         {"width", width}, {"folded", folded},
          {"untied", untied}, {"turns", turns}, {"turn_macs_per_token", turns * width * width}};
}

}  // namespace sluice::lab
