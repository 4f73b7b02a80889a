#include "sluice/lab/inspect/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "sluice/lab/inspect/recorder.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

constexpr uint32_t kShift = 15;  // sign 0, 8 bits of exponent, 8 of the mantissa's 23 are left

size_t bin_of(float x) { return std::bit_cast<uint32_t>(x) >> kShift; }
/// Where bin i begins; the bin behind the last finite one begins at infinity.
double begin_of(size_t i) {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(i) << kShift));
}

}  // namespace

void ScoreHistogram::add(const at::Tensor& scores, const std::string& what) {
  const at::Tensor host = scores.detach().to(at::kCPU, at::kFloat).contiguous();
  const float* x = host.data_ptr<float>();
  for (int64_t i = 0; i < host.numel(); ++i) {
    if (!(x[i] >= 0) || !std::isfinite(x[i])) {
      fail(Code::numeric, "{}: scores have to be finite and at least 0, found {}", what, x[i]);
    }
    const float value = x[i] + 0.0f;  // -0 as 0
    ++counts_[bin_of(value)];
    least_ = count_ == 0 ? value : std::min(least_, value);
    largest_ = count_ == 0 ? value : std::max(largest_, value);
    ++count_;
  }
}

float ScoreHistogram::quantile(double share) const {
  if (!(share >= 0 && share <= 1)) {
    fail(Code::config, "quantile: expected a share from 0 to 1, found {}", share);
  }
  if (count_ == 0) fail(Code::usage, "quantile: no scores were counted");
  const double wanted = share * static_cast<double>(count_);
  double before = 0;
  for (size_t i = 0; i < kBins; ++i) {
    const auto here = static_cast<double>(counts_[i]);
    if (here > 0 && before + here >= wanted) {
      const double begin = begin_of(i), end = begin_of(i + 1);
      const double within = std::clamp((wanted - before) / here, 0.0, 1.0);
      const double at = begin + (std::isfinite(end) ? (end - begin) * within : 0.0);
      return std::clamp(static_cast<float>(at), least_, largest_);
    }
    before += here;
  }
  return largest_;
}

double ScoreHistogram::share_above(float threshold) const {
  if (count_ == 0) fail(Code::usage, "share_above: no scores were counted");
  if (!(threshold >= least_)) return 1;
  if (threshold >= largest_) return 0;
  const size_t bin = bin_of(threshold);
  double above = 0;
  for (size_t i = bin + 1; i < kBins; ++i) above += static_cast<double>(counts_[i]);
  const double begin = begin_of(bin), end = begin_of(bin + 1);
  if (std::isfinite(end)) {
    above +=
        static_cast<double>(counts_[bin]) * (end - static_cast<double>(threshold)) / (end - begin);
  }
  return above / static_cast<double>(count_);
}

std::map<std::string, ScoreHistogram> input_histograms(
    Model& model, const PassInput& input, const std::string& pass,
    const std::vector<std::string>& paths, const std::map<std::string, at::Tensor>& factors,
    int64_t skip_first) {
  std::map<std::string, ScoreHistogram> result;
  for (const std::string& path : paths) result[path];
  const EvaluationMode evaluation(*model.root);
  for_each_calibration_batch(model, input, pass, [&](const at::Tensor& x) {
    Recorder recorder(paths, Recorder::What::inputs);
    Context context;
    context.watcher = &recorder;
    model.root->forward(x, context);
    for (const auto& [path, values] : recorder.records()) {
      at::Tensor scores = values.detach().abs();
      if (skip_first > 0 && scores.dim() == 3) {
        const int64_t first = std::min(skip_first, scores.size(1));
        scores = scores.narrow(1, first, scores.size(1) - first);
      }
      if (const auto factor = factors.find(path); factor != factors.end()) {
        if (factor->second.defined()) scores = scores * factor->second.to(scores.options());
      }
      result.at(path).add(scores, "pass " + pass + ": " + path);
    }
  });
  for (const auto& [path, histogram] : result) {
    if (histogram.count() == 0) {
      fail(Code::usage,
           "pass {}: nothing went into {} on the calibration inputs (runs of more than {} tokens "
           "are needed)",
           pass, path, skip_first);
    }
  }
  return result;
}

}  // namespace sluice::lab
