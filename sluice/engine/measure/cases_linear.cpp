// Linear layers with something left out or put beside: leading parts of nested weights, low-rank
// adapters.
#include <fmt/core.h>

#include <cmath>

#include "sluice/engine/kernel/lora.h"
#include "sluice/engine/kernel/prefix_linear.h"
#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

/// The leading part of rows and columns that has `kept` of the weights.
std::vector<Contender> prefix_contenders(int64_t rows, int64_t size, double kept, int threads,
                                         int64_t cold) {
  struct State {
    std::optional<Rotation<std::unique_ptr<BoundKernel>>> copies;
    BoundKernel* latest = nullptr;
  };
  const std::vector<float> x = random_values(rows * size, 1),
                           weight = random_values(size * size, 2, 0.05f);
  const int64_t part = std::lround(static_cast<double>(size) * std::sqrt(kept));
  auto state = std::make_shared<State>();
  state->copies.emplace(cold, size * size * 4, [&](int64_t) {
    const Kernel kernel =
        make_prefix_linear(rows, size, size, weight, {}, {{part, part}, {size, size}}, threads);
    return std::make_unique<BoundKernel>(kernel, std::vector<std::span<const float>>{x},
                                         rows * size, part < size ? 0 : 1);
  });
  const LinearProblem problem{rows, size, size, x, weight, threads, cold};
  const double share = static_cast<double>(part * part) / static_cast<double>(size * size);
  Contender ours;
  ours.name = "sluice";
  ours.bytes = 4.0 * static_cast<double>(part * part);
  ours.operations = problem.operations() * share;
  ours.run = [state] {
    state->latest = state->copies->next().get();
    state->latest->run();
  };
  ours.output = [state] { return state->latest->output(); };
  std::vector<Contender> contenders{ours, dense_linear(problem, Role::dense)};
  // The libraries get a layer of just that size, cut out beforehand.
  std::vector<float> cut_x, cut_weight;
  for (int64_t r = 0; r < rows; ++r) {
    cut_x.insert(cut_x.end(), x.begin() + r * size, x.begin() + r * size + part);
  }
  for (int64_t o = 0; o < part; ++o) {
    cut_weight.insert(cut_weight.end(), weight.begin() + o * size,
                      weight.begin() + o * size + part);
  }
  add_linear_rivals({rows, part, part, cut_x, cut_weight, threads, cold}, contenders);
  if (part < size) {
    for (size_t i = 1; i < contenders.size(); ++i) {
      contenders[i].output = {};
      if (contenders[i].role == Role::rival) {
        contenders[i].note = "a layer of the kept size, cut out beforehand";
      }
    }
  }
  return contenders;
}

std::vector<Contender> lora_contenders(int64_t rows, int64_t size, int64_t rank, int64_t adapters,
                                       int threads, int64_t cold) {
  struct State {
    std::vector<std::vector<float>> values;
    Lora lora;
    std::vector<float> x, y, adapter;
    Buffer scratch;
  };
  auto state = std::make_shared<State>();
  State& s = *state;
  const auto view = [&](int64_t r, int64_t c) {
    s.values.push_back(random_values(r * c, s.values.size() + 2, 0.05f));
    return bundle::view_packed(bundle::Format::f32, r, c, std::as_bytes(std::span(s.values.back())),
                               "adapter");
  };
  for (int64_t a = 0; a < adapters; ++a) {
    s.lora.a.push_back(view(rank, size));
    s.lora.b.push_back(view(rank, size));
  }
  s.x = random_values(rows * size, 1);
  s.y.resize(static_cast<size_t>(rows * size));
  for (int64_t r = 0; r < rows; ++r) {
    s.adapter.push_back(static_cast<float>(r % adapters));
  }
  s.scratch = Buffer(lora_scratch(s.lora, rows, threads));
  Contender ours;
  ours.name = "sluice";
  ours.bytes = 8.0 * static_cast<double>(adapters * rank * size);
  ours.operations = 4.0 * static_cast<double>(rows * rank * size);
  ours.note = fmt::format("{} adapters of rank {}, one a row", adapters, rank);
  ours.run = [state, rows, threads] {
    State& s = *state;
    run_lora(s.lora, s.x.data(), s.adapter.data(), s.y.data(), static_cast<size_t>(rows),
             s.scratch.data(), threads, nullptr);
  };
  const std::vector<float> weight = random_values(size * size, 2, 0.05f);
  std::vector<Contender> contenders{
      ours, dense_linear({rows, size, size, s.x, weight, threads, cold}, Role::dense)};
  contenders[1].note = "the layer that the adapters stand beside";
  contenders[1].output = {};
  // Rows sorted by adapter beforehand.
  const int64_t each = rows / adapters;
  const std::span<const float> x(s.x.data(), static_cast<size_t>(each * size));
  const std::vector<float> code = random_values(each * rank, 3);
  auto first = onednn_matmul({each, size, rank, x, s.values[0], threads, 0}, Precision::f32);
  auto second = onednn_matmul({each, rank, size, code, s.values[1], threads, 0}, Precision::f32);
  if (first && second) {
    Contender rival;
    rival.name = "oneDNN matmuls f32";
    rival.role = Role::rival;
    rival.bytes = ours.bytes;
    rival.operations = ours.operations;
    rival.note = "both products of every adapter, rows sorted by adapter beforehand";
    rival.run = [adapters, first = first->run, second = second->run] {
      for (int64_t a = 0; a < adapters; ++a) {
        first();
        second();
      }
    };
    contenders.push_back(std::move(rival));
  }
  return contenders;
}

}  // namespace

std::vector<KernelCase> linear_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const int64_t cold = cold_bytes(options);
  for (const int64_t batch : {1, 64}) {
    for (const int threads : options.threads) {
      for (const double kept : {1.0, 0.5, 0.25, 0.1}) {
        const int64_t size = options.quick ? 64 : 2048;
        KernelCase c;
        c.kernel = "prefix-linear f32";
        c.shape = fmt::format("{}x{} batch {}", size, size, batch);
        c.threads = threads;
        c.kept = kept;
        c.conditional = true;
        c.limit = batch == 1 ? Limit::read_bandwidth : Limit::f32_peak;
        c.prepare = [=] {
          return prefix_contenders(batch, size, kept, threads, batch == 1 ? cold : 0);
        };
        cases.push_back(std::move(c));
      }
    }
  }
  for (const int threads : options.threads) {
    const int64_t size = options.quick ? 64 : 4096, rank = options.quick ? 4 : 16;
    KernelCase c;
    c.kernel = "lora f32";
    c.shape = fmt::format("{}x{} rank {}, 4 adapters, batch 8", size, size, rank);
    c.threads = threads;
    c.prepare = [=] { return lora_contenders(8, size, rank, 4, threads, cold); };
    cases.push_back(std::move(c));
  }
  return cases;
}

}  // namespace sluice::engine::measure
