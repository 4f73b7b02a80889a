// The nested network in the engine: every size from one file, drafts from the same file.
#include <torch/types.h>

#include <cmath>

#include "recipes/elastic/matformer/study.h"
#include "recipes/engine_model.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/random.h"
#include "sluice/lab/pass/pass.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#include "sluice/engine/text/generator.h"
#endif

namespace sluice::recipes::matformer {
namespace {

/// Largest relative difference between sizes of the nested network and the networks cut out of it.
double slice_difference(const lab::Model& nested, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  lab::Model whole = lab::clone(nested);
  double largest = 0;
  for (size_t i = 0; i < nested.sizes.size(); ++i) {
    lab::PassInput input;
    input.options = {{"size", nested.sizes[i].name}};
    lab::Model cut = lab::run_pass(nested, "pick-size", input);
    lab::Context of_whole, of_cut;
    of_whole.size = static_cast<int64_t>(i);
    const at::Tensor a = whole.forward(x, of_whole), b = cut.forward(x, of_cut);
    largest = std::max(largest, ((a - b).norm() / b.norm()).item<double>());
  }
  return largest;
}

#if SLUICE_HAS_ENGINE

/// The same between lab and engine; and the largest difference of metered MACs.
void measure_parity(RecipeRun& run, const lab::Model& nested, const engine::Network& network,
                    const at::Tensor& ids) {
  const at::NoGradGuard no_grad;
  lab::Model model = lab::clone(nested);
  model.root->to(c10::kCPU);
  const at::Tensor floats = ids.to(at::kFloat).contiguous();
  engine::Session session(network, {.batch = ids.size(0), .threads = 1});
  double largest = 0, macs = 0;
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    Meter in_lab, in_engine;
    lab::Context context;
    context.size = static_cast<int64_t>(i);
    context.meter = &in_lab;
    const at::Tensor expected = model.forward(ids, context).contiguous();
    at::Tensor found = at::empty_like(expected);
    session.reset();
    session.run({floats.data_ptr<float>(), static_cast<size_t>(floats.numel())},
                {found.data_ptr<float>(), static_cast<size_t>(found.numel())},
                {.meter = &in_engine, .size = context.size});
    largest = std::max(largest, ((found - expected).norm() / expected.norm()).item<double>());
    macs = std::max(macs, std::abs(double(in_lab.macs() - in_engine.macs())));
  }
  run.report.add("matlm", "system", "engine_difference", largest);
  run.report.add("matlm", "system", "meter_difference", macs);
}

std::vector<engine::GenerationRequest> requests_of(const Plan& plan, const Study& study,
                                                   uint64_t seed, double temperature) {
  const at::Tensor windows = held_out_windows(study, plan.prompts, plan.prompt_tokens);
  std::vector<engine::GenerationRequest> requests;
  for (int64_t i = 0; i < plan.prompts; ++i) {
    engine::GenerationRequest request;
    const int64_t* ids = windows.data_ptr<int64_t>() + i * plan.prompt_tokens;
    for (int64_t t = 0; t < plan.prompt_tokens; ++t)
      request.prompt.push_back(static_cast<int32_t>(ids[t]));
    request.max_tokens = plan.generated_tokens;
    request.sampling.temperature = temperature;
    request.sampling.seed = derive_seed(seed, "sampling", static_cast<uint64_t>(i));
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Pair {
  const char *arm, *role;
  const engine::Network *whole, *draft;
  int64_t draft_size;
};

engine::Generator generator_of(const Plan& plan, const Pair& pair, bool drafted) {
  engine::Generator::Options options{.batch = 1, .threads = 1};
  if (drafted) {
    options.draft = pair.draft;
    options.draft_size = pair.draft_size;
    options.draft_tokens = plan.draft_tokens;
  }
  return {*pair.whole, nullptr, options};
}

void measure_speculation(RecipeRun& run, const Plan& plan, const Study& study, const Pair& pair,
                         uint64_t seed, bool timed) {
  for (const double temperature : {0.0, 1.0}) {
    const auto requests = requests_of(plan, study, seed, temperature);
    engine::Generator drafted = generator_of(plan, pair, true);
    const auto found = drafted.run(requests);
    const engine::GenerationStatistics& s = drafted.statistics();
    const double rounds = std::max<double>(1, double(s.decoded_tokens - s.accepted));
    const std::string ending = temperature == 0 ? "" : "_sampled";
    run.report.add(pair.arm, pair.role, "accepted_length" + ending, double(s.accepted) / rounds);
    if (temperature > 0) continue;
    engine::Generator plain = generator_of(plan, pair, false);
    const auto expected = plain.run(requests);
    double same = 0;
    for (size_t i = 0; i < found.size(); ++i) same += found[i].tokens == expected[i].tokens ? 1 : 0;
    run.report.add(pair.arm, pair.role, "greedy_identical", same / double(found.size()));
    if (!timed) continue;
    const std::vector<engine::GenerationRequest> few(
        requests.begin(), requests.begin() + std::min<int64_t>(plan.prompts, 8));
    const auto seconds = time_interleaved({[&] { plain.run(few); }, [&] { drafted.run(few); }}, 7);
    const double tokens = double(std::ssize(few) * plan.generated_tokens);
    run.report.add(pair.arm, pair.role, "greedy_tokens_per_second", tokens / seconds[0]);
    run.report.add(pair.arm, pair.role, "speculative_tokens_per_second", tokens / seconds[1]);
    run.report.add(pair.arm, pair.role, "speculative_speedup", seconds[0] / seconds[1]);
  }
}

/// Decoding one token at a time: sizes of one file and network by network.
void measure_decoding(RecipeRun& run, const Plan& plan, const engine::Network& nested,
                      const std::vector<engine::Network>& separate, const at::Tensor& ids) {
  const at::Tensor floats = ids.narrow(0, 0, 1).to(at::kFloat).contiguous();
  const int64_t count = std::min(plan.decoded_tokens, floats.size(1));
  const engine::Session::Options options{
      .batch = 1, .threads = 1, .sequences = true, .last_rows = 1};
  engine::Session of_nested(nested, options);
  std::vector<engine::Session> alone;
  for (const engine::Network& network : separate) alone.emplace_back(network, options);
  std::vector<float> logits(static_cast<size_t>(nested.output_shape().back()));
  const auto decode = [&](engine::Session& session, int64_t size, Meter* meter) {
    session.reset();
    const int64_t one = 1;
    for (int64_t t = 0; t < count; ++t)
      session.run_tokens({floats.data_ptr<float>() + t, 1}, logits, {&one, 1},
                         {.meter = meter, .size = size});
  };
  std::vector<std::function<void()>> calls;
  for (int64_t size = 0; size < of_nested.sizes(); ++size)
    calls.push_back([&, size] { decode(of_nested, size, nullptr); });
  for (engine::Session& session : alone) calls.push_back([&] { decode(session, -1, nullptr); });
  const auto seconds = time_interleaved(calls, 9);
  for (size_t i = 0; i < plan.widths.size(); ++i) {
    const std::string ending = "_w" + percent(plan.widths[i]);
    Meter meter;
    decode(of_nested, static_cast<int64_t>(i), &meter);
    run.report.add("matlm", "system", "macs_per_token" + ending,
                   double(meter.macs()) / double(count));
    run.report.add("matlm", "system", "tokens_per_second" + ending, double(count) / seconds[i]);
    run.report.add("separate", "baseline", "tokens_per_second" + ending,
                   double(count) / seconds[plan.widths.size() + i]);
  }
}

#endif

}  // namespace

void measure_engine(RecipeRun& run, const Plan& plan, const Study& study, uint64_t seed,
                    bool timed) {
  const int64_t tokens = std::min(study.matlm.input_shape[0], plan.context);
  const at::Tensor ids = held_out_windows(study, 4, tokens);
  run.report.add("matlm", "system", "slice_difference",
                 slice_difference(study.matlm, ids.to(lab::device_of(*study.matlm.root))));
#if SLUICE_HAS_ENGINE
  const std::string& folder = run.options.work_directory;
  const engine::Network nested = in_engine(study.matlm, folder + "/matlm.safetensors");
  std::vector<engine::Network> separate;
  for (size_t i = 0; i < study.separate.size(); ++i) {
    separate.push_back(
        in_engine(study.separate[i], fmt::format("{}/separate{}.safetensors", folder, i)));
  }
  measure_parity(run, study.matlm, nested, ids);
  measure_speculation(run, plan, study, {"matlm", "system", &nested, &nested, 0}, seed, timed);
  measure_speculation(run, plan, study,
                      {"separate", "baseline", &separate.back(), &separate.front(), -1}, seed,
                      timed);
  if (timed) measure_decoding(run, plan, nested, separate, ids);
#else
  (void)seed, (void)timed;
  run.report.notes.push_back("built without the engine: no drafts, no times");
#endif
}

}  // namespace sluice::recipes::matformer
