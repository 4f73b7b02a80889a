// fold-linear: two layers with nothing but faded activations between them are one.
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/fading.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

const std::string kFoldLinear = "pass fold-linear";

template <class T>
BrickPtr with_values(std::shared_ptr<T> layer, const T& like, const at::Tensor& weight,
                     const at::Tensor& bias) {
  SLUICE_CHECK(layer->weight.sizes() == weight.sizes());
  // A copy: strides of dimensions of size 1, which decide how LibTorch convolves, are those of a
  // fresh tensor then, as in a bundle that is read.
  layer->weight.set_data(weight.to(like.weight.scalar_type()).clone(at::MemoryFormat::Contiguous));
  layer->weight.set_requires_grad(like.weight.requires_grad());
  if (layer->bias.defined()) {
    layer->bias.set_data(bias.to(like.weight.scalar_type()).contiguous());
    layer->bias.set_requires_grad(like.weight.requires_grad());
  }
  layer->train(like.is_training());
  return layer;
}

/// W2 (W1 x + b1) + b2, with `sum` the sums of W2 over all but its outputs and middle channels.
at::Tensor composed_bias(const at::Tensor& first, const at::Tensor& second, const at::Tensor& sum) {
  at::Tensor bias;
  if (first.defined()) bias = at::matmul(sum, in_doubles(first));
  if (second.defined()) bias = bias.defined() ? bias + in_doubles(second) : in_doubles(second);
  return bias;
}

BrickPtr compose(const Linear& first, const Linear& second) {
  const WithoutInit without_init;
  const bool bias = first.bias.defined() || second.bias.defined();
  auto result = std::make_shared<Linear>(first.inputs(), second.outputs(), bias);
  const at::Tensor outer = in_doubles(second.weight);
  return with_values(std::move(result), first, at::matmul(outer, in_doubles(first.weight)),
                     composed_bias(first.bias, second.bias, outer));
}

bool pointwise(const Conv2dOptions& options) {
  return options.kernel == 1 && options.stride == 1 && options.padding == 0;
}

/// Why two convolutions are not one; "" when they are.
std::string obstacle(const Conv2d& first, const Conv2d& second) {
  const Conv2dOptions &a = first.options(), &b = second.options();
  if (a.groups != 1 || b.groups != 1) return "it has groups";
  if (pointwise(b)) return "";
  if (!pointwise(a)) return "none of the two kernels is 1 x 1 with stride 1";
  if (b.padding > 0 && first.bias.defined()) {
    return "the second one pads with zeros where the first one's bias would be";
  }
  return "";
}

BrickPtr compose(const Conv2d& first, const Conv2d& second) {
  const WithoutInit without_init;
  const Conv2dOptions &a = first.options(), &b = second.options();
  Conv2dOptions options = pointwise(b) ? a : b;
  options.inputs = a.inputs;
  options.outputs = b.outputs;
  options.bias = first.bias.defined() || second.bias.defined();
  const at::Tensor inner = in_doubles(first.weight), outer = in_doubles(second.weight);
  const at::Tensor weight = pointwise(b) ? at::einsum("ot,tikl->oikl", {outer.flatten(1), inner})
                                         : at::einsum("otkl,ti->oikl", {outer, inner.flatten(1)});
  return with_values(std::make_shared<Conv2d>(options), first, weight,
                     composed_bias(first.bias, second.bias, outer.sum({2, 3})));
}

int64_t elements(const Brick& brick) {
  return brick.named_parameters(/*recurse=*/false)["weight"].numel();
}

struct Folding {
  bool any = false;  ///< activations that have not faded are taken for faded
  std::string slots;
  Json folded = Json::array(), left = Json::object(), activations = Json::array();
};

