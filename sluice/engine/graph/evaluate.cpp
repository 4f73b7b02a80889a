#include "sluice/engine/graph/evaluate.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/reduce.h"

namespace sluice::engine {
double cross_entropy(std::span<float> logits, int64_t label) {
  const size_t best =
      static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const double highest = logits[best], mine = logits[static_cast<size_t>(label)];
  softmax(logits.data(), logits.data(), 1, logits.size());
  // ln of the sum from the largest probability: the label's own may be 0 in f32.
  return highest - mine - std::log(static_cast<double>(logits[best]));
}

Evaluation evaluate(const Network& network, const LabelledPixels& samples, int64_t batch,
                    int threads, const Budget* budget, int64_t size) {
  const int64_t each = numel(network.input_shape()), classes = numel(network.output_shape());
  const int64_t count = static_cast<int64_t>(samples.labels.size());
  if (static_cast<int64_t>(samples.pixels.size()) != checked_mul(count, each, "samples")) {
    fail(Code::shape, "{}: {} pixels for {} labels; the network's input {} needs {} each",
         network.bundle().path(), samples.pixels.size(), count, to_string(network.input_shape()),
         each);
  }
  if (!(samples.std > 0))
    fail(Code::usage, "evaluate: std {}; expected a positive number", samples.std);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = samples.labels[static_cast<size_t>(i)];
    if (label < 0 || label >= classes) {
      fail(Code::shape, "{}: label {} of sample {}; the network has {} outputs",
           network.bundle().path(), label, i, classes);
    }
  }
  if (batch < 1) fail(Code::usage, "evaluate: batch {}; expected 1 or more", batch);
  Evaluation result;
  if (count == 0) return result;

  Session::Options options;
  options.batch = std::min(batch, count);
  options.threads = threads;
  Session session(network, options);
  Meter meter;
  RunOptions run_options;
  run_options.meter = &meter;
  run_options.budget = budget;
  run_options.size = size;
  float table[256];  // input value of every pixel value
  for (int p = 0; p < 256; ++p)
    table[p] = static_cast<float>((p / 255.0 - samples.mean) / samples.std);
  std::vector<float> input(static_cast<size_t>(options.batch * each));
  std::vector<float> output(static_cast<size_t>(options.batch * classes));
  result.predictions.reserve(static_cast<size_t>(count));
  int64_t correct = 0;
  double loss = 0;
  for (int64_t first = 0; first < count; first += options.batch) {
    const int64_t now = std::min(options.batch, count - first);
    const auto pixels =
        samples.pixels.subspan(static_cast<size_t>(first * each), static_cast<size_t>(now * each));
    std::transform(pixels.begin(), pixels.end(), input.begin(),
                   [&](uint8_t p) { return table[p]; });
    session.run(input, output, now, run_options);
    for (int64_t i = 0; i < now; ++i) {
      const std::span<float> logits(output.data() + i * classes, static_cast<size_t>(classes));
      const int64_t label = samples.labels[static_cast<size_t>(first + i)];
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      correct += best == label;
      loss += cross_entropy(logits, label);
      result.predictions.push_back(static_cast<int32_t>(best));
    }
  }
  result.count = count;
  result.accuracy = static_cast<double>(correct) / static_cast<double>(count);
  result.loss = loss / static_cast<double>(count);
  result.macs_per_sample = meter.macs_per_sample();
  return result;
}

}  // namespace sluice::engine
