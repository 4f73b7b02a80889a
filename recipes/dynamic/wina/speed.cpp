#include "recipes/dynamic/wina/speed.h"

#include <cmath>
#include <memory>

#include "recipes/engine_model.h"
#include "recipes/engine_race.h"
#include "sluice/base/machine.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/sparse_linear.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#endif

namespace sluice::recipes::wina {

#if SLUICE_HAS_ENGINE
namespace {

constexpr double kGemvSparsity = 0.65;

using MacsByPath = std::map<std::string, int64_t>;

MacsByPath macs_of(const Meter& meter) {
  MacsByPath result;
  for (const Meter::Entry& entry : meter.entries()) result[entry.path] += entry.macs;
  return result;
}

void decode(engine::Session& session, const std::vector<float>& ids, std::vector<float>& logits,
            Meter* meter) {
  session.reset();
  const int64_t one = 1;
  for (const float& id : ids) session.run_tokens({&id, 1}, logits, {&one, 1}, {.meter = meter});
}

int64_t meter_difference(lab::Model model, const at::Tensor& ids, const Meter& executed) {
  model.root->to(c10::kCPU);
  Meter meter;
  lab::Context context;
  context.meter = &meter;
  const at::NoGradGuard no_grad;
  model.forward(ids, context);
  const MacsByPath counted = macs_of(meter), ran = macs_of(executed);
  int64_t largest = 0;
  for (const lab::SlotRef& ref : lab::walk(*model.root)) {
    if (dynamic_cast<const lab::SparseLinear*>(ref.slot->get().get()) == nullptr) continue;
    largest = std::max(largest, std::abs(counted.at(ref.path) - ran.at(ref.path)));
  }
  return largest;
}

}  // namespace

void measure_gemv(RecipeRun& run, const Plan& plan, uint64_t seed) {
  const int64_t n = plan.gemv;
  const std::vector<float> weight = normal_floats(n * n, 0.02, derive_seed(seed, "gemv weight"));
  std::vector<float> norms = normal_floats(n, 0.3, derive_seed(seed, "gemv norms"));
  for (float& norm : norms) norm = std::exp(norm);
  const int64_t copies = NetworkCopies::count_for(4.0 * double(n) * double(n), 8);
  NetworkCopies dense(copies, [&](bundle::Builder& builder) {
    const bundle::Value x = builder.input("x", {n});
    builder.tensor("w", {n, n}, weight);
    builder.output(builder.node("linear", "layer", {x}, {}, {{"weight", "w"}}));
  });
  const auto sparse = [&](bundle::Attributes attributes) {
    return NetworkCopies(copies, [&](bundle::Builder& builder) {
      const bundle::Value x = builder.input("x", {n});
      builder.tensor("w", {n, n}, weight);
      builder.tensor("c", {n}, norms);
      builder.output(builder.node("sparse_input_linear", "layer", {x}, attributes,
                                  {{"weight", "w"}, {"column_norm", "c"}}));
    });
  };
  std::vector<std::vector<float>> inputs;
  for (uint64_t i = 0; i < 7; ++i)
    inputs.push_back(normal_floats(n, 1.0, derive_seed(seed, "gemv input", i)));
  const auto kept = static_cast<int64_t>(std::floor((1 - kGemvSparsity) * double(n) + 1e-6));
  std::vector<float> scores;
  for (const auto& x : inputs)
    for (size_t i = 0; i < x.size(); ++i) scores.push_back(std::fabs(x[i]) * norms[i]);
  const auto at =
      scores.begin() + static_cast<std::ptrdiff_t>(kGemvSparsity * double(scores.size()));
  std::nth_element(scores.begin(), at, scores.end());
  NetworkCopies top = sparse({{"select", std::string("topk")}, {"k", kept}});
  NetworkCopies above = sparse({{"select", std::string("threshold")}, {"threshold", double(*at)}});
  std::vector<float> y(static_cast<size_t>(n));
  size_t turns[3] = {0, 0, 0};
  const auto call = [&](NetworkCopies& of, size_t which) {
    return [&, which] { of.run(inputs[turns[which]++ % inputs.size()], y); };
  };
  const std::vector<double> seconds =
      time_interleaved({call(dense, 0), call(top, 1), call(above, 2)}, 11);
  Report& report = run.report;
  report.add("dense", "baseline", "gemv_us", 1e6 * seconds[0]);
  report.add("wina", "system", "gemv_us", 1e6 * seconds[1]);
  report.add("wina", "system", "gemv_speedup", seconds[0] / seconds[1]);
  report.add("wina", "system", "gemv_speedup_threshold", seconds[0] / seconds[2]);
  report.notes.push_back(
      fmt::format("gemv: {} x {} f32, sparsity {}, one thread, {} copies of the weights in turn, "
                  "medians of 11 interleaved rounds",
                  n, n, kGemvSparsity, copies));
}

void measure_decoding(RecipeRun& run, const Plan& plan, const lab::Model& dense,
                      const std::vector<lab::Model>& sparse, const at::Tensor& windows) {
  const std::string folder = run.options.work_directory;
  std::vector<engine::Network> networks = {in_engine(dense, folder + "/dense.safetensors")};
  for (size_t i = 0; i < sparse.size(); ++i) {
    networks.push_back(
        in_engine(sparse[i], folder + "/wina-" + percent(plan.sparsities[i]) + ".safetensors"));
  }
  const int64_t count = std::min(plan.decoded_tokens, windows.size(1));
  const at::Tensor text = windows.narrow(0, 0, 1).narrow(1, 0, count).cpu().contiguous();
  const at::Tensor floats = text.to(at::kFloat).contiguous();
  const std::vector<float> ids(floats.data_ptr<float>(), floats.data_ptr<float>() + count);
  std::vector<float> logits(static_cast<size_t>(networks[0].output_shape().back()));
  std::vector<Racer> racers = {{.arm = "dense", .role = "baseline", .network = &networks.front()}};
  for (size_t i = 0; i < sparse.size(); ++i) {
    racers.push_back({.arm = "wina",
                      .role = "system",
                      .network = &networks[i + 1],
                      .ending = "_at_" + percent(plan.sparsities[i])});
  }
  race_decoding(run, racers, windows, {.decoded = count});
  Report& report = run.report;
  int64_t difference = 0;
  for (size_t i = 1; i < networks.size(); ++i) {
    engine::Session session(networks[i],
                            {.batch = 1, .threads = 1, .sequences = true, .last_rows = 1});
    Meter meter;
    decode(session, ids, logits, &meter);
    difference = std::max(difference, meter_difference(lab::clone(sparse[i - 1]), text, meter));
  }
  report.add("wina", "system", "meter_difference", double(difference));
}

#else

void measure_gemv(RecipeRun& run, const Plan&, uint64_t) {
  run.report.notes.push_back("built without the engine: no times");
}

void measure_decoding(RecipeRun&, const Plan&, const lab::Model&, const std::vector<lab::Model>&,
                      const at::Tensor&) {}

#endif

}  // namespace sluice::recipes::wina
