// Kernels whose work the input decides, over the kept fraction: inputs of a linear layer, neurons
// and experts of a feed-forward layer. What a call keeps changes from call to call, so that kept
// weights are as cold as the rest.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/experts.h"
#include "sluice/engine/kernel/gathered_linear.h"
#include "sluice/engine/kernel/sparse_ffn.h"
#include "sluice/engine/kernel/sparse_input.h"
#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

using bundle::Format;

constexpr double kKept[] = {1.0, 0.8, 0.5, 0.35, 0.2, 0.1};
constexpr double kAwake[] = {1.0, 0.5, 0.25, 0.08};

/// Vectors of n numbers of which `kept` stand out: consecutive ones stand out in other places until
/// every place had its turn.
std::vector<std::vector<float>> changing_inputs(int64_t n, int64_t kept, uint64_t seed) {
  std::vector<size_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(seed);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  std::vector<std::vector<float>> inputs;
  const int64_t turns = std::max<int64_t>(1, n / std::max<int64_t>(kept, 1));
  for (int64_t turn = 0; turn < turns; ++turn) {
    std::vector<float> x = random_values(n, seed + 1 + static_cast<uint64_t>(turn));
    for (float& v : x) v = std::clamp(v, -1.0f, 1.0f);
    for (int64_t i = 0; i < kept; ++i) {
      float& v = x[order[static_cast<size_t>(turn * kept + i)]];
      v = v < 0 ? v - 2 : v + 2;
    }
    inputs.push_back(std::move(x));
  }
  return inputs;
}

/// Packed matrices of the latest format: packing takes longer than measuring.
struct Latest {
  std::map<std::string, PackedSource> sources;
  Format format = Format::mixed;
  const PackedSource& of(Format wanted, const std::string& name, int64_t rows, int64_t columns) {
    if (format != wanted) sources.clear();
    format = wanted;
    const auto found = sources.find(name);
    if (found != sources.end()) return found->second;
    return sources
        .emplace(name,
                 PackedSource(wanted, random_values(rows * columns, sources.size() + 2, 0.05f),
                              rows, columns))
        .first->second;
  }
};

/// `turned`: rows of outputs, for the dense product; which numbers they hold does not change its
/// time.
std::vector<Contender> sparse_gemv(const PackedSource& weight, const PackedSource& turned,
                                   double share, int threads, int64_t cold) {
  struct State {
    Rotation<PackedCopy> copies;
    std::vector<std::vector<float>> inputs;
    SparseInput layer;
    std::vector<float> y;
    Buffer scratch;
    int threads;
    size_t turn = 0;
  };
  const int64_t in = weight.rows, out = weight.columns,
                kept = static_cast<int64_t>(std::lround(share * static_cast<double>(in)));
  auto state = std::make_shared<State>(
      State{copies_of(weight, cold), changing_inputs(in, kept, 7), {}, {}, {}, threads});
  state->layer.weight = state->copies.next().matrix;
  state->layer.select = {Selector::Kind::top_k, Rank::magnitude, kept};
  state->y.resize(static_cast<size_t>(out));
  state->scratch = Buffer(sparse_input_scratch(state->layer, threads));
  Contender ours;
  ours.name = "sluice";
  ours.bytes = static_cast<double>(kept * state->layer.weight.row_bytes());
  ours.operations = 2.0 * static_cast<double>(kept * out);
  ours.run = [state] {
    State& s = *state;
    s.layer.weight = s.copies.next().matrix;
    const std::vector<float>& x = s.inputs[s.turn++ % s.inputs.size()];
    run_sparse_input(s.layer, x.data(), s.y.data(), 1, s.scratch.data(), s.threads, nullptr);
  };
  const LinearProblem problem{1, in, out, state->inputs[0], turned.values, threads, cold};
  std::vector<Contender> contenders{ours, packed_linear(turned, problem, Role::dense)};
  if (weight.format == Format::f32) {
    add_linear_rivals(problem, contenders);
  }
  for (Contender& contender : contenders) contender.output = {};
  return contenders;
}