/// Folds the next pair of `owner`; false when there is none.
bool fold_next(Brick& owner, const std::string& path, Folding& folding) {
  const auto& slots = owner.slots();
  for (size_t i = 0; i < slots.size(); ++i) {
    const std::string first_path = join_path(path, slots[i]->name());
    const auto* linear = dynamic_cast<const Linear*>(slots[i]->get().get());
    const auto* conv = dynamic_cast<const Conv2d*>(slots[i]->get().get());
    if ((linear == nullptr && conv == nullptr) || !path_matches(folding.slots, first_path))
      continue;
    size_t j = i + 1;
    std::vector<Slot*> between;
    std::string reason;
    for (; j < slots.size(); ++j) {
      const Brick& brick = **slots[j];
      if (const auto* fading = dynamic_cast<const FadingActivation*>(&brick)) {
        if (!folding.any && !fading->faded()) {
          reason = fmt::format("{} has faded by {:g} only", slots[j]->name(), fading->value());
        }
        between.push_back(slots[j].get());
      } else if (dynamic_cast<const Identity*>(&brick) == nullptr) {
        break;
      }
    }
    if (j == slots.size()) continue;
    const auto* next_linear = dynamic_cast<const Linear*>(slots[j]->get().get());
    const auto* next_conv = dynamic_cast<const Conv2d*>(slots[j]->get().get());
    if (dynamic_cast<const BatchNorm*>(slots[j]->get().get()) != nullptr) {
      folding.left[first_path] =
          fmt::format("{} is a batch norm; run fold-norm first", slots[j]->name());
      continue;
    }
    const bool linears = linear != nullptr && next_linear != nullptr;
    if (!linears && (conv == nullptr || next_conv == nullptr)) continue;
    if (reason.empty() && !linears) reason = obstacle(*conv, *next_conv);
    BrickPtr composed;
    if (reason.empty()) {
      composed = linears ? compose(*linear, *next_linear) : compose(*conv, *next_conv);
      if (elements(*composed) > elements(**slots[i]) + elements(**slots[j])) {
        reason = fmt::format("one layer would have {} weights, the two have {}",
                             elements(*composed), elements(**slots[i]) + elements(**slots[j]));
      }
    }
    if (!reason.empty()) {
      folding.left[first_path] = reason;
      continue;
    }
    folding.left.erase(first_path);
    folding.folded.push_back(join_path(path, slots[j]->name()));
    slots[i]->exchange(composed);
    for (Slot* slot : between) {
      folding.activations.push_back(join_path(path, slot->name()));
      slot->exchange(placed_like(std::make_shared<Identity>(), *composed));
    }
    slots[j]->exchange(placed_like(std::make_shared<Identity>(), *composed));
    return true;
  }
  return false;
}

}  // namespace

Json fold_linear(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"slots", "fading"}, kFoldLinear);
  Folding folding;
  folding.slots = json_get_or<std::string>(input.options, "slots", "**", kFoldLinear);
  const auto fading = json_get_or<std::string>(input.options, "fading", "faded", kFoldLinear);
  if (fading != "faded" && fading != "any") {
    fail(Code::config, "{}: fading: expected 'faded' or 'any', found '{}'", kFoldLinear,
         fading.substr(0, 60));
  }
  folding.any = fading == "any";
  if (folding.slots != "**") walk(*model.root, folding.slots);  // throws when nothing matches
  for (const BrickRef& ref : all_bricks(model)) {
    if (dynamic_cast<const Sequential*>(ref.brick.get()) == nullptr) continue;
    while (fold_next(*ref.brick, ref.path, folding)) {
    }
  }
  for (const SlotRef& ref : walk(*model.root)) {
    const auto* activation = dynamic_cast<const FadingActivation*>(ref.slot->get().get());
    if (activation == nullptr || !activation->faded()) continue;
    folding.activations.push_back(ref.path);
    const BrickPtr old = ref.slot->get();
    ref.slot->exchange(placed_like(std::make_shared<Identity>(), *old));
  }
  return {{"folded", std::move(folding.folded)},
          {"activations", std::move(folding.activations)},
          {"left", std::move(folding.left)}};
}

}  // namespace sluice::lab
