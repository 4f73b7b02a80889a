#include "recipes/dynamic/duo-llm/speed.h"

#include <torch/types.h>

#include <cmath>

#include "recipes/engine_model.h"
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
  const int64_t tokens = plan.context;
  const int64_t decoded = std::min(plan.decoded_tokens, tokens);
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
  const int64_t one = 1;
  const auto read = [&](engine::Session& session, Meter* meter) {
    session.reset();
    session.run_tokens(text, logits, {&tokens, 1}, {.meter = meter});
  };
  const auto decode = [&](engine::Session& session) {
    session.reset();
    for (int64_t t = 0; t < decoded; ++t)
      session.run_tokens(text.subspan(static_cast<size_t>(t), 1), logits, {&one, 1});
  };
  std::vector<std::function<void()>> calls;
  for (engine::Session& session : sessions) calls.push_back([&] { decode(session); });
  for (engine::Session& session : sessions) calls.push_back([&] { read(session, nullptr); });
  const std::vector<double> seconds = time_interleaved(calls, 7);
  double difference = 0;
  for (size_t i = 0; i < sessions.size(); ++i) {
    Meter meter;
    read(sessions[i], &meter);
    const char* arm = i == 0 ? "all-big" : "router";
    const char* role = i == 0 ? "baseline" : "system";
    const std::string ending = i == 0 ? "" : fmt::format("_at_{}", plan.budgets[i - 1]);
    const auto add = [&](const std::string& metric, double value) {
      run.report.add(arm, role, metric + ending, value);
    };
    add("tokens_per_second", double(decoded) / seconds[i]);
    add("prefill_per_second", double(tokens) / seconds[sessions.size() + i]);
    add("macs_per_token", double(meter.macs()) / double(tokens));
    if (i == 0) continue;
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