/// A query projection of which heads of `head` outputs are closed.
std::vector<Contender> gathered_gemv(const PackedSource& weight, int64_t head, double share,
                                     int threads, int64_t cold) {
  struct State {
    Rotation<PackedCopy> copies;
    std::vector<std::vector<float>> masks;
    std::vector<float> x, y;
    GatheredLinear layer;
    Buffer scratch;
    int threads;
    size_t turn = 0;
  };
  const int64_t out = weight.rows, in = weight.columns, units = out / head,
                kept = std::max<int64_t>(1, std::lround(share * static_cast<double>(units)));
  auto state = std::make_shared<State>(State{copies_of(weight, cold), {}, {}, {}, {}, {}, threads});
  State& s = *state;
  // Those that stand out are open, in other places each time.
  for (std::vector<float> mask : changing_inputs(units, kept, 9)) {
    for (float& v : mask) v = std::fabs(v) > 1.5f ? 1.0f : 0.0f;
    s.masks.push_back(std::move(mask));
  }
  s.x = random_values(in, 7);
  s.y.resize(static_cast<size_t>(out));
  s.layer.weight = s.copies.next().matrix;
  s.layer.units = units;
  s.scratch = Buffer(gathered_linear_scratch(s.layer));
  Contender ours;
  ours.name = "sluice";
  ours.bytes = static_cast<double>(kept * head * s.layer.weight.row_bytes());
  ours.operations = 2.0 * static_cast<double>(kept * head * in);
  ours.run = [state] {
    State& s = *state;
    s.layer.weight = s.copies.next().matrix;
    const std::vector<float>& mask = s.masks[s.turn++ % s.masks.size()];
    run_gathered_linear(s.layer, s.x.data(), mask.data(), s.y.data(), 1, s.scratch.data(),
                        s.threads, nullptr);
  };
  const LinearProblem problem{1, in, out, s.x, weight.values, threads, cold};
  std::vector<Contender> contenders{ours, packed_linear(weight, problem, Role::dense)};
  if (weight.format == Format::f32) add_linear_rivals(problem, contenders);
  for (Contender& contender : contenders) contender.output = {};
  return contenders;
}

/// The three products of the dense layer through oneDNN.
std::optional<Contender> ffn_rival(std::span<const float> up, std::span<const float> down,
                                   int64_t width, int64_t neurons, int threads, int64_t cold) {
  const std::vector<float> x = random_values(neurons, 5);
  const std::span<const float> narrow(x.data(), static_cast<size_t>(width));
  const LinearProblem in{1, width, neurons, narrow, up, threads, cold / 3},
      out{1, neurons, width, x, down, threads, cold / 3};
  auto first = onednn_matmul(in, Precision::f32), second = onednn_matmul(in, Precision::f32),
       third = onednn_matmul(out, Precision::f32);
  if (!first || !second || !third) return std::nullopt;
  Contender rival;
  rival.name = "oneDNN matmuls f32";
  rival.role = Role::rival;
  rival.note = "the three dense products alone";
  rival.bytes = first->bytes + second->bytes + third->bytes;
  rival.operations = first->operations + second->operations + third->operations;
  rival.run = [first = first->run, second = second->run, third = third->run] {
    first();
    second();
    third();
  };
  return rival;
}

