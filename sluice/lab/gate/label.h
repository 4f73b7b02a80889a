// What a mask should be, told by a layer's own output: labels for gates that predict it from the
// input, without any gradient of the task (Fire Together Wire Together, Elkerdawy et al. 2022).
#pragma once
#include <functional>
#include <map>
#include <string>

#include "sluice/lab/brick/context.h"
#include "sluice/lab/inspect/recorder.h"
#include "sluice/lab/model/model.h"

namespace sluice::lab {

/// [batch, channels] of 0 and 1 for the whole output [batch, channels, H, W] of the gated unit at
/// `path`, activation applied, mask not.
using LabelRule = std::function<at::Tensor(const std::string& path, const at::Tensor& output)>;

/// Channels of most heat: a_c = max over places of |o_c|, the largest first, as long as their sum
/// stays within `mass` (0 to 1) of the sum of all, to 1e-5. So how many are kept differs by sample;
/// with mass 1 only channels that are zero go. Throws Error{config} for a mass outside.
LabelRule heat_mass_label(double mass);
/// The same share of channels for every sample: round(share * channels) of most heat, at least one.
LabelRule heat_share_label(double share);

/// Teaches the gates of gated convolution units (brick/gated_conv.h) to foretell their labels.
///
///   hooks.before_step = [&](int64_t, Context& context) { context.watcher = &teacher.watcher(); };
///   hooks.extra_loss = [&](const GateLog& log, int64_t) { return teacher.loss(log); };
class MaskTeacher {
 public:
  explicit MaskTeacher(LabelRule rule) : rule_(std::move(rule)), recorder_({"**.act"}) {}
  SlotWatcher& watcher() { return recorder_; }
  /// Binary cross-entropy of the logged probabilities to the labels of the same forward: summed
  /// over channels, averaged over the batch, then over gates. An empty log gives 0. Throws
  /// Error{usage} for a gate that is not in a unit.
  at::Tensor loss(const GateLog& log) const;
  /// Share of decisions that are as the label, mean over gates.
  double agreement(const GateLog& log) const;

 private:
  at::Tensor label(const GateRecord& record) const;
  LabelRule rule_;
  Recorder recorder_;
};

struct MaskEstimate {
  double macs = 0;                     ///< per sample, gates included
  std::map<std::string, double> kept;  ///< share of open channels by path of the unit
};
/// What masks after `rule` would cost on `inputs`, before anything is trained: labels of the model
/// as it is with all gates open, then the metered cost of a forward under them. Every gated unit
/// gets a mask, whether it has a gate yet or not; constant masks stay.
MaskEstimate estimate_macs(const Model& model, const at::Tensor& inputs, const LabelRule& rule);

}  // namespace sluice::lab
