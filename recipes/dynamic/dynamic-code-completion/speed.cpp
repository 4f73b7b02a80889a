// The engine's tokens per second, with and without exits.
#include <torch/types.h>

#include <algorithm>

#include "recipes/dynamic/dynamic-code-completion/study.h"
#include "recipes/engine_model.h"
#include "sluice/base/machine.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/text/generator.h"
#endif

namespace sluice::recipes::dynamic_code_completion {

#if SLUICE_HAS_ENGINE
namespace {

/// Greedy completions, one sequence at a time. With exits the prompt takes the whole depth.
class Decoding {
 public:
  Decoding(const Plan& plan, const engine::Network& network, bool exits)
      : plan_(plan), generator_(network, nullptr, options(exits)) {}

  /// Seconds of the tokens behind the first, which the prompt gives. `macs` counts these.
  double complete(const std::vector<int32_t>& prompt, std::vector<int64_t>& found, int64_t* macs) {
    const engine::GenerationRequest request{.prompt = prompt, .max_tokens = plan_.completion};
    const auto results = generator_.run({&request, 1});
    found.assign(results[0].tokens.begin(), results[0].tokens.end());
    const engine::GenerationStatistics& s = generator_.statistics();
    if (macs != nullptr) *macs += s.decode_macs;
    return s.decode_seconds;
  }

 private:
  static engine::Generator::Options options(bool exits) {
    engine::Generator::Options options{.batch = 1, .threads = 1};
    if (exits) {
      options.size = 0;
      options.prompt_size = 1;
    }
    return options;
  }
  const Plan& plan_;
  engine::Generator generator_;
};

}  // namespace

void measure_speed(RecipeRun& run, const Plan& plan, const lab::Model& decoder,
                   const lab::Model& exits, const at::Tensor& windows,
                   const Completions& expected) {
  const std::string& folder = run.options.work_directory;
  const auto plain = in_engine(decoder, folder + "/decoder.safetensors"),
             early = in_engine(exits, folder + "/exits.safetensors");
  Decoding of_plain(plan, plain, false), of_early(plan, early, true);
  const int64_t count = std::min(plan.timed_cuts, windows.size(0));
  std::vector<std::vector<int32_t>> prompts;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor ids =
        windows.select(0, i).narrow(0, 0, plan.prompt).to(at::kInt).cpu().contiguous();
    prompts.emplace_back(ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + plan.prompt);
  }
  std::vector<double> plain_seconds, early_seconds;
  int64_t agree = 0;
  int64_t plain_macs = 0, early_macs = 0;
  for (int64_t round = -1; round < plan.rounds; ++round) {  // the first is for warming up
    double sums[2] = {0, 0};
    for (int64_t i = 0; i < count; ++i) {
      const auto& prompt = prompts[static_cast<size_t>(i)];
      std::vector<int64_t> found;
      sums[0] += of_plain.complete(prompt, found, round < 0 ? &plain_macs : nullptr);
      sums[1] += of_early.complete(prompt, found, round < 0 ? &early_macs : nullptr);
      if (round < 0) agree += found == expected.found[static_cast<size_t>(i)] ? 1 : 0;
    }
    if (round < 0) continue;
    plain_seconds.push_back(sums[0]);
    early_seconds.push_back(sums[1]);
  }
  const double tokens = double(count * (plan.completion - 1));
  const double slow = tokens / median(plain_seconds), fast = tokens / median(early_seconds);
  Report& report = run.report;
  report.add("full", "baseline", "tokens_per_second", slow);
  report.add("full", "baseline", "macs_per_token", double(plain_macs) / tokens);
  report.add("sec", "system", "tokens_per_second", fast);
  report.add("sec", "system", "speedup", fast / slow);
  report.add("sec", "system", "macs_per_token", double(early_macs) / tokens);
  report.add("sec", "system", "engine_agreement", double(agree) / double(count));
}

#else

void measure_speed(RecipeRun& run, const Plan&, const lab::Model&, const lab::Model&,
                   const at::Tensor&, const Completions&) {
  run.report.notes.push_back("built without the engine: no times");
}

#endif

}  // namespace sluice::recipes::dynamic_code_completion
