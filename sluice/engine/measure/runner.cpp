#include "sluice/engine/measure/runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/base/machine.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine::measure {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// Median over rounds of a[i] / b[i].
double paired_ratio(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < a.size(); ++i) {
    ratios.push_back(a[i] / b[i]);
  }
  return median(std::move(ratios));
}

/// Infinity where sizes differ or where one has a NaN that the other has not.
double largest_difference(std::span<const float> ours, std::span<const float> other) {
  if (ours.size() != other.size()) {
    return INFINITY;
  }
  double scale = 0, worst = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double difference = std::abs(static_cast<double>(ours[i]) - other[i]);
    if (std::isnan(difference)) {
      return INFINITY;
    }
    scale = std::max(scale, std::abs(static_cast<double>(ours[i])));
    worst = std::max(worst, difference);
  }
  return worst / std::max(scale, 1e-30);
}

bool glob(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

template <class Test>
bool any_alternative(std::string_view pattern, const Test& test) {
  for (;;) {
    const size_t comma = pattern.find(',');
    if (test(pattern.substr(0, comma))) {
      return true;
    }
    if (comma == std::string_view::npos) {
      return false;
    }
    pattern.remove_prefix(comma + 1);
  }
}

}  // namespace

Spread spread_of(const std::vector<double>& samples) {
  Spread spread;
  spread.median = median(samples);
  std::vector<double> sorted = samples;
  std::sort(sorted.begin(), sorted.end());
  spread.low = quantile(sorted, 0.25);
  spread.high = quantile(sorted, 0.75);
  spread.mean = mean(samples);
  spread.deviation = stddev(samples);
  spread.n = static_cast<int>(samples.size());
  return spread;
}

const Measurement* MeasuredCase::dense() const {
  const auto found = std::find_if(contenders.begin(), contenders.end(),
                                  [](const Measurement& m) { return m.role == Role::dense; });
  return found == contenders.end() ? nullptr : &*found;
}

const Measurement* MeasuredCase::best_rival() const {
  const Measurement* best = nullptr;
  for (const Measurement& m : contenders) {
    if (m.role == Role::rival && (best == nullptr || m.seconds.median < best->seconds.median)) {
      best = &m;
    }
  }
  return best;
}

std::vector<std::vector<double>> sample_interleaved(
    const std::vector<std::function<void()>>& functions, const TimingOptions& options,
    const std::function<void(int round)>& after_round) {
  if (options.rounds < 1) {
    fail(Code::usage, "rounds: expected at least 1, found {}", options.rounds);
  }
  std::vector<int64_t> calls;
  for (const std::function<void()>& function : functions) {
    function();  // page faults, thread pools, tables built on first use
    int64_t count = 1;
    for (;;) {
      const Clock::time_point start = Clock::now();
      for (int64_t i = 0; i < count; ++i) {
        function();
      }
      const double seconds = seconds_since(start);
      if (seconds >= options.min_seconds / 4 || count > (int64_t{1} << 40)) {
        count = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(options.min_seconds / seconds *
                                                                    static_cast<double>(count))));
        break;
      }
      count *= 4;
    }
    calls.push_back(count);
  }
  std::vector<std::vector<double>> samples(functions.size());
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t f = 0; f < functions.size(); ++f) {
      functions[f]();  // the threads of the contender before may still spin
      const Clock::time_point start = Clock::now();
      for (int64_t i = 0; i < calls[f]; ++i) {
        functions[f]();
      }
      samples[f].push_back(seconds_since(start) / static_cast<double>(calls[f]));
    }
    if (after_round) {
      after_round(round);
    }
  }
  return samples;
}

MeasuredCase measure_case(const KernelCase& kernel_case, const TimingOptions& options,
                          const ProbeMemory& memory,
                          const std::function<void(int round)>& after_round) {
  const ThreadScope threads(kernel_case.threads);
  std::vector<Contender> contenders = kernel_case.prepare();
  SLUICE_CHECK(!contenders.empty() && contenders.front().role == Role::ours);
  LimitProbe probe(kernel_case.limit, kernel_case.threads, memory);

  std::vector<std::function<void()>> functions;
  for (const Contender& contender : contenders) {
    functions.push_back(contender.run);
  }
  if (probe.available()) {
    functions.push_back([&probe] { probe.run(); });
  }
  const auto samples = sample_interleaved(functions, options, after_round);

  MeasuredCase result;
  result.kernel = kernel_case.kernel;
  result.shape = kernel_case.shape;
  result.threads = kernel_case.threads;
  result.kept = kernel_case.kept;
  result.conditional = kernel_case.conditional;
  result.limit = kernel_case.limit;
  if (probe.available()) {
    result.limit_rate = probe.amount() / median(samples.back());
  }
  for (size_t i = 0; i < contenders.size(); ++i) {
    const Contender& contender = contenders[i];
    Measurement m;
    m.name = contender.name;
    m.role = contender.role;
    m.seconds = spread_of(samples[i]);
    m.bytes = contender.bytes;
    m.operations = contender.operations;
    m.tolerance = contender.tolerance;
    m.note = contender.note;
    m.ours_over_this = paired_ratio(samples[0], samples[i]);
    const double amount =
        kernel_case.limit == Limit::read_bandwidth ? contender.bytes : contender.operations;
    if (probe.available() && amount > 0) {
      m.share = paired_ratio(samples.back(), samples[i]) * amount / probe.amount();
    }
    if (i > 0 && contender.output && contenders.front().output) {
      m.difference = largest_difference(contenders.front().output(), contender.output());
    }
    result.contenders.push_back(std::move(m));
  }
  return result;
}

bool name_matches(std::string_view pattern, std::string_view name) {
  return pattern.empty() || any_alternative(pattern, [&](std::string_view part) {
           return !part.empty() && glob(std::string(part) + "*", name);
         });
}

bool is_one_of(std::string_view pattern, std::string_view name) {
  return any_alternative(pattern, [&](std::string_view part) { return glob(part, name); });
}

}  // namespace sluice::engine::measure
