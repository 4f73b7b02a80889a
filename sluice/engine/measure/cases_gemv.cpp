// Packed matrices times a few rows: decoding, where reading the weights is the work.
#include <fmt/core.h>

#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

using bundle::Format;

/// The weights of the latest case: packing takes longer than measuring, and cases of one format
/// follow each other.
struct LatestWeights {
  std::optional<PackedSource> source, plain;  ///< plain: the same values in f32
  void make(Format format, int64_t in, int64_t out) {
    if (!source || source->format != format) {
      source.reset();
      plain.reset();
      source.emplace(format, random_values(in * out, 2, 0.05f), out, in);
      plain.emplace(Format::f32, source->values, out, in);
    }
  }
};

std::vector<Contender> gemv_contenders(const LatestWeights& weights, int64_t rows, int threads,
                                       int64_t cold) {
  const PackedSource& packed = *weights.source;
  const Format format = packed.format;
  const int64_t in = packed.columns, out = packed.rows;
  const std::vector<float> x = random_values(rows * in, 1);
  // The rivals multiply by the values that the codes stand for.
  const LinearProblem problem{rows, in, out, x, packed.values, threads, cold};
  std::vector<Contender> contenders{packed_linear(packed, problem, Role::ours)};
  if (format != Format::f32) {
    contenders.push_back(packed_linear(*weights.plain, problem, Role::dense));
  }
  const bool eight = format == Format::i8 || format == Format::i8_group;
  add_linear_rivals(problem, contenders,
                    eight                    ? Precision::int8
                    : format == Format::bf16 ? Precision::bf16
                                             : Precision::f32);
  for (size_t i = 1; i < contenders.size(); ++i) {
    // Ours rounds the activations, the f32 ones do not.
    contenders[i].tolerance = format == Format::f32 ? 1e-4 : 3e-2;
  }
  return contenders;
}

}  // namespace

std::vector<KernelCase> gemv_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const int64_t in = options.quick ? 128 : 4096, out = options.quick ? 48 : 4096;
  const auto weights = std::make_shared<LatestWeights>();
  for (const Format format : bundle::all_formats()) {
    for (const int threads : options.threads) {
      for (const int64_t rows : {1, 4}) {
        // Several rows read the weights once as well: a few formats show it.
        if (rows > 1 && format != Format::f32 && format != Format::i8 &&
            format != Format::i4_group && format != Format::binary) {
          continue;
        }
        KernelCase c;
        c.kernel = fmt::format("gemv {}", bundle::format_name(format));
        c.shape = fmt::format("{}x{} batch {}", out, in, rows);
        c.threads = threads;
        c.limit = Limit::read_bandwidth;
        c.prepare = [=, cold = cold_bytes(options)] {
          weights->make(format, in, out);
          return gemv_contenders(*weights, rows, threads, cold);
        };
        cases.push_back(std::move(c));
      }
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
