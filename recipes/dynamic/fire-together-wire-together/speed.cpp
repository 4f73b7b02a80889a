#include "recipes/dynamic/fire-together-wire-together/speed.h"

#include <torch/types.h>

#include "recipes/engine_model.h"
#include "recipes/engine_race.h"
#include "sluice/lab/train/feed.h"

namespace sluice::recipes::fire_together {

#if SLUICE_HAS_ENGINE
void measure_engine(RecipeRun& run, const lab::Model& dense, const lab::Model& gated,
                    const lab::Model& open, const data::ImageSet& data) {
  const std::string& folder = run.options.work_directory;
  const auto plain = in_engine(dense, folder + "/dense.safetensors"),
             wired = in_engine(gated, folder + "/ftwt.safetensors"),
             never = in_engine(open, folder + "/open.safetensors");
  race_pictures(run,
                {{.arm = "dense-tuned", .role = "baseline", .network = &plain},
                 {.arm = "ftwt", .role = "system", .network = &wired},
                 {.arm = "open", .role = "control", .network = &never}},
                data, {.samples = 128});

  // Of what is skipped: the same in the lab and in the engine, image by image.
  const lab::Feed test(data.test, data.mean, data.std, c10::kCPU);
  const int64_t images = std::min<int64_t>(64, test.count());
  const at::Tensor x = test.range(0, images).inputs.contiguous();
  const auto each = static_cast<size_t>(x.numel() / images);
  std::vector<float> y(size_t(numel(wired.output_shape())));
  engine::Session session(wired, {.batch = 1, .threads = 1});
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
    session.run({x.data_ptr<float>() + size_t(i) * each, each}, y, {.meter = &theirs});
    const at::Tensor found = torch::tensor(y);
    worst = std::max(worst, ((found - expected).norm() / expected.norm()).item<double>());
  }
  run.report.add("ftwt", "system", "meter_difference",
                 std::abs(double(theirs.macs()) / double(mine.macs()) - 1));
  run.report.add("ftwt", "system", "engine_difference", worst);
  run.report.notes.push_back(
      "open: the same network with gates that never close, through the same kernels");
}

#else

void measure_engine(RecipeRun& run, const lab::Model&, const lab::Model&, const lab::Model&,
                    const data::ImageSet&) {
  run.report.notes.push_back("built without the engine: no latencies");
}

#endif

}  // namespace sluice::recipes::fire_together
