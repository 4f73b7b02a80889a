#include "recipes/elastic/lottery-ticket/latency.h"

#include "recipes/engine_model.h"
#include "sluice/base/machine.h"

#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::recipes::lottery_ticket {

#if SLUICE_HAS_ENGINE
void measure_latency(RecipeRun& run, const lab::Model& dense, const lab::Model& ticket,
                     const std::string& level) {
  auto& report = run.report;
  const auto& folder = run.options.work_directory;
  const auto dense_network = in_engine(dense, folder + "/dense.safetensors");
  const auto ticket_network = in_engine(ticket, folder + "/ticket.safetensors");
  using Sparse = engine::Session::Sparse;
  for (const int64_t batch : {1, 64}) {
    engine::Session a(dense_network, {.batch = batch, .threads = 1});
    engine::Session b(ticket_network, {.batch = batch, .threads = 1, .sparse = Sparse::never});
    engine::Session c(ticket_network, {.batch = batch, .threads = 1});
    const auto samples = static_cast<size_t>(batch);
    std::vector<float> input(samples * size_t(numel(dense_network.input_shape())), 0.5f);
    std::vector<float> output(samples * size_t(numel(dense_network.output_shape())));
    const auto seconds =
        time_interleaved({[&] { a.run(input, output); }, [&] { b.run(input, output); },
                          [&] { c.run(input, output); }},
                         11);
    const auto suffix = fmt::format("us_batch{}", batch);
    report.add("dense", "baseline", suffix, 1e6 * seconds[0] / double(batch));
    report.add("ticket", "system", fmt::format("dense_kernels_{}_at_{}", suffix, level),
               1e6 * seconds[1] / double(batch));
    report.add("ticket", "system", fmt::format("{}_at_{}", suffix, level),
               1e6 * seconds[2] / double(batch));
    if (batch != 1) continue;
    for (auto [session, arm, metric] : {std::tuple{&a, "dense", std::string("macs")},
                                        std::tuple{&c, "ticket", "macs_at_" + level}}) {
      Meter meter;
      session->run(input, output, {.meter = &meter});
      report.add(arm, std::string(arm) == "dense" ? "baseline" : "system", metric,
                 meter.macs_per_sample());
    }
  }
  report.notes.push_back(
      "us_batch*: microseconds per image in the engine, one thread, first seed, median of 11 "
      "interleaved "
      "rounds; dense_kernels_us: the ticket without compressed rows");
}

#else

void measure_latency(RecipeRun& run, const lab::Model&, const lab::Model&, const std::string&) {
  run.report.notes.push_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::lottery_ticket
