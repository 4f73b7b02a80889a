#include "sluice/engine/measure/bars.h"

#include <optional>

namespace sluice::engine::measure {
namespace {

/// The fastest contender that the bar names.
const Measurement* opponent(const Bar& bar, const MeasuredCase& measured) {
  if (bar.against.empty()) {
    return measured.dense();
  }
  const Measurement* best = nullptr;
  for (const Measurement& m : measured.contenders) {
    if (&m != &measured.ours() && name_matches(bar.against, m.name) &&
        (best == nullptr || m.seconds.median < best->seconds.median)) {
      best = &m;
    }
  }
  return best;
}

/// Nothing when the case lacks what the metric needs.
std::optional<double> value_of(const Bar& bar, const MeasuredCase& measured,
                               const Measurement* against) {
  const Measurement& ours = measured.ours();
  if (bar.metric == Metric::share_of_limit) {
    return ours.share;
  }
  if (against == nullptr) {
    return std::nullopt;
  }
  switch (bar.metric) {
    case Metric::time_over_proportional:
      return against->ours_over_this / measured.kept;
    case Metric::time_over_bytes:
      return against->ours_over_this / (ours.bytes / against->bytes);
    default:
      return against->ours_over_this;
  }
}

bool speaks_about(const Bar& bar, const MeasuredCase& measured) {
  return is_one_of(bar.kernel, measured.kernel) && name_matches(bar.shape, measured.shape) &&
         (bar.threads == 0 || bar.threads == measured.threads) && measured.kept >= bar.kept_low &&
         measured.kept <= bar.kept_high;
}

}  // namespace

std::string_view metric_name(Metric metric) {
  switch (metric) {
    case Metric::share_of_limit:
      return "share_of_limit";
    case Metric::time_ratio:
      return "seconds";
    case Metric::time_over_proportional:
      return "time_over_proportional";
    case Metric::time_over_bytes:
      return "time_over_bytes";
  }
  return "";
}

const std::vector<Bar>& all_bars() {
  static const std::vector<Bar> bars{
      {.name = "gemv-bandwidth",
       .claim = "decoding one token reads cold weights at 85 % of the memory bandwidth or more",
       .kernel = "gemv *",
       .shape = "*batch 1",
       .metric = Metric::share_of_limit,
       .at_most = false,
       .bound = 0.85},
      {.name = "gemv-bytes",
       .claim = "fewer bytes are less time: at most 25 % over the ratio of bytes to f32",
       .kernel = "gemv *",
       .shape = "*batch 1",
       .metric = Metric::time_over_bytes,
       .bound = 1.25},
      {.name = "sparse-input-twice",
       .claim = "skipping 65 % of the inputs halves the time, selection included",
       .kernel = "sparse-gemv *",
       .kept_low = 0.34,
       .kept_high = 0.36,
       .metric = Metric::time_ratio,
       .bound = 0.5},
      {.name = "sparse-input-curve",
       .claim = "time is proportional to the kept inputs within 15 %, down to 10 % kept",
       .kernel = "sparse-gemv *",
       .kept_low = 0.099,
       .kept_high = 0.999,
       .metric = Metric::time_over_proportional,
       .bound = 1.15},
      {.name = "sparse-ffn-fifth",
       .claim = "an FFN with 8 % of its neurons active takes a fifth of the dense time or less",
       .kernel = "sparse-ffn *",
       .shape = "*batch 1",
       .kept_low = 0.079,
       .kept_high = 0.081,
       .metric = Metric::time_ratio,
       .bound = 0.2},
      {.name = "xnor-fifth",
       .claim = "binary convolution takes a fifth of oneDNN's f32 time or less on one thread",
       .kernel = "xnor-conv",
       .threads = 1,
       .metric = Metric::time_ratio,
       .against = "oneDNN convolution f32",
       .bound = 0.2},
      {.name = "experts",
       .claim = "8 experts, 2 a token, cost at most 15 % more than dense FFNs of the same rows",
       .kernel = "experts *",
       .metric = Metric::time_ratio,
       .bound = 1.15},
      {.name = "gemm-direct",
       .claim = "the dense path is at most 3 % slower than oneDNN called directly",
       .kernel = "gemm f32,gemm bf16,gemm i8",
       .metric = Metric::time_ratio,
       .against = "oneDNN",
       .bound = 1.03},
  };
  return bars;
}

std::vector<Judgement> judge(const std::vector<MeasuredCase>& cases, const std::vector<Bar>& bars) {
  std::vector<Judgement> judgements;
  for (const Bar& bar : bars) {
    for (const MeasuredCase& measured : cases) {
      if (!speaks_about(bar, measured)) {
        continue;
      }
      const Measurement* against =
          bar.metric == Metric::share_of_limit ? nullptr : opponent(bar, measured);
      const std::optional<double> value = value_of(bar, measured, against);
      if (!value) {
        continue;
      }
      const bool met = bar.at_most ? *value <= bar.bound : *value >= bar.bound;
      judgements.push_back({&bar, &measured, against, *value, met});
    }
  }
  return judgements;
}

}  // namespace sluice::engine::measure
