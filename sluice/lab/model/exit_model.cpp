#include "sluice/lab/model/exit_model.h"

#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"

namespace sluice::lab {
namespace {

constexpr double kInit = 0.02;

}  // namespace

Model with_exits(const Model& decoder, const ExitDecoderOptions& options, uint64_t seed) {
  const auto* root = dynamic_cast<const Decoder*>(decoder.root.get());
  if (root == nullptr) {
    fail(Code::unsupported, "with_exits: expected a decoder, found a {}", decoder.root->kind());
  }
  auto made = std::make_shared<ExitDecoder>(root->context_length(), options);
  for (const auto& slot : root->slots()) {
    if (!slot->empty()) made->slot(slot->name()).exchange(clone(**slot));
  }
  const auto& table = root->slot("embed").as<TokenTable>();
  const int64_t width = table.width(), vocabulary = table.rows();
  const WithoutInit without_init;
  const auto linear = [&](int64_t outputs) {
    return std::make_shared<Linear>(width, outputs, /*bias=*/false);
  };
  const at::NoGradGuard no_grad;
  if (root->tied()) {
    auto head = linear(vocabulary);
    head->weight.copy_(table.values());
    made->slot("head").exchange(std::move(head));
  }
  auto controller = linear(kExitActions);
  fill_normal(controller->weight, kInit, derive_seed(seed, "controller"));
  made->slot("controller").exchange(std::move(controller));
  auto heads = std::make_shared<Sequential>();
  for (int64_t i = 0; i + 1 < made->layers(); ++i) {
    auto head = linear(vocabulary);
    fill_normal(head->weight, kInit, derive_seed(seed, "exit", static_cast<uint64_t>(i)));
    heads->append(fmt::format("{}", i), std::move(head));
  }
  made->slot("exits").exchange(std::move(heads));
  Model model = decoder;
  model.root = made;
  made->check_slots();
  made->to(device_of(*decoder.root));
  made->train(decoder.root->is_training());
  made->output_shape(model.input_shape);
  model.sizes = {{.name = "exits", .quality = {}}, {.name = "whole", .quality = {}}};
  model.add_step({{"step", "with-exits"}, {"seed", seed}});
  return model;
}

}  // namespace sluice::lab
