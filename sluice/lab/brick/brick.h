// Brick: a replaceable unit of computation. Slot: the place a brick sits in. Surgery never edits a
// brick of another kind in place: it puts a new brick into the slot, so passes compose.
//
// Shapes are per sample; tensors carry a leading batch dimension.
// A brick kind is a class + a factory known by name (register_brick): its description (`spec`)
// rebuilds it from a file with its actual sizes, so a network after any surgery reloads.
#pragma once
#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/cost.h"
#include "sluice/base/error.h"
#include "sluice/base/json_fwd.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/bundle.h"
#include "sluice/lab/brick/context.h"

namespace sluice::lab {

class Brick;
using BrickPtr = std::shared_ptr<Brick>;

/// The place of one child. Owned by the parent brick; stays put while bricks come and go.
class Slot {
 public:
  Slot(Brick& owner, std::string name, BrickPtr brick);
  const std::string& name() const { return name_; }
  bool empty() const { return brick_ == nullptr; }
  Brick& operator*() const;  ///< SLUICE_CHECKs that the slot is filled
  Brick* operator->() const { return &**this; }
  const BrickPtr& get() const { return brick_; }
  /// Puts `brick` in (nullptr empties the slot), re-registering it with the owner's module, and
  /// returns the old one.
  BrickPtr exchange(BrickPtr brick);
  /// Runs the brick with the context's path extended by the slot's name. LibTorch's exceptions
  /// become Error{shape} naming the path (Error{limit} when memory ran out).
  at::Tensor forward(const at::Tensor& x, Context& context) const;
  /// The brick's answers; errors get the slot's name in front.
  Shape output_shape(const Shape& input) const;
  Cost cost(const Shape& input) const;
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const;
  /// The brick as T; throws Error{shape}-free Error{unsupported} naming slot, expected and found
  /// kind.
  template <class T>
  T& as() const;

 private:
  Brick* owner_;
  std::string name_;
  BrickPtr brick_;
};

/// Channels inside a brick that surgery may remove: the outputs of the producers, which pass
/// through the carriers and are only read by the consumers. Names are slot names of the declaring
/// brick.
struct ChannelGroup {
  std::string name;  ///< "hidden"
  /// What one of them is: "channel", "neuron" (of a feed-forward network), "head" (of attention).
  std::string unit = "channel";
  int64_t channels = 0;
  std::vector<std::string> producers;  ///< sliced along outputs
  std::vector<std::string>
      carriers;  ///< per-channel bricks in between (norms): sliced along channels
  std::vector<std::string> consumers;  ///< sliced along inputs
  std::string gate;  ///< slot whose gate has one unit per channel; "" when there is none yet
  /// Consecutive outputs of each producer, and inputs of each consumer, that belong to one channel;
  /// empty: one.
  std::vector<int64_t> producer_columns = {}, consumer_columns = {};
};

/// A norm slot that directly follows a linear or convolution slot, foldable into it.
struct FoldPair {
  std::string producer, norm;
};

/// A norm over the last dimension and all that reads it: its scale and shift fold into them. Paths
/// of slots below the declaring brick.
struct NormReaders {
  std::string norm;
  std::vector<std::string> readers;
};

class Brick : public torch::nn::Module {
 public:
  /// Registered name: "conv2d", "residual_block".
  virtual std::string kind() const = 0;
  /// Everything the constructor needs, children excepted.
  virtual Json attributes() const = 0;
  virtual at::Tensor forward(const at::Tensor& x, Context& context) = 0;
  virtual Shape output_shape(const Shape& input) const = 0;
  /// Above 0: the input is token ids below this number; 0: any numbers.
  virtual int64_t vocabulary() const { return 0; }
  /// Upper bound per sample (all gates open), children included.
  virtual Cost cost(const Shape& input) const = 0;
  /// Appends the nodes that compute this brick; tensors are named `path`.<parameter>. Throws
  /// Error{unsupported} naming path and kind where the engine has no such node.
  virtual bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                              const std::string& path) const = 0;

  virtual std::vector<ChannelGroup> channel_groups() const { return {}; }
  virtual std::vector<FoldPair> fold_pairs() const { return {}; }
  virtual std::vector<NormReaders> norm_readers() const { return {}; }
  /// Closes the units of `group` whose entry of `mask` ([channels], 0 or 1) is 0, without changing
  /// any size: a constant mask where the group's gate sits. May insert a slot.
  virtual void set_channel_mask(const ChannelGroup& group, const at::Tensor& mask);
  /// [channels] of 0 and 1: the constant mask of `group`; undefined when it has none (or a gate
  /// that looks at its input).
  virtual at::Tensor channel_mask(const ChannelGroup& group) const;
  /// Takes the constant mask of `group` away again, leaving no trace.
  virtual void clear_channel_mask(const ChannelGroup& group);
  /// Throws Error{config} when slots that must be filled are empty or hold the wrong kind. Called
  /// on every rebuilt brick.
  virtual void check_slots() const {}
  /// Called when a brick is rebuilt: puts a child in the named slot. Containers that grow override
  /// it.
  virtual void adopt(const std::string& name, BrickPtr child);

  const std::vector<std::unique_ptr<Slot>>& slots() const { return slots_; }
  bool has_slot(std::string_view name) const;
  Slot& slot(
      std::string_view name) const;  ///< throws Error{usage} naming the slot and those that exist

 protected:
  /// Throws Error{config} for a name that is taken or has other characters than letters, digits,
  /// '_' and '-'.
  Slot& add_slot(const std::string& name, BrickPtr brick) {
    return insert_slot(slots_.size(), name, std::move(brick));
  }
  Slot& insert_slot(size_t index, const std::string& name, BrickPtr brick);
  void remove_slot(const std::string& name);

 private:
  friend class Slot;
  void register_slots();  ///< the modules of all filled slots, in slot order
  std::vector<std::unique_ptr<Slot>> slots_;
};

// ---- walking ----

struct SlotRef {
  std::string path;  ///< from the root: "stage0.block1.conv1"
  Slot* slot;
  Brick* owner;
};

/// Every filled or empty slot below `root`, depth first, parents before children.
std::vector<SlotRef> walk(Brick& root);
/// Those whose path matches (base/path_pattern.h). Throws Error{usage} naming the pattern and near
/// paths when none does.
std::vector<SlotRef> walk(Brick& root, std::string_view pattern);

// ---- description and factory ----

/// {"kind": ..., "attributes": {...}, "slots": {"conv1": {...}, "gate": null}}
Json spec_of(const Brick& brick);
/// Builds the brick and its children with fresh parameters. Throws Error{config|format} naming the
/// place in the spec; depth and sizes are limited, the text may come from a file.
BrickPtr make_brick(const Json& spec, int64_t max_elements = int64_t{1} << 33);
/// Same structure, same parameters and buffers, nothing shared; same device and training mode.
BrickPtr clone(const Brick& brick);

using BrickFactory = BrickPtr (*)(const Json& attributes);
/// Registers at program start: `static const bool registered = register_brick("conv2d",
/// make_conv2d);`
bool register_brick(const std::string& kind, BrickFactory factory);
std::vector<std::string> brick_kinds();

/// Copies a tensor into the builder as f32 under `name`.
void add_tensor(bundle::Builder& builder, const std::string& name, const at::Tensor& tensor);

template <class T>
T& Slot::as() const {
  if (auto* typed = dynamic_cast<T*>(&**this)) return *typed;
  fail(Code::unsupported, "slot '{}' holds a {}, which this operation does not apply to", name_,
       (**this).kind());
}

}  // namespace sluice::lab