std::vector<Contender> sparse_ffn(Latest& latest, Format format, int64_t width, int64_t neurons,
                                  double share, int threads, int64_t cold) {
  struct Copy {
    PackedCopy up, gate, down;
  };
  struct State {
    std::vector<std::vector<float>> scores;
    std::vector<float> x, y;
    SparseFfn layer;
    Buffer scratch;
    int threads = 1;
    size_t turn = 0;
  };
  const auto source = [&](const char* name) -> const PackedSource& {
    return latest.of(format, name, neurons, width);
  };
  const PackedSource &up = source("up"), &gate = source("gate"), &down = source("down");
  const int64_t kept = static_cast<int64_t>(std::lround(share * static_cast<double>(neurons)));
  const int64_t bytes = static_cast<int64_t>(3 * up.bytes.size());
  const auto copies = std::make_shared<Rotation<Copy>>(cold, bytes, [&](int64_t) {
    return Copy{std::move(copies_of(up, 0).next()), std::move(copies_of(gate, 0).next()),
                std::move(copies_of(down, 0).next())};
  });
  auto state = std::make_shared<State>();
  state->scores = changing_inputs(neurons, kept, 9);
  for (auto& scores : state->scores)
    for (float& s : scores) s = std::fabs(s);
  state->x = random_values(width, 3);
  state->y.resize(static_cast<size_t>(width));
  state->threads = threads;
  SparseFfn& layer = state->layer;
  const auto use = [](SparseFfn& to, const Copy& copy) {
    to.up = copy.up.matrix;
    to.gate = copy.gate.matrix;
    to.down = copy.down.matrix;
  };
  use(layer, copies->next());
  layer.activation = Activation::silu;
  layer.kind = format == Format::f32 ? DotKind::f32 : DotKind::i8;
  layer.source = SparseFfn::Source::input;
  layer.select = {Selector::Kind::top_k, Rank::value, kept};
  state->scratch = Buffer(sparse_ffn_scratch(layer, threads));
  const double all = static_cast<double>(bytes);
  Contender ours, dense;
  ours.name = "sluice";
  ours.bytes = all * static_cast<double>(kept) / static_cast<double>(neurons);
  ours.operations = 6.0 * static_cast<double>(kept * width);
  ours.note = "gated, scores of the neurons given";
  ours.run = [state, copies, use] {
    State& s = *state;
    use(s.layer, copies->next());
    const float* scores = s.scores[s.turn++ % s.scores.size()].data();
    run_sparse_ffn(s.layer, s.x.data(), scores, s.y.data(), 1, s.scratch.data(), s.threads,
                   nullptr);
  };
  dense.name = fmt::format("sluice dense {}", bundle::format_name(format));
  dense.role = Role::dense;
  dense.bytes = all;
  dense.operations = 6.0 * static_cast<double>(neurons * width);
  dense.note = "down stored by output";
  // As many bytes in rows of outputs; which numbers they hold does not change the time.
  const auto turned = std::make_shared<Rotation<PackedCopy>>(
      copies_of(latest.of(format, "turned", width, neurons), cold / 3));
  struct Hidden {
    std::vector<float> first, second;
    Buffer scratch;
  };
  const auto hidden = std::make_shared<Hidden>();
  hidden->first.resize(static_cast<size_t>(neurons));
  hidden->second.resize(static_cast<size_t>(neurons));
  hidden->scratch = Buffer(dot_scratch_bytes(format, layer.kind, std::max(width, neurons), 1));
  dense.run = [state, copies, turned, hidden, use] {
    State& s = *state;
    use(s.layer, copies->next());
    float *h = hidden->first.data(), *u = hidden->second.data();
    const auto product = [&](const bundle::PackedMatrix& m, const float* x, float* y) {
      packed_dot(m, prepare_dot(m, s.layer.kind, x, m.columns, 1, hidden->scratch.data()), y,
                 m.rows, s.threads);
    };
    product(s.layer.gate, s.x.data(), h);
    product(s.layer.up, s.x.data(), u);
    activate(s.layer.activation, h, h, hidden->first.size());
    multiply(h, u, h, hidden->first.size());
    product(turned->next().matrix, h, s.y.data());
  };
  std::vector<Contender> contenders{ours, dense};
  if (format == Format::f32) {
    if (auto rival = ffn_rival(up.values, down.values, width, neurons, threads, cold)) {
      contenders.push_back(std::move(*rival));
    }
  }
  return contenders;
}

/// 8 experts, 2 a token, beside two dense layers that each do all tokens.
std::vector<Contender> grouped_experts(int64_t rows, int64_t width, int64_t hidden, int threads) {
  constexpr int64_t kExperts = 8, kTop = 2;
  struct State {
    std::vector<std::vector<float>> up, down;
    Experts experts;
    std::vector<float> x, logits, y;
    Buffer scratch;
    onednn::PackCache cache;
    std::vector<std::unique_ptr<BoundKernel>> dense_up, dense_down;
  };
  auto state = std::make_shared<State>();
  State& s = *state;
  s.x = random_values(rows * width, 1);
  s.logits = random_values(rows * kExperts, 2);
  s.y.resize(static_cast<size_t>(rows * width));
  const auto view = [](const std::vector<float>& values, int64_t r, int64_t c) {
    return bundle::view_packed(Format::f32, r, c, std::as_bytes(std::span(values)), "experts");
  };
  for (int64_t e = 0; e < kExperts; ++e) {
    s.up.push_back(random_values(hidden * width, 3 + static_cast<uint64_t>(2 * e), 0.05f));
    s.down.push_back(random_values(hidden * width, 4 + static_cast<uint64_t>(2 * e), 0.05f));
    s.experts.up.push_back(view(s.up.back(), hidden, width));
    s.experts.down.push_back(view(s.down.back(), hidden, width));
  }
  s.experts.activation = Activation::relu;
  s.experts.top_k = kTop;
  make_expert_panels(s.experts);
  s.scratch = Buffer(experts_scratch(s.experts, rows, threads));
  onednn::Tail relu;
  relu.activation = Activation::relu;
  const std::vector<float> zeros(static_cast<size_t>(rows * hidden));
  for (int64_t i = 0; i < kTop; ++i) {
    const size_t e = static_cast<size_t>(i);
    s.dense_up.push_back(
        std::make_unique<BoundKernel>(onednn::make_linear(rows, width, hidden, relu, s.up[e], {},
                                                          threads, s.cache, fmt::format("up{}", i)),
                                      std::vector<std::span<const float>>{s.x}, rows * hidden));
    s.dense_down.push_back(std::make_unique<BoundKernel>(
        onednn::make_linear(rows, hidden, width, {}, s.down[e], {}, threads, s.cache,
                            fmt::format("down{}", i)),
        std::vector<std::span<const float>>{zeros}, rows * width));
  }
  const double operations = 4.0 * kTop * static_cast<double>(rows * width * hidden);
  Contender ours, dense;
  ours.name = "sluice";
  ours.bytes = 8.0 * kExperts * static_cast<double>(width * hidden);
  ours.operations = dense.operations = operations;
  ours.run = [state, threads, rows] {
    run_experts(state->experts, state->x.data(), state->logits.data(), state->y.data(),
                static_cast<size_t>(rows), state->scratch.data(), threads, nullptr);
  };
  dense.name = "sluice dense f32";
  dense.role = Role::dense;
  dense.bytes = 8.0 * kTop * static_cast<double>(width * hidden);
  dense.note = "two layers of all tokens, through oneDNN";
  dense.run = [state] {
    for (size_t i = 0; i < state->dense_up.size(); ++i) {
      state->dense_up[i]->run();
      state->dense_down[i]->run();
    }
  };
  return {ours, dense};
}

}  // namespace

