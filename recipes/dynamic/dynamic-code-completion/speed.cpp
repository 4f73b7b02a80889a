// The engine's tokens per second, with and without exits.
#include <torch/types.h>

#include <algorithm>

#include "recipes/dynamic/dynamic-code-completion/study.h"
#include "recipes/engine_model.h"
#include "recipes/engine_race.h"
#include "sluice/base/machine.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/text/generator.h"
#endif

namespace sluice::recipes::dynamic_code_completion {

#if SLUICE_HAS_ENGINE
namespace {

constexpr int64_t kTogether = 8;

/// Greedy completions, some at a time. With exits the prompt takes the whole depth.
class Decoding {
 public:
  Decoding(const engine::Network& network, int64_t together, bool exits)
      : generator_(network, nullptr, options(together, exits)) {}

  void complete(const std::vector<engine::GenerationRequest>& requests) {
    results_ = generator_.run(requests);
  }
  const std::vector<engine::Generated>& results() const { return results_; }
  /// Of the last complete(), without the first tokens, which the prompts give.
  double seconds() const { return generator_.statistics().decode_seconds; }
  double macs() const { return double(generator_.statistics().decode_macs); }

 private:
  static engine::Generator::Options options(int64_t together, bool exits) {
    engine::Generator::Options options{.batch = together, .threads = 1};
    if (exits) {
      options.size = 0;
      options.prompt_size = 1;
    }
    return options;
  }
  engine::Generator generator_;
  std::vector<engine::Generated> results_;
};

}  // namespace

void measure_speed(RecipeRun& run, const Plan& plan, const lab::Model& decoder,
                   const lab::Model& exits, const at::Tensor& windows,
                   const Completions& expected) {
  const std::string& folder = run.options.work_directory;
  const auto plain = in_engine(decoder, folder + "/decoder.safetensors"),
             early = in_engine(exits, folder + "/exits.safetensors");
  const int64_t count = std::min(plan.timed_cuts, windows.size(0));
  std::vector<engine::GenerationRequest> requests;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor ids =
        windows.select(0, i).narrow(0, 0, plan.prompt).to(at::kInt).cpu().contiguous();
    requests.push_back({.prompt = {ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + plan.prompt},
                        .max_tokens = plan.completion});
  }
  const double tokens = double(count * (plan.completion - 1));
  const int64_t batch = std::min(kTogether, count);
  std::vector<Lap> laps(2);
  int64_t agree = 0;
  for (const int64_t together : {int64_t{1}, batch}) {
    Decoding of_plain(plain, together, false), of_early(early, together, true);
    std::vector<double> seconds[2];
    for (int64_t round = -1; round < plan.rounds; ++round) {  // the first is for warming up
      for (Decoding* one : {&of_plain, &of_early}) {
        one->complete(requests);
        if (round >= 0) seconds[one == &of_early ? 1 : 0].push_back(one->seconds());
      }
    }
    const Decoding* both[2] = {&of_plain, &of_early};
    for (size_t i = 0; i < 2; ++i) {
      (together == 1 ? laps[i].seconds_alone : laps[i].seconds_batched) =
          median(seconds[i]) / tokens;
      (together == 1 ? laps[i].macs_alone : laps[i].macs_batched) = both[i]->macs() / tokens;
    }
    if (together != 1) continue;
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto& found = of_early.results()[i].tokens;
      agree += std::vector<int64_t>(found.begin(), found.end()) == expected.found[i] ? 1 : 0;
    }
  }
  report_race(run,
              {{.arm = "full", .role = "baseline", .network = &plain},
               {.arm = "sec", .role = "system", .network = &early}},
              laps, batch, "a token behind the first of a completion");
  run.report.add("sec", "system", "speedup", laps[0].seconds_alone / laps[1].seconds_alone);
  run.report.add("sec", "system", "engine_agreement", double(agree) / double(count));
}

#else

void measure_speed(RecipeRun& run, const Plan&, const lab::Model&, const lab::Model&,
                   const at::Tensor&, const Completions&) {
  run.report.notes.push_back("built without the engine: no times");
}

#endif

}  // namespace sluice::recipes::dynamic_code_completion
