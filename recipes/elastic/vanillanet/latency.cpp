#include "recipes/elastic/vanillanet/latency.h"

#include "recipes/engine_model.h"
#include "sluice/base/machine.h"

#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::recipes::vanillanet {

#if SLUICE_HAS_ENGINE
void measure_latency(RecipeRun& run, const lab::Model& unfolded, const lab::Model& folded,
                     const lab::Model& resnet) {
  struct Case {
    std::string arm, role;
    engine::Network network;
  };
  const std::string& folder = run.options.work_directory;
  const std::vector<Case> cases = {
      {"deep-unfolded", "baseline", in_engine(unfolded, folder + "/unfolded.safetensors")},
      {"deep", "system", in_engine(folded, folder + "/folded.safetensors")},
      {"resnet", "baseline", in_engine(resnet, folder + "/resnet.safetensors")}};
  for (const int64_t batch : {1, 64}) {
    std::vector<engine::Session> sessions;
    for (const Case& each : cases) {
      sessions.emplace_back(each.network, engine::Session::Options{.batch = batch, .threads = 1});
    }
    std::vector<float> input(size_t(batch * numel(cases[0].network.input_shape())), 0.5f);
    std::vector<float> output(size_t(batch * numel(cases[0].network.output_shape())));
    std::vector<std::function<void()>> calls;
    for (engine::Session& session : sessions) {
      calls.push_back([&] { session.run(input, output); });
    }
    const auto seconds = time_interleaved(calls, 15);
    for (size_t i = 0; i < cases.size(); ++i) {
      run.report.add(cases[i].arm, cases[i].role, fmt::format("us_batch{}", batch),
                     1e6 * seconds[i] / double(batch));
      if (batch != 1) continue;
      Meter meter;
      sessions[i].run(input, output, {.meter = &meter});
      run.report.add(cases[i].arm, cases[i].role, "macs", meter.macs_per_sample());
    }
    run.report.add("deep", "system", fmt::format("time_of_unfolded_batch{}", batch),
                   seconds[1] / seconds[0]);
    run.report.add("deep", "system", fmt::format("time_of_resnet_batch{}", batch),
                   seconds[1] / seconds[2]);
  }
  run.report.notes.push_back(
      "us_batch*: microseconds per image in the engine, one thread, first seed, median of 15 "
      "interleaved rounds; the engine folds batch norms of all three by itself");
}

#else

void measure_latency(RecipeRun& run, const lab::Model&, const lab::Model&, const lab::Model&) {
  run.report.notes.push_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::vanillanet