std::vector<KernelCase> conditional_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const bool quick = options.quick;
  const auto latest = std::make_shared<Latest>();
  const int64_t size = quick ? 96 : 4096, width = quick ? 64 : 2048, neurons = quick ? 100 : 8192;
  const int64_t cold = cold_bytes(options);
  constexpr Format kFormats[] = {Format::f32, Format::i8, Format::i4_group};
  for (const Format format : kFormats) {
    for (const int threads : options.threads) {
      for (const double kept : kKept) {
        KernelCase c;
        c.kernel = fmt::format("sparse-gemv {}", bundle::format_name(format));
        c.shape = fmt::format("{}x{} batch 1", size, size);
        c.threads = threads;
        c.kept = kept;
        c.conditional = true;
        c.limit = Limit::read_bandwidth;
        c.prepare = [=] {
          return sparse_gemv(latest->of(format, "weight", size, size),
                             latest->of(format, "turned", size, size), kept, threads, cold);
        };
        cases.push_back(std::move(c));
      }
    }
  }
  for (const Format format : kFormats) {
    for (const int threads : options.threads) {
      for (const double kept : kAwake) {
        KernelCase c;
        c.kernel = fmt::format("sparse-ffn {}", bundle::format_name(format));
        c.shape = fmt::format("{}-{}-{} batch 1", width, neurons, width);
        c.threads = threads;
        c.kept = kept;
        c.conditional = true;
        c.limit = Limit::read_bandwidth;
        c.prepare = [=] {
          return sparse_ffn(*latest, format, width, neurons, kept, threads, cold);
        };
        cases.push_back(std::move(c));
      }
    }
  }
  for (const Format format : {Format::f32, Format::i8}) {
    for (const int threads : options.threads) {
      for (const double kept : kAwake) {
        KernelCase c;
        const int64_t head = quick ? 8 : 64;
        c.kernel = fmt::format("gathered-gemv {}", bundle::format_name(format));
        c.shape = fmt::format("{}x{} heads of {} batch 1", size, size, head);
        c.threads = threads;
        c.kept = kept;
        c.conditional = true;
        c.limit = Limit::read_bandwidth;
        c.prepare = [=] {
          return gathered_gemv(latest->of(format, "turned", size, size), head, kept, threads, cold);
        };
        cases.push_back(std::move(c));
      }
    }
  }
  // 17 MB of weights, which the last-level cache may hold, and 34 MB, which it does not.
  for (const int threads : options.threads) {
    for (const auto [rows, d, f] : {std::array<int64_t, 3>{64, 256, 1024},
                                    {256, 256, 1024},
                                    {64, 512, 1024},
                                    {256, 512, 1024}}) {
      if (quick && d != 256) continue;
      KernelCase c;
      c.kernel = "experts f32";
      c.shape = fmt::format("8 experts {}-{}-{}, 2 of them, batch {}", d, f, d, rows);
      c.threads = threads;
      c.kept = 0.25;
      c.limit = Limit::f32_peak;
      const int64_t part = quick ? 8 : 1;
      c.prepare = [=, rows = rows, d = d / part, f = f / part] {
        return grouped_experts(rows, d, f, threads);
      };
      cases.push_back(std::move(c));
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
