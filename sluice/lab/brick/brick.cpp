#include "sluice/lab/brick/brick.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {
namespace {

constexpr size_t kMaxSlotName = 64;

void require_slot_name(const std::string& name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
  if (name.empty() || name.size() > kMaxSlotName || !plain) {
    fail(Code::config,
         "slot name '{}': expected 1 to {} letters, digits, '_' or '-' (paths are split at dots)",
         name.substr(0, kMaxSlotName), kMaxSlotName);
  }
}

[[noreturn]] void rethrow(const c10::Error& error, const std::string& where) {
  std::string text = error.what_without_backtrace();
  text.resize(std::min(text.size(), text.find('\n')));  // one line: the reason, without its origin
  const bool memory = text.find("memory") != std::string::npos;
  throw Error(memory ? Code::limit : Code::shape, where + ": " + text);
}

// Puts `where` before the message of an Error thrown by `call`: "stage0 / block1 / conv2d: expected
// ...".
template <class F>
auto named(const std::string& where, F&& call) {
  try {
    return call();
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{} / {}", where, error.what()));
  }
}

void walk_into(Brick& owner, const std::string& path, std::vector<SlotRef>& out) {
  for (const auto& slot : owner.slots()) {
    std::string child = join_path(path, slot->name());
    out.push_back({child, slot.get(), &owner});
    if (!slot->empty()) {
      walk_into(**slot, child, out);
    }
  }
}

}  // namespace

Slot::Slot(Brick& owner, std::string name, BrickPtr brick)
    : owner_(&owner), name_(std::move(name)), brick_(std::move(brick)) {}

Brick& Slot::operator*() const {
  SLUICE_CHECK(brick_ != nullptr);
  return *brick_;
}

BrickPtr Slot::exchange(BrickPtr brick) {
  std::swap(brick, brick_);
  owner_->register_slots();
  return brick;
}

at::Tensor Slot::forward(const at::Tensor& x, Context& context) const {
  Context::Scope scope(context, name_);
  try {
    at::Tensor y = (**this).forward(x, context);
    if (context.watcher != nullptr) context.watcher->after(context.path(), *brick_, x, y);
    return y;
  } catch (const c10::Error& error) {
    rethrow(error, fmt::format("{} ({})", context.path(), brick_->kind()));
  }
}

Shape Slot::output_shape(const Shape& input) const {
  return named(name_, [&] { return (**this).output_shape(input); });
}

Cost Slot::cost(const Shape& input) const {
  return named(name_, [&] { return (**this).cost(input); });
}

bundle::Value Slot::lower(bundle::Builder& builder, const bundle::Value& x,
                          const std::string& path) const {
  return (**this).lower(builder, x, join_path(path, name_));
}

void Brick::adopt(const std::string& name, BrickPtr child) {
  slot(name).exchange(std::move(child));
}

void Brick::set_channel_mask(const ChannelGroup& group, const at::Tensor& mask) {
  slot(group.gate).exchange(std::make_shared<ConstantMask>(mask));
}

at::Tensor Brick::channel_mask(const ChannelGroup& group) const {
  if (group.gate.empty()) {
    return {};
  }
  const auto* gate = dynamic_cast<const ConstantMask*>(slot(group.gate).get().get());
  return gate == nullptr ? at::Tensor() : gate->mask;
}

void Brick::clear_channel_mask(const ChannelGroup& group) { slot(group.gate).exchange(nullptr); }

bool Brick::has_slot(std::string_view name) const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [&](const auto& slot) { return slot->name() == name; });
}

Slot& Brick::slot(std::string_view name) const {
  std::vector<std::string> names;
  for (const auto& slot : slots_) {
    if (slot->name() == name) {
      return *slot;
    }
    names.push_back(slot->name());
  }
  fail(Code::usage, "a {} has no slot '{}'; it has: {}", kind(), name,
       names.empty() ? std::string("none") : fmt::format("{}", fmt::join(names, ", ")));
}

Slot& Brick::insert_slot(size_t index, const std::string& name, BrickPtr brick) {
  require_slot_name(name);
  if (has_slot(name)) {
    fail(Code::config, "slot '{}' is there twice in one {}", name, kind());
  }
  SLUICE_CHECK(index <= slots_.size());
  const auto place = slots_.insert(slots_.begin() + static_cast<std::ptrdiff_t>(index),
                                   std::make_unique<Slot>(*this, name, std::move(brick)));
  Slot& result = **place;
  register_slots();
  return result;
}

void Brick::remove_slot(const std::string& name) {
  slot(name).exchange(nullptr);
  std::erase_if(slots_, [&](const auto& slot) { return slot->name() == name; });
}

// The order of parameters (optimizer state is kept by it) follows the slots, however they came to
// be filled.
void Brick::register_slots() {
  std::vector<std::pair<std::string, BrickPtr>> old;
  for (const auto& child : named_children()) {
    if (auto brick = std::dynamic_pointer_cast<Brick>(child.value())) {
      old.emplace_back(child.key(), std::move(brick));
    }
  }
  std::vector<const Slot*> filled;
  for (const auto& slot : slots_) {
    if (!slot->empty()) filled.push_back(slot.get());
  }
  const bool grows = old.size() <= filled.size() &&
                     std::equal(old.begin(), old.end(), filled.begin(),
                                [](const auto& a, const Slot* b) { return a.first == b->name(); });
  if (!grows) {
    for (const auto& [name, brick] : old) unregister_module(name);
    old.clear();
  }
  for (size_t i = 0; i < filled.size(); ++i) {
    if (i >= old.size()) {
      register_module(filled[i]->name(), filled[i]->get());
    } else if (old[i].second != filled[i]->get()) {
      replace_module(filled[i]->name(), filled[i]->get());
    }
  }
}

std::vector<SlotRef> walk(Brick& root) {
  std::vector<SlotRef> result;
  walk_into(root, "", result);
  return result;
}

std::vector<SlotRef> walk(Brick& root, std::string_view pattern) {
  std::vector<SlotRef> all = walk(root);
  std::vector<SlotRef> result;
  std::vector<std::string> paths;
  for (SlotRef& ref : all) {
    paths.push_back(ref.path);
    if (path_matches(pattern, ref.path)) {
      result.push_back(std::move(ref));
    }
  }
  if (result.empty()) {
    const std::string near = nearest_name(pattern, paths);
    constexpr size_t kShown = 12;
    const bool cut = paths.size() > kShown;
    paths.resize(std::min(paths.size(), kShown));
    fail(Code::usage, "no slot matches '{}'{}; slots: {}{}", pattern,
         near.empty() ? "" : fmt::format(", did you mean '{}'?", near), fmt::join(paths, ", "),
         cut ? ", ..." : "");
  }
  return result;
}

void add_tensor(bundle::Builder& builder, const std::string& name, const at::Tensor& tensor) {
  const at::Tensor host =
      tensor.detach().to(at::TensorOptions().device(at::kCPU).dtype(at::kFloat)).contiguous();
  builder.tensor(name, Shape(host.sizes().begin(), host.sizes().end()),
                 std::span<const float>(host.data_ptr<float>(), static_cast<size_t>(host.numel())));
}

at::Tensor uniform_noise(const at::Tensor& like, const Context& context) {
  at::Tensor noise = at::empty_like(like.detach());
  return context.generator ? noise.uniform_(0, 1, *context.generator) : noise.uniform_(0, 1);
}

}  // namespace sluice::lab
