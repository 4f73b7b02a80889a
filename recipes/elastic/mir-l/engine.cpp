// Dense network and ticket in the engine.
#include "recipes/elastic/mir-l/study.h"
#include "recipes/engine_model.h"
#include "sluice/base/machine.h"
#include "sluice/base/random.h"

#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::recipes::mir_l {

#if SLUICE_HAS_ENGINE

namespace {

double difference(const lab::Model& model, const engine::Network& network) {
  const at::NoGradGuard no_grad;
  lab::Model copy = lab::clone(model);
  copy.root->eval();
  const at::Tensor x = lab::probe_input(copy, 2, 5).abs().clamp_max(1);
  lab::Context context;
  const at::Tensor expected = copy.forward(x, context).contiguous();
  at::Tensor found = at::empty_like(expected);
  engine::Session session(network, {.batch = 2, .threads = 1});
  session.run({x.data_ptr<float>(), size_t(x.numel())},
              {found.data_ptr<float>(), size_t(found.numel())});
  return ((found - expected).norm() / expected.norm()).item<double>();
}

}  // namespace

void measure_engine(RecipeRun& run, const Plan& plan, const lab::Model& dense,
                    const lab::Model& ticket) {
  struct Case {
    std::string arm, role;
    engine::Network network;
  };
  const auto opened = [&](const lab::Model& model, const std::string& name) {
    lab::Model whole = lab::clone(model);
    whole.root->to(c10::kCPU);
    whole.input_shape = {plan.layers.channels, plan.test_crop, plan.test_crop};
    auto network =
        in_engine(whole, fmt::format("{}/{}.safetensors", run.options.work_directory, name));
    run.report.add(name, name == "ticket" ? "system" : "baseline", "engine_difference",
                   difference(whole, network));
    return network;
  };
  const std::vector<Case> cases = {{"dense", "baseline", opened(dense, "dense")},
                                   {"ticket", "system", opened(ticket, "ticket")}};
  std::vector<engine::Session> sessions;
  for (const Case& each : cases)
    sessions.emplace_back(each.network, engine::Session::Options{.threads = 1});
  // The ticket as if the engine did not look for zeros.
  sessions.emplace_back(
      cases[1].network,
      engine::Session::Options{.threads = 1, .sparse = engine::Session::Sparse::never});
  const std::vector<float> input(size_t(numel(cases[0].network.input_shape())), 0.5f);
  std::vector<float> output(size_t(numel(cases[0].network.output_shape())));
  std::vector<std::function<void()>> calls;
  for (engine::Session& session : sessions) calls.push_back([&] { session.run(input, output); });
  const auto seconds = time_interleaved(calls, 11);
  for (size_t i = 0; i < cases.size(); ++i) {
    Meter meter;
    sessions[i].run(input, output, {.meter = &meter});
    run.report.add(cases[i].arm, cases[i].role, "engine_ms", 1e3 * seconds[i]);
    run.report.add(cases[i].arm, cases[i].role, "engine_macs", double(meter.macs()));
  }
  run.report.add("ticket", "system", "engine_ms_zeros_multiplied", 1e3 * seconds[2]);
  int64_t skipping = 0, products = 0;
  for (const auto& step : sessions[1].plan()) {
    const bool compressed = step.kernel.starts_with("sluice csr") ||
                            step.kernel.find("blocks (density") != std::string::npos;
    skipping += compressed ? 1 : 0;
    products += compressed || step.kernel.find("conv") != std::string::npos ||
                        step.kernel.find("dw") != std::string::npos
                    ? 1
                    : 0;
  }
  run.report.notes.push_back(fmt::format(
      "engine_ms: one picture of {} x {}, one thread, first seed, median of 11 interleaved rounds; "
      "{} of the ticket's {} convolutions skip their zeros (1 x 1, from compressed rows or "
      "blocks), "
      "the others, 3 x 3 and per channel, multiply with them",
      plan.test_crop, plan.test_crop, skipping, products));
}

#else

void measure_engine(RecipeRun& run, const Plan&, const lab::Model&, const lab::Model&) {
  run.report.notes.emplace_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::mir_l
