#include <fmt/ranges.h>

#include <cmath>

#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/restoration.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/brick/transformer.h"

namespace sluice::lab {
namespace {

constexpr int64_t kMaxLevels = 8;
constexpr const char* kUpwards[] = {"prompt", "mix", "cut", "up", "merge", "decoder"};

}  // namespace

RestorationNet::RestorationNet(int64_t levels)
    : levels_(require_range(levels, 1, kMaxLevels, "levels", "restoration_net")) {
  const auto add = [&](const std::string& name) { add_slot(name, nullptr); };
  add("embed");
  for (int64_t level = 0; level < levels_; ++level) {
    add(fmt::format("encoder{}", level));
    if (level + 1 < levels_) add(fmt::format("down{}", level));
  }
  for (int64_t level = levels_ - 2; level >= 0; --level) {
    for (const char* name : kUpwards) add(fmt::format("{}{}", name, level));
  }
  add("refine");
  add("out");
}

Json RestorationNet::attributes() const { return {{"levels", levels_}}; }

BrickPtr make_restoration_net(const Json& attributes) {
  const AttributeReader read(attributes, "restoration_net", {"levels"});
  return std::make_shared<RestorationNet>(read.integer("levels"));
}

const Slot& RestorationNet::at(const char* name, int64_t level) const {
  return slot(fmt::format("{}{}", name, level));
}

void RestorationNet::check_slots() const {
  for (const auto& slot : slots()) {
    if (slot->empty() && !slot->name().starts_with("merge")) {
      fail(Code::config, "{}: must be filled", slot->name());
    }
  }
}

// `steps` runs slots and joins values; what a value is (a tensor, a shape, a node) is its business.
template <class Value, class Steps>
Value RestorationNet::walk_through(const Value& x, Steps&& steps) const {
  std::vector<Value> kept;
  Value y = steps.run(slot("embed"), x);
  for (int64_t level = 0; level < levels_; ++level) {
    y = steps.run(at("encoder", level), y);
    if (level + 1 == levels_) break;
    kept.push_back(y);
    y = steps.run(at("down", level), y);
  }
  for (int64_t level = levels_ - 2; level >= 0; --level) {
    y = steps.join(y, steps.run(at("prompt", level), y), fmt::format("with_prompt{}", level));
    y = steps.run(at("cut", level), steps.run(at("mix", level), y));
    y = steps.run(at("up", level), y);
    y = steps.join(y, kept[static_cast<size_t>(level)], fmt::format("with_encoder{}", level));
    const Slot& merge = at("merge", level);
    if (!merge.empty()) y = steps.run(merge, y);
    y = steps.run(at("decoder", level), y);
  }
  return steps.add(steps.run(slot("out"), steps.run(slot("refine"), y)), x);
}

namespace {

struct Forward {
  Context& context;
  at::Tensor run(const Slot& slot, const at::Tensor& x) { return slot.forward(x, context); }
  at::Tensor join(const at::Tensor& a, const at::Tensor& b, const std::string&) {
    return at::cat({a, b}, 1);
  }
  at::Tensor add(const at::Tensor& a, const at::Tensor& b) { return a + b; }
};

struct Shapes {
  Cost total = {};
  bool costs = false;
  Shape run(const Slot& slot, const Shape& x) {
    if (costs) total += slot.cost(x);
    return slot.output_shape(x);
  }
  Shape join(const Shape& a, const Shape& b, const std::string& name) {
    if (a.size() != 3 || b.size() != 3 || a[1] != b[1] || a[2] != b[2]) {
      fail(Code::shape, "restoration_net: {}: {} beside {}", name, to_string(a), to_string(b));
    }
    return {a[0] + b[0], a[1], a[2]};
  }
  Shape add(const Shape& a, const Shape& b) {
    if (a != b) {
      fail(Code::shape, "restoration_net: {} is added to the picture {}", to_string(a),
           to_string(b));
    }
    return a;
  }
};

struct Lower {
  bundle::Builder& builder;
  const std::string& path;
  bundle::Value run(const Slot& slot, const bundle::Value& x) {
    return slot.lower(builder, x, path);
  }
  bundle::Value join(const bundle::Value& a, const bundle::Value& b, const std::string& name) {
    return builder.node("concat", join_path(path, name), {a, b}, {{"axis", int64_t{0}}});
  }
  bundle::Value add(const bundle::Value& a, const bundle::Value& b) {
    return builder.node("add", join_path(path, "residual"), {a, b});
  }
};

}  // namespace

at::Tensor RestorationNet::forward(const at::Tensor& x, Context& context) {
  return walk_through(x, Forward{context});
}

Shape RestorationNet::output_shape(const Shape& input) const {
  const int64_t multiple = int64_t{1} << (levels_ - 1);
  if (input.size() != 3 || input[1] % multiple != 0 || input[2] % multiple != 0) {
    fail(Code::shape,
         "restoration_net: expected [channels, height, width] with sides that are multiples of {}, "
         "found {}; pad the picture",
         multiple, to_string(input));
  }
  return walk_through(input, Shapes{});
}

Cost RestorationNet::cost(const Shape& input) const {
  Shapes shapes;
  shapes.costs = true;
  walk_through(input, shapes);
  return shapes.total;
}

bundle::Value RestorationNet::lower(bundle::Builder& builder, const bundle::Value& x,
                                    const std::string& path) const {
  return walk_through(x, Lower{builder, path});
}

namespace {

BrickPtr conv(int64_t inputs, int64_t outputs, int64_t kernel) {
  return std::make_shared<Conv2d>(Conv2dOptions{.inputs = inputs,
                                                .outputs = outputs,
                                                .kernel = kernel,
                                                .padding = kernel / 2,
                                                .bias = false});
}

BrickPtr block(int64_t width, int64_t heads, double expansion) {
  auto result = std::make_shared<TransformerBlock>();
  result->slot("attn_norm").exchange(std::make_shared<ChannelNorm>(width));
  result->slot("attn").exchange(make_channel_attention(width, heads));
  result->slot("ffn_norm").exchange(std::make_shared<ChannelNorm>(width));
  result->slot("ffn").exchange(make_gated_conv_ffn(width, expansion));
  return result;
}

BrickPtr blocks(int64_t count, int64_t width, int64_t heads, double expansion) {
  auto result = std::make_shared<Sequential>();
  for (int64_t i = 0; i < count; ++i) {
    result->append(fmt::format("{}", i), block(width, heads, expansion));
  }
  return result;
}

BrickPtr resized(int64_t inputs, int64_t outputs, const char* direction) {
  auto result = std::make_shared<Sequential>();
  result->append("conv", conv(inputs, outputs, 3));
  result->append("shuffle", std::make_shared<PixelShuffle>(direction));
  return result;
}

}  // namespace

BrickPtr make_restoration_net(const RestorationLayers& l, uint64_t seed) {
  constexpr const char* kind = "restoration_net";
  const auto levels = static_cast<int64_t>(l.blocks.size());
  require_range(levels, 1, kMaxLevels, "blocks", kind);
  require_range(l.channels, 1, 4096, "channels", kind);
  require_range(l.width, 2, kMaxChannels, "width", kind);
  require_range(l.refinement, 0, 1000, "refinement", kind);
  if (l.heads.size() != l.blocks.size() || l.prompt_width.size() + 1 != l.blocks.size() ||
      l.prompt_side.size() + 1 != l.blocks.size()) {
    fail(Code::config,
         "blocks of {}: {} levels, but {} heads, and prompts of {} widths and {} sides; expected "
         "heads for each level and prompts for each but the first",
         kind, levels, l.heads.size(), l.prompt_width.size(), l.prompt_side.size());
  }
  if (l.width % 2 != 0) fail(Code::config, "width of {}: expected an even number", kind);
  const auto at = [](const std::vector<int64_t>& list, int64_t i) {
    return list[static_cast<size_t>(i)];
  };
  BrickPtr root;
  {
    const WithoutInit without_init;  // every value is drawn below, from `seed` alone
    root = std::make_shared<RestorationNet>(levels);
    const auto put = [&](const std::string& name, BrickPtr brick) {
      root->slot(name).exchange(std::move(brick));
    };
    put("embed", conv(l.channels, l.width, 3));
    for (int64_t i = 0; i < levels; ++i) {
      const int64_t width = l.width << i;
      put(fmt::format("encoder{}", i), blocks(at(l.blocks, i), width, at(l.heads, i), l.expansion));
      if (i + 1 < levels) put(fmt::format("down{}", i), resized(width, width / 2, "down"));
    }
    for (int64_t i = levels - 2; i >= 0; --i) {
      const int64_t width = l.width << i, deep = 2 * width, prompt = at(l.prompt_width, i);
      // At the first level the concatenation stays as wide as it is.
      const int64_t merged = i == 0 ? deep : width;
      put(fmt::format("prompt{}", i),
          make_prompt_generator(deep, l.prompts, prompt, at(l.prompt_side, i)));
      put(fmt::format("mix{}", i), block(deep + prompt, at(l.heads, i + 1), l.expansion));
      put(fmt::format("cut{}", i), conv(deep + prompt, deep, 1));
      put(fmt::format("up{}", i), resized(deep, 2 * deep, "up"));
      if (i > 0) put(fmt::format("merge{}", i), conv(deep, width, 1));
      put(fmt::format("decoder{}", i),
          blocks(at(l.blocks, i), merged, at(l.heads, i), l.expansion));
    }
    const int64_t last = levels == 1 ? l.width : 2 * l.width;
    put("refine", blocks(l.refinement, last, at(l.heads, 0), l.expansion));
    put("out", conv(last, l.channels, 3));
  }
  initialize(*root, "uniform", seed);
  for (const SlotRef& ref : walk(*root)) {
    auto* generator = dynamic_cast<PromptGenerator*>(ref.slot->get().get());
    if (generator == nullptr) continue;
    const at::NoGradGuard no_grad;
    fill_uniform(generator->prompts, 0.5, derive_seed(seed, join_path(ref.path, "prompts")));
    generator->prompts += 0.5;
  }
  root->check_slots();
  return root;
}

}  // namespace sluice::lab
