#include "recipes/dynamic/duo-llm/speed.h"

#include <torch/types.h>

#include <cmath>

#include "recipes/engine_model.h"
#include "recipes/engine_race.h"
#include "sluice/base/machine.h"

namespace sluice::recipes::duo_llm {

#if SLUICE_HAS_ENGINE
namespace {

/// MACs of what lies in options of slots.
int64_t option_macs(const Meter& meter) {
  int64_t sum = 0;
  for (const Meter::Entry& entry : meter.entries())
    if (entry.path.find(".ffn.option") != std::string::npos) sum += entry.macs;
  return sum;
}

int64_t counted_macs(const lab::Model& model, const at::Tensor& ids) {
  lab::Model copy = lab::clone(model);
  copy.root->to(c10::kCPU);
  Meter meter;
  lab::Context context;
  context.meter = &meter;
  const at::NoGradGuard no_grad;
  copy.forward(ids, context);
  return option_macs(meter);
}

/// A copy without choices: big everywhere.
lab::Model all_big(const lab::Model& model) {
  lab::Model result = lab::clone(model);
  for (const lab::SlotRef& ref : lab::walk(*result.root, "blocks.*.ffn"))
    ref.slot->exchange(ref.slot->as<lab::Choice>().option(kBig).get());
  return result;
}

}  // namespace

void measure_routing(RecipeRun& run, const DuoPlan& plan, const lab::Model& model,
                     const std::vector<lab::Model>& routed, const Windows& test) {
  const std::string folder = run.options.work_directory;
  std::vector<engine::Network> networks = {in_engine(all_big(model), folder + "/big.safetensors")};
  for (size_t i = 0; i < routed.size(); ++i) {
    networks.push_back(
        in_engine(routed[i], fmt::format("{}/router-{}.safetensors", folder, plan.budgets[i])));
  }
  std::vector<Racer> racers = {
      {.arm = "all-big", .role = "baseline", .network = &networks.front()}};
  for (size_t i = 0; i < routed.size(); ++i) {
    racers.push_back({.arm = "router",
                      .role = "system",
                      .network = &networks[i + 1],
                      .ending = fmt::format("_at_{}", plan.budgets[i])});
  }
  race_decoding(run, racers, test.ids, {.decoded = plan.decoded_tokens});

  const int64_t tokens = plan.context;
  const at::Tensor ids = test.ids.narrow(0, 0, 1).cpu();
  const at::Tensor floats = ids.to(at::kFloat).contiguous();
  const std::span<const float> text(floats.data_ptr<float>(), static_cast<size_t>(tokens));
  std::vector<engine::Session> sessions;
  for (const engine::Network& network : networks) {
    sessions.emplace_back(
        network,
        engine::Session::Options{.batch = 1, .threads = 1, .sequences = true, .last_rows = 1});
  }
  std::vector<float> logits(static_cast<size_t>(networks[0].output_shape().back()));
  const auto read = [&](engine::Session& session, Meter* meter) {
    session.reset();
    session.run_tokens(text, logits, {&tokens, 1}, {.meter = meter});
  };
  std::vector<std::function<void()>> calls;
  for (engine::Session& session : sessions) calls.push_back([&] { read(session, nullptr); });
  const std::vector<double> seconds = time_interleaved(calls, 7);
  double difference = 0;
  for (size_t i = 0; i < sessions.size(); ++i) {
    run.report.add(racers[i].arm, racers[i].role, "prefill_per_second" + racers[i].ending,
                   double(tokens) / seconds[i]);
    if (i == 0) continue;
    Meter meter;
    read(sessions[i], &meter);
    const auto counted = double(counted_macs(routed[i - 1], ids));
    const double off = std::abs(double(option_macs(meter)) - counted) / counted;
    difference = std::max(difference, off);
  }
  run.report.add("router", "system", "meter_difference", difference);
}

#else

void measure_routing(RecipeRun& run, const DuoPlan&, const lab::Model&,
                     const std::vector<lab::Model>&, const Windows&) {
  run.report.notes.push_back("built without the engine: no times");
}

#endif

}  // namespace sluice::recipes::duo_llm
