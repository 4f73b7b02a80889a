// What one forward pass knows: where it is, what may run, and who is watching. No globals.
//
// A Context is made per forward (cheap) and handed down by reference. Bricks read it; gates write
// their decisions into the gate log; layers report what ran to the meter. Not thread-safe.
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/cost.h"

namespace sluice::lab {

/// One decision of one gate for one batch. Gradients flow through both tensors.
struct GateRecord {
  std::string path;        ///< of the gate's slot
  at::Tensor probability;  ///< p [batch, units] in (0, 1); [batch, rows, units] of each token
  at::Tensor decision;     ///< g of p's shape, 0 or 1 forward
  at::Tensor unit_macs;    ///< [units], MACs per sample that a unit saves which is closed for all
                           ///< of it
};

class GateLog {
 public:
  void add(GateRecord record) { records_.push_back(std::move(record)); }
  void clear() { records_.clear(); }
  const std::vector<GateRecord>& records() const { return records_; }
  bool empty() const { return records_.empty(); }

 private:
  std::vector<GateRecord> records_;
};

class Brick;

/// Sees, and may replace, what bricks in slots give: recording, distillation, interventions.
class SlotWatcher {
 public:
  virtual ~SlotWatcher() = default;
  /// After the brick of the slot at `path` made `y` of `x`.
  virtual void after(const std::string& path, const Brick& brick, const at::Tensor& x,
                     at::Tensor& y) = 0;
};

class Context {
 public:
  GateLog* gate_log = nullptr;
  Meter* meter = nullptr;
  Budget budget;
  /// Source of training noise (gate noise, dropout). Unset: the device's default generator.
  std::optional<at::Generator> generator;
  /// Gates answer "open" for every unit without looking (warm-up); nothing is logged then. Constant
  /// masks stay.
  bool gates_forced_open = false;
  /// [batch] int64: rows of each sample that count, of inputs padded to one length; undefined: all.
  /// Attention does not look at the others, pooling leaves them out.
  at::Tensor lengths;
  /// Which of the sizes of a nested network runs (nested.h), from 0; -1: the last, the whole one.
  int64_t size = -1;
  /// By number of units: which of them run ([units] of 0 and 1) in place of the leading ones that
  /// the size asks for. For controls that show what the order of units does; computes them all.
  const std::map<int64_t, at::Tensor>* unit_masks = nullptr;
  SlotWatcher* watcher = nullptr;

  const std::string& path() const { return path_; }

  /// Extends the path while a slot's brick runs.
  class Scope {
   public:
    Scope(Context& context, std::string_view name)
        : context_(context), size_(context.path_.size()) {
      if (size_ != 0) context.path_ += '.';
      context.path_ += name;
    }
    ~Scope() { context_.path_.resize(size_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Context& context_;
    size_t size_;
  };

 private:
  std::string path_;
};

/// Uniform [0, 1) of `like`'s shape, type and device, from the context's generator.
at::Tensor uniform_noise(const at::Tensor& like, const Context& context);

}  // namespace sluice::lab
