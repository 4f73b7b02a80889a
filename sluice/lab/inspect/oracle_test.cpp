#include "sluice/lab/inspect/oracle.h"

#include "sluice/lab/brick/choice.h"
#include "sluice/lab/brick/ffn.h"
#include "sluice/lab/model/testing.h"

namespace sluice::lab {
namespace oracle_test {

using namespace testing;  // NOLINT: test helpers

Model decoder(int64_t options, bool routed = true, int64_t kv_heads = 2) {
  Model model = make_model("decoder",
                           {{"vocab", 17},
                            {"layers", 3},
                            {"width", 8},
                            {"heads", 4},
                            {"kv_heads", kv_heads},
                            {"ffn", 12},
                            {"context", 16},
                            {"init_std", 0.5}},
                           5);
  uint64_t seed = 40;
  for (const SlotRef& ref : walk(*model.root, "blocks.*.ffn")) {
    auto choice = std::make_shared<Choice>(options);
    choice->option(0).exchange(ref.slot->get());
    choice->option(1).exchange(make_ffn(8, 3, "silu", true, false));
    if (routed) choice->router().exchange(std::make_shared<Linear>(8, options));
    const at::NoGradGuard no_grad;
    for (const char* name : {"option1", "router"}) {
      if (choice->slot(name).empty()) continue;
      for (at::Tensor p : choice->slot(name)->parameters())
        p.copy_(random_tensor(p.sizes(), ++seed));
    }
    ref.slot->exchange(choice);
  }
  model.root->eval();
  return model;
}

struct Text {
  at::Tensor ids, labels;
};

Text some_text(int64_t windows, int64_t tokens) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  const at::Tensor all =
      at::randint(17, {windows, tokens + 1}, generator, at::TensorOptions().dtype(at::kLong));
  return {all.narrow(1, 0, tokens).contiguous(), all.narrow(1, 1, tokens).contiguous()};
}

/// Loss of the last token of each window when the earlier ones take the reference everywhere.
at::Tensor last_token_losses(Model& model, const ChoiceTable& table, int64_t pattern,
                             const Text& text) {
  const int64_t windows = text.ids.size(0), tokens = text.ids.size(1);
  const std::vector<ChoiceRef> refs = choices_of(*model.root);
  for (size_t i = 0; i < refs.size(); ++i) {
    at::Tensor each = at::zeros({windows, tokens}, at::kLong);
    each.select(1, tokens - 1).fill_(table.choice_of(pattern, i));
    refs[i].choice->set_route(Route::given(each.flatten()));
  }
  const at::Tensor logits = run(model, text.ids).select(1, tokens - 1);
  set_routes(*model.root, {});
  return at::cross_entropy_loss(logits, text.labels.select(1, tokens - 1), {}, at::Reduction::None);
}

TEST(Oracle, TheTreeGivesWhatRunningEachPatternForOneTokenGives) {
  for (const int64_t options : {2, 3}) {
    Model model = decoder(options, true, options == 2 ? 2 : 4);  // 2: shared key heads
    const Text text = some_text(3, 7);
    const ChoiceTable table = tree_losses(model, text.ids, text.labels);
    ASSERT_EQ(table.patterns(), options * options * options);
    for (int64_t p = 0; p < table.patterns(); ++p) {
      const at::Tensor found = table.losses.view({3, 7, -1}).select(1, 6).select(1, p);
      expect_near(found, last_token_losses(model, table, p, text), 1e-4);
    }
  }
}

TEST(Oracle, TheReferenceAndTheRoutersAreFollowed) {
  Model model = decoder(2);
  const Text text = some_text(2, 6);
  const ChoiceTable table = tree_losses(model, text.ids, text.labels, 1, 2);
  set_routes(*model.root, Route::always(1));
  const at::Tensor logits = run(model, text.ids);
  expect_near(
      table.losses.select(1, table.pattern_of({1, 1, 1})),
      at::cross_entropy_loss(logits.flatten(0, 1), text.labels.flatten(), {}, at::Reduction::None),
      1e-5);
  // The first token of a window has no past: the routers' own run is its run in the tree.
  set_routes(*model.root, {});
  GateLog log;
  Context context;
  context.gate_log = &log;
  model.forward(text.ids, context);
  ASSERT_TRUE(table.routed.defined());
  for (const int64_t row : {0, 6}) {
    for (size_t slot = 0; slot < 3; ++slot) {
      EXPECT_EQ(table.choice_of(table.routed[row].item<int64_t>(), slot),
                log.records()[slot].decision[row].argmax().item<int64_t>());
    }
  }
}

TEST(Oracle, PatternsOfAWholeNetworkAreItsRuns) {
  Model model = decoder(2, false);
  const Text text = some_text(3, 5);
  const ChoiceTable table = pattern_losses(model, text.ids, text.labels, 2);
  ASSERT_EQ(table.slots,
            (std::vector<std::string>{"blocks.0.ffn", "blocks.1.ffn", "blocks.2.ffn"}));
  const std::vector<ChoiceRef> refs = choices_of(*model.root);
  const int64_t pattern = table.pattern_of({1, 0, 1});
  EXPECT_EQ(pattern, 5);
  for (size_t i = 0; i < 3; ++i)
    refs[i].choice->set_route(Route::always(table.choice_of(pattern, i)));
  expect_near(table.losses.select(1, pattern),
              at::cross_entropy_loss(run(model, text.ids).flatten(0, 1), text.labels.flatten(), {},
                                     at::Reduction::None),
              1e-5);
  EXPECT_EQ(refs[0].choice->route().kind, Route::Kind::given);
}

ChoiceTable made_up() {
  ChoiceTable table;
  table.slots = {"a", "b"};
  table.choices = {2, 2};
  table.losses = at::tensor({4.0f, 1.0f, 2.0f, 3.0f,  //
                             1.0f, 4.0f, 4.0f, 4.0f,  //
                             5.0f, 5.0f, 1.0f, 2.0f})
                     .view({3, 4});
  return table;
}

TEST(Oracle, ReadsTheTable) {
  const ChoiceTable table = made_up();
  EXPECT_TRUE(at::equal(table.count(1), at::tensor({0, 1, 1, 2}, at::kLong)));
  const at::Tensor one = best_patterns(table, table.count(1) == 1);
  EXPECT_TRUE(at::equal(one, at::tensor({1, 1, 2}, at::kLong)));
  EXPECT_NEAR(mean_loss(table, one), 2.0, 1e-6);
  expect_near(usage(table, one, 1), at::tensor({2.0 / 3, 1.0 / 3}, at::kDouble));
  expect_near(difficulty(table, 0), at::tensor({3.0f, 0.0f, 4.0f}));
  EXPECT_NEAR(shared_losses(table)[2].item<double>(), 7.0 / 3, 1e-6);
  EXPECT_ERROR(best_patterns(table, table.count(1) == 5), Code::usage, "no pattern is allowed");
  EXPECT_NEAR(best_of_random(table, 200, 1), 1.0, 1e-6);
  EXPECT_GT(best_of_random(table, 1, 1), 1.0);
}

TEST(Oracle, RefusesWhatItCannotEnumerate) {
  Model plain = make_model("decoder", {{"vocab", 9}, {"layers", 2}, {"width", 8}, {"heads", 2}}, 1);
  const at::Tensor ids = at::ones({1, 3}, at::kLong);
  EXPECT_ERROR(tree_losses(plain, ids, ids), Code::unsupported, "no block's ffn is a choice");
  EXPECT_ERROR(pattern_losses(plain, ids, ids), Code::unsupported, "nothing in this model");
  Model model = decoder(2);
  EXPECT_ERROR(tree_losses(model, ids, at::ones({1, 2}, at::kLong)), Code::shape, "ids 1 x 3");
  EXPECT_ERROR(tree_losses(model, ids, ids, 2), Code::usage, "no option 2");
  Model mlp = small_model("mlp", 1);
  EXPECT_ERROR(tree_losses(mlp, ids, ids), Code::unsupported, "tree is made of a decoder");
  ChoiceTable table;
  table.choices.assign(17, 2);
  EXPECT_ERROR((void)table.patterns(), Code::limit, "65536 patterns");
}

}  // namespace oracle_test
}  // namespace sluice::lab
