#include "recipes/dynamic/fire-together-wire-together/speed.h"

#include <torch/types.h>

#include "recipes/engine_model.h"
#include "sluice/base/machine.h"
#include "sluice/lab/train/feed.h"

namespace sluice::recipes::fire_together {

#if SLUICE_HAS_ENGINE
void measure_engine(RecipeRun& run, const lab::Model& dense, const lab::Model& gated,
                    const lab::Model& open, const data::ImageSet& data) {
  struct Case {
    const char *arm, *role;
    engine::Network network;
  };
  const std::string& folder = run.options.work_directory;
  const std::vector<Case> cases = {
      {"dense-tuned", "baseline", in_engine(dense, folder + "/dense.safetensors")},
      {"ftwt", "system", in_engine(gated, folder + "/ftwt.safetensors")},
      {"open", "control", in_engine(open, folder + "/open.safetensors")}};
  const lab::Feed test(data.test, data.mean, data.std, c10::kCPU);
  const int64_t images = std::min<int64_t>(64, test.count());
  const at::Tensor x = test.range(0, images).inputs.contiguous();
  const auto each = static_cast<size_t>(x.numel() / images);
  std::vector<float> y(size_t(numel(cases[0].network.output_shape())));
  std::vector<engine::Session> sessions;
  for (const Case& one : cases)
    sessions.emplace_back(one.network, engine::Session::Options{.batch = 1, .threads = 1});
  std::vector<std::function<void()>> calls;
  for (engine::Session& session : sessions) {
    // Every call takes another image: masks, and so weights, change from one to the next.
    calls.push_back([&, at = int64_t{0}]() mutable {
      session.run({x.data_ptr<float>() + size_t(at++ % images) * each, each}, y);
    });
  }
  const auto seconds = time_interleaved(calls, 15);
  for (size_t i = 0; i < cases.size(); ++i) {
    run.report.add(cases[i].arm, cases[i].role, "us_image", 1e6 * seconds[i]);
    run.report.add(cases[i].arm, cases[i].role, "time_of_dense", seconds[i] / seconds[0]);
  }

  lab::Model model = lab::clone(gated);
  model.root->to(c10::kCPU);
  model.root->eval();
  const torch::NoGradGuard no_grad;
  Meter theirs, mine;
  double worst = 0;
  for (int64_t i = 0; i < images; ++i) {
    lab::Context context;
    context.meter = &mine;
    const at::Tensor expected = model.forward(x.narrow(0, i, 1), context).flatten();
    sessions[1].run({x.data_ptr<float>() + size_t(i) * each, each}, y, {.meter = &theirs});
    const at::Tensor found = torch::tensor(y);
    worst = std::max(worst, ((found - expected).norm() / expected.norm()).item<double>());
  }
  run.report.add("ftwt", "system", "meter_difference",
                 std::abs(double(theirs.macs()) / double(mine.macs()) - 1));
  run.report.add("ftwt", "system", "engine_difference", worst);
  run.report.notes.push_back(
      "us_image: microseconds per image in the engine, one image at a time, another one each time, "
      "one thread, first seed, median of 15 interleaved rounds; open: the same network with gates "
      "that never close, through the same kernels");
}

#else

void measure_engine(RecipeRun& run, const lab::Model&, const lab::Model&, const lab::Model&,
                    const data::ImageSet&) {
  run.report.notes.push_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::fire_together
