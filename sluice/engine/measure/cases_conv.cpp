// Convolutions: one bit per weight and activation, and channels that each sample asks for.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "sluice/engine/kernel/gathered_conv.h"
#include "sluice/engine/kernel/xnor.h"
#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

onednn::ConvShape square(int64_t channels, int64_t size) {
  onednn::ConvShape s;
  s.in_channels = s.out_channels = channels;
  s.in_height = s.in_width = s.out_height = s.out_width = size;
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = 3;
    s.padding[i] = 1;
  }
  return s;
}

int64_t numbers_in(const onednn::ConvShape& s) { return s.in_channels * s.in_height * s.in_width; }
int64_t numbers_out(const onednn::ConvShape& s) {
  return s.out_channels * s.out_height * s.out_width;
}

Contender contender_of(std::shared_ptr<BoundKernel> kernel, std::string name, Role role,
                       double bytes, double operations) {
  Contender contender;
  contender.name = std::move(name);
  contender.role = role;
  contender.bytes = bytes;
  contender.operations = operations;
  contender.run = [kernel] { kernel->run(); };
  contender.output = [kernel] { return kernel->output(); };
  return contender;
}

/// [rows][columns] as [columns][rows].
std::vector<float> transposed(std::span<const float> from, int64_t rows, int64_t columns) {
  std::vector<float> to(from.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      to[static_cast<size_t>(c * rows + r)] = from[static_cast<size_t>(r * columns + c)];
  }
  return to;
}

Contender dense_conv(const ConvProblem& p) {
  const onednn::ConvShape& s = p.shape;
  struct State {
    onednn::PackCache cache;
    std::shared_ptr<BoundKernel> kernel;
  };
  auto state = std::make_shared<State>();
  const Kernel kernel = *onednn::make_conv(s, Layout::channels_last, {}, p.weight, {}, p.threads,
                                           state->cache, "w", true);
  state->kernel = std::make_shared<BoundKernel>(kernel, std::vector{p.x}, numbers_out(s));
  Contender contender = contender_of(state->kernel, "sluice dense f32", Role::dense,
                                     static_cast<double>(p.weight.size_bytes()), p.operations());
  contender.run = [state] { state->kernel->run(); };
  return contender;
}

void add_conv_rivals(const ConvProblem& problem, bool int8, std::vector<Contender>& contenders) {
  std::vector<std::optional<Contender>> rivals{onednn_conv(problem, Precision::f32)};
  if (int8) {
    rivals.push_back(onednn_conv(problem, Precision::int8));
  }
  rivals.push_back(libtorch_conv(problem));
  rivals.push_back(xnnpack_conv(problem));
  for (std::optional<Contender>& rival : rivals) {
    if (rival) {
      contenders.push_back(std::move(*rival));
    }
  }
}

std::vector<float> signs_of(std::vector<float> values, float size) {
  for (float& v : values) {
    v = v >= 0 ? size : -size;
  }
  return values;
}

std::vector<Contender> xnor_contenders(const onednn::ConvShape& s, int threads) {
  const std::vector<float> x = random_values(numbers_in(s), 1);
  const int64_t row = s.in_channels * s.kernel[0] * s.kernel[1];
  const std::vector<float> weight = signs_of(random_values(s.out_channels * row, 2), 0.05f);
  XnorOptions options;
  options.threads = threads;
  const Kernel kernel = make_xnor_conv(
      s,
      [&](int64_t o, std::span<float> values) {
        std::copy_n(weight.begin() + o * row, row, values.begin());
      },
      {}, options, "xnor-conv");
  // The rivals get the signs: the same sums, without the work of taking them.
  const std::vector<float> signs = signs_of(x, 1.0f);
  const ConvProblem problem{s, signs, weight, threads, 0};
  std::vector<Contender> contenders{
      contender_of(std::make_shared<BoundKernel>(kernel, std::vector<std::span<const float>>{x},
                                                 numbers_out(s)),
                   "sluice", Role::ours, static_cast<double>(weight.size()) / 8,
                   problem.operations()),
      dense_conv(problem)};
  contenders[0].note = "taking the signs of the input is part of the time";
  add_conv_rivals(problem, true, contenders);
  return contenders;
}

std::vector<Contender> gathered_contenders(const onednn::ConvShape& s, double kept, bool both,
                                           int threads) {
  const std::vector<float> x = random_values(numbers_in(s), 1);
  const std::vector<float> weight =
      random_values(s.out_channels * s.in_channels * s.kernel[0] * s.kernel[1], 2, 0.05f);
  const double share = both ? std::sqrt(kept) : kept;
  // Kept channels lie spread over all of them.
  std::vector<float> mask(static_cast<size_t>(s.out_channels));
  for (size_t i = 0; i < mask.size(); ++i) {
    const double at = static_cast<double>(i);
    mask[i] = std::floor((at + 1) * share) > std::floor(at * share) ? 1.0f : 0.0f;
  }
  const Kernel kernel =
      make_gathered_conv(s, Activation::none, weight, {}, both, threads, "gathered-conv");
  // Ours wants channels first, the others last.
  const std::vector<float> planes = transposed(x, s.in_height * s.in_width, s.in_channels);
  std::vector<std::span<const float>> inputs{planes, mask};
  if (both) {
    inputs.push_back(mask);
  }
  const ConvProblem problem{s, x, weight, threads, 0};
  const auto bound = std::make_shared<BoundKernel>(kernel, inputs, numbers_out(s));
  std::vector<Contender> contenders{
      contender_of(bound, "sluice", Role::ours, static_cast<double>(weight.size()) * 4 * kept,
                   problem.operations() * kept),
      dense_conv(problem)};
  const auto last = std::make_shared<std::vector<float>>();
  contenders[0].output = [bound, s, last]() -> std::span<const float> {
    *last = transposed(bound->output(), s.out_channels, s.out_height * s.out_width);
    return *last;
  };
  contenders[0].note = "copying kept channels is part of the time";
  add_conv_rivals(problem, false, contenders);
  if (kept < 1) {
    for (size_t i = 1; i < contenders.size(); ++i) {
      contenders[i].output = {};
    }
  }
  return contenders;
}

}  // namespace

std::vector<KernelCase> conv_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const auto add = [&](KernelCase c, int threads, std::function<std::vector<Contender>()> prepare) {
    c.threads = threads;
    c.prepare = std::move(prepare);
    cases.push_back(std::move(c));
  };
  const auto shape_text = [](const onednn::ConvShape& s) {
    return fmt::format("{}->{} 3x3 {}x{}", s.in_channels, s.out_channels, s.in_height, s.in_width);
  };
  const onednn::ConvShape s = options.quick ? square(32, 5) : square(256, 14);
  for (const int threads : options.threads) {
    KernelCase xnor;
    xnor.kernel = "xnor-conv";
    xnor.shape = shape_text(s);
    add(xnor, threads, [=] { return xnor_contenders(s, threads); });
    std::vector<double> fractions{1, 0.75, 0.5, 0.25, 0.1};
    if (options.quick) {
      fractions = {1, 0.5, 0.25};
    }
    for (const bool both : {false, true}) {
      for (const double kept : fractions) {
        KernelCase c;
        c.kernel = both ? "gathered-conv in+out" : "gathered-conv out";
        c.shape = shape_text(s);
        c.kept = kept;
        c.conditional = true;
        c.limit = Limit::f32_peak;
        add(c, threads, [=] { return gathered_contenders(s, kept, both, threads); });
      }
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
