// The engine's tokens per second, with and without exits.
#include <torch/types.h>

#include <algorithm>
#include <chrono>

#include "recipes/dynamic/dynamic-code-completion/study.h"
#include "recipes/engine_model.h"
#include "sluice/base/machine.h"

namespace sluice::recipes::dynamic_code_completion {

#if SLUICE_HAS_ENGINE
namespace {

/// Greedy completions through a session, one sequence. The prompt takes the whole depth.
class Decoding {
 public:
  Decoding(const Plan& plan, const engine::Network& network, bool exits)
      : plan_(plan),
        session_(network, {.batch = 1, .threads = 1, .sequences = true, .last_rows = 1}),
        exits_(exits),
        logits_(static_cast<size_t>(network.output_shape().back())) {}

  /// Seconds from the first token on, which the prompt gives, to the last. `meter` counts these.
  double complete(const std::vector<float>& prompt, std::vector<int64_t>& found, Meter* meter) {
    session_.reset();
    run(prompt, exits_ ? 1 : -1, nullptr);
    found = {likeliest()};
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 1; i < plan_.completion; ++i) {
      token_[0] = static_cast<float>(found.back());
      run(token_, exits_ ? 0 : -1, meter);
      found.push_back(likeliest());
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  void run(const std::vector<float>& ids, int64_t size, Meter* meter) {
    const auto tokens = static_cast<int64_t>(ids.size());
    session_.run_tokens(ids, logits_, {&tokens, 1},
                        {.meter = meter, .size = size, .last = {&one_, 1}});
  }
  int64_t likeliest() const {
    return std::max_element(logits_.begin(), logits_.end()) - logits_.begin();
  }

  const Plan& plan_;
  engine::Session session_;
  bool exits_;
  std::vector<float> logits_, token_ = {0};
  int64_t one_ = 1;
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
  std::vector<std::vector<float>> prompts;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor ids =
        windows.select(0, i).narrow(0, 0, plan.prompt).to(at::kFloat).cpu().contiguous();
    prompts.emplace_back(ids.data_ptr<float>(), ids.data_ptr<float>() + plan.prompt);
  }
  std::vector<double> plain_seconds, early_seconds;
  int64_t agree = 0;
  Meter plain_meter, early_meter;
  for (int64_t round = -1; round < plan.rounds; ++round) {  // the first is for warming up
    double sums[2] = {0, 0};
    for (int64_t i = 0; i < count; ++i) {
      const auto& prompt = prompts[static_cast<size_t>(i)];
      std::vector<int64_t> found;
      sums[0] += of_plain.complete(prompt, found, round < 0 ? &plain_meter : nullptr);
      sums[1] += of_early.complete(prompt, found, round < 0 ? &early_meter : nullptr);
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
  report.add("full", "baseline", "macs_per_token", double(plain_meter.macs()) / tokens);
  report.add("sec", "system", "tokens_per_second", fast);
  report.add("sec", "system", "speedup", fast / slow);
  report.add("sec", "system", "macs_per_token", double(early_meter.macs()) / tokens);
  report.add("sec", "system", "engine_agreement", double(agree) / double(count));
}

#else

void measure_speed(RecipeRun& run, const Plan&, const lab::Model&, const lab::Model&,
                   const at::Tensor&, const Completions&) {
  run.report.notes.push_back("built without the engine: no times");
}

#endif

}  // namespace sluice::recipes::dynamic_code_completion
