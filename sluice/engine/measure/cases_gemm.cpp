// Matrix products of many rows: the engine's paths against oneDNN called directly.
#include <fmt/core.h>

#include "sluice/engine/kernel/gemm.h"
#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

using bundle::Format;

// The weights are reused within a call, which takes far longer than reading them: no copies.
constexpr int64_t kCold = 0;

std::vector<Contender> f32_contenders(int64_t rows, int64_t in, int64_t out, int threads) {
  const std::vector<float> x = random_values(rows * in, 1);
  const std::vector<float> weight = random_values(in * out, 2, 0.05f);
  const LinearProblem problem{rows, in, out, x, weight, threads, kCold};
  std::vector<Contender> contenders{dense_linear(problem, Role::ours)};
  add_linear_rivals(problem, contenders);
  return contenders;
}

std::vector<Contender> packed_contenders(Format format, int64_t rows, int64_t in, int64_t out,
                                         int threads) {
  struct State {
    std::vector<std::byte> bytes;
    onednn::PackCache cache;
    std::optional<BoundKernel> kernel;
  };
  const std::vector<float> x = random_values(rows * in, 1);
  PackedSource source(format, random_values(in * out, 2, 0.05f), out, in);
  auto state = std::make_shared<State>();
  state->bytes = std::move(source.bytes);
  PackedLinear layer;
  layer.weight = bundle::view_packed(format, out, in, state->bytes, "weights");
  layer.kind = format == Format::bf16 ? DotKind::bf16 : DotKind::i8;
  layer.threads = threads;
  const Kernel kernel = make_packed_linear(layer, rows, 1, state->cache, "w");
  state->kernel.emplace(kernel, std::vector<std::span<const float>>{x}, rows * out);
  const LinearProblem problem{rows, in, out, x, source.values, threads, kCold};
  Contender ours;
  ours.name = "sluice";
  ours.bytes = static_cast<double>(state->bytes.size());
  ours.operations = problem.operations();
  ours.note = "activations rounded to bf16 or int8 in the timed call";
  ours.run = [state] { state->kernel->run(); };
  ours.output = [state] { return state->kernel->output(); };
  std::vector<Contender> contenders{ours, dense_linear(problem, Role::dense)};
  add_linear_rivals(problem, contenders,
                    format == Format::bf16 ? Precision::bf16
                    : format == Format::i8 ? Precision::int8
                                           : Precision::f32);
  for (Contender& contender : contenders) {
    contender.tolerance = 3e-2;
  }
  return contenders;
}

}  // namespace

std::vector<KernelCase> gemm_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const int64_t in = options.quick ? 64 : 4096, out = options.quick ? 48 : 4096;
  for (const Format format :
       {Format::f32, Format::bf16, Format::i8, Format::i4_group, Format::ternary, Format::binary}) {
    for (const int threads : options.threads) {
      for (const int64_t batch : {64, 512}) {
        if (batch > 64 && format > Format::i4_group) {
          continue;
        }
        const int64_t rows = options.quick ? batch / 16 : batch;
        KernelCase c;
        c.kernel = fmt::format("gemm {}", bundle::format_name(format));
        c.shape = fmt::format("{}x{} batch {}", out, in, rows);
        c.threads = threads;
        c.limit = format == Format::f32    ? Limit::f32_peak
                  : format == Format::bf16 ? Limit::none
                                           : Limit::int8_peak;
        c.prepare = [=] {
          return format == Format::f32 ? f32_contenders(rows, in, out, threads)
                                       : packed_contenders(format, rows, in, out, threads);
        };
        cases.push_back(std::move(c));
      }
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
