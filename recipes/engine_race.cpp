#include "recipes/engine_race.h"
#if SLUICE_HAS_ENGINE
#include <torch/types.h>

#include <algorithm>
#include <memory>

#include "sluice/base/machine.h"
#include "sluice/lab/train/feed.h"

namespace sluice::recipes {
namespace {

/// What one racer runs with; `go` computes all samples once.
struct Lane {
  std::unique_ptr<engine::Session> session;
  std::vector<float> out;
};

using Go = std::function<void(Lane&, const Racer&, Meter*)>;

/// Every lane metered once, then timed against the others: MACs and seconds of one `go`.
void run_lanes(const std::vector<Racer>& racers, std::vector<Lane>& lanes, const Go& go, int rounds,
               std::vector<double>& macs, std::vector<double>& seconds) {
  std::vector<std::function<void()>> calls;
  for (size_t i = 0; i < lanes.size(); ++i) {
    Meter meter;
    go(lanes[i], racers[i], &meter);
    macs.push_back(double(meter.macs()));
    calls.push_back([&, i] { go(lanes[i], racers[i], nullptr); });
  }
  seconds = time_interleaved(calls, rounds);
}

/// The race at 1 and at `batch` samples together; `go` runs `samples` of them either way.
void run_race(RecipeRun& run, const std::vector<Racer>& racers, int64_t batch, double samples,
              int rounds, const std::string& sample, const engine::Session::Options& options,
              int64_t rows, const std::function<Go(int64_t together)>& make) {
  std::vector<Lap> laps(racers.size());
  for (const int64_t together : {int64_t{1}, batch}) {
    std::vector<Lane> lanes;
    for (const Racer& racer : racers) {
      engine::Session::Options own = options;
      own.batch = together;
      lanes.push_back({std::make_unique<engine::Session>(*racer.network, own),
                       std::vector<float>(static_cast<size_t>(together * rows))});
    }
    std::vector<double> macs, seconds;
    run_lanes(racers, lanes, make(together), rounds, macs, seconds);
    for (size_t i = 0; i < racers.size(); ++i) {
      (together == 1 ? laps[i].macs_alone : laps[i].macs_batched) = macs[i] / samples;
      (together == 1 ? laps[i].seconds_alone : laps[i].seconds_batched) = seconds[i] / samples;
    }
  }
  report_race(run, racers, laps, batch, sample);
}

}  // namespace

void report_race(RecipeRun& run, const std::vector<Racer>& racers, const std::vector<Lap>& laps,
                 int64_t batch, const std::string& sample) {
  const Lap& dense = laps.at(0);
  for (size_t i = 0; i < racers.size(); ++i) {
    const Lap& lap = laps[i];
    const auto add = [&](const char* metric, double value) {
      run.report.add(racers[i].arm, racers[i].role, metric + racers[i].ending, value);
    };
    add("us_alone", 1e6 * lap.seconds_alone);
    add("us_batched", 1e6 * lap.seconds_batched);
    add("time_alone", lap.seconds_alone / dense.seconds_alone);
    add("time_batched", lap.seconds_batched / dense.seconds_batched);
    add("macs_alone", lap.macs_alone / dense.macs_alone);
    add("macs_batched", lap.macs_batched / dense.macs_batched);
  }
  run.report.limits["race_batch"] = double(batch);
  run.report.notes.push_back(fmt::format(
      "us, time, macs: microseconds of {} in the engine, that over the dense network's ({}), and "
      "the multiply-accumulates executed over the dense network's; alone: one at a time, batched: "
      "{} together; one thread, first seed, medians of interleaved rounds",
      sample, racers[0].arm, batch));
}

void race_pictures(RecipeRun& run, const std::vector<Racer>& racers, const data::ImageSet& data,
                   const RaceSize& size) {
  const int64_t batch = std::min(size.batch, data.test.count());
  const int64_t batches = std::max<int64_t>(1, std::min(size.samples, data.test.count()) / batch);
  const int64_t samples = batch * batches;
  const engine::Network& dense = *racers.at(0).network;
  const auto each = static_cast<size_t>(numel(dense.input_shape()));
  std::vector<float> pixels(static_cast<size_t>(samples) * each);
  data::to_floats(data.test, 0, samples, data.mean, data.std, pixels);
  run_race(run, racers, batch, double(samples), size.rounds, "an image", {.threads = 1},
           numel(dense.output_shape()), [&](int64_t together) -> Go {
             return [&, together](Lane& lane, const Racer& racer, Meter* meter) {
               const size_t step = static_cast<size_t>(together) * each;
               for (size_t at = 0; at < pixels.size(); at += step) {
                 lane.session->run({pixels.data() + at, step}, lane.out,
                                   {.meter = meter, .size = racer.size});
               }
             };
           });
}

void race_decoding(RecipeRun& run, const std::vector<Racer>& racers, const at::Tensor& windows,
                   const DecodeRaceSize& size) {
  const int64_t batch = std::min(size.batch, windows.size(0));
  const int64_t decoded = std::min(size.decoded, windows.size(1));
  const at::Tensor ids =
      windows.narrow(0, 0, batch).narrow(1, 0, decoded).cpu().to(at::kFloat).contiguous();
  // By step: the tokens of all texts side by side.
  const at::Tensor steps = ids.t().contiguous();
  const auto* by_text = ids.data_ptr<float>();
  const auto* by_step = steps.data_ptr<float>();
  const std::vector<int64_t> ones(static_cast<size_t>(batch), 1);
  run_race(run, racers, batch, double(batch * decoded), size.rounds, "a token that is decoded",
           {.threads = 1, .sequences = true, .last_rows = 1},
           racers.at(0).network->output_shape().back(), [&](int64_t together) -> Go {
             return [&, together](Lane& lane, const Racer& racer, Meter* meter) {
               const auto width = static_cast<size_t>(together);
               for (int64_t first = 0; first < batch; first += together) {
                 lane.session->reset();
                 for (int64_t t = 0; t < decoded; ++t) {
                   const float* next =
                       together == 1 ? by_text + first * decoded + t : by_step + t * batch;
                   lane.session->run_tokens({next, width}, lane.out, {ones.data(), width},
                                            {.meter = meter, .size = racer.size});
                 }
               }
             };
           });
}

}  // namespace sluice::recipes
#endif
