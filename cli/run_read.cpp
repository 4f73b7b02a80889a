#if SLUICE_HAS_ENGINE
#include "cli/run_read.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/data/image.h"

namespace sluice::cli {

Reading read_classes(const std::vector<float>& output, const Shape& shape,
                     const std::vector<std::string>& labels) {
  const size_t classes = static_cast<size_t>(shape.back()), rows = output.size() / classes;
  Reading reading;
  size_t before = 0, characters = 0;
  double sum = 0;
  for (size_t r = 0; r < rows; ++r) {
    const float* row = output.data() + r * classes;
    const size_t best = static_cast<size_t>(std::max_element(row, row + classes) - row);
    if (best != 0 && best != before) {
      reading.text += labels[best];
      sum += row[best];
      ++characters;
    }
    before = best;
  }
  reading.confidence = characters ? sum / static_cast<double>(characters) : 0;
  return reading;
}

int read_lines(const engine::Network& network, const std::vector<std::string>& images,
               const Budget& budget, const Globals& globals) {
  const bundle::Task& task = network.bundle().task();
  const Shape &in = network.input_shape(), &out = network.output_shape();
  if (in.size() != 3 || (in[0] != 1 && in[0] != 3) || out.size() != 2 ||
      network.inputs().size() != 1)
    fail(Code::shape, "{}: expected a picture [C,H,W] in and rows of classes out, found {} and {}",
         network.bundle().path(), to_string(in), to_string(out));
  if (static_cast<int64_t>(task.labels.size()) != out[1])
    fail(Code::missing, "{}: no labels; import it again with --labels FILE",
         network.bundle().path());
  engine::Session session(network, {.batch = 1, .threads = globals.threads});
  std::vector<float> output(static_cast<size_t>(numel(out)));
  Json results = Json::array();
  std::string lines;
  for (const std::string& path : images) {
    const data::Image image = data::read_image(path);
    Meter meter;
    session.run(data::to_line_input(image, in[0], in[1], in[2], task.mean, task.std), output,
                {.meter = &meter, .budget = &budget});
    for (const float value : output)
      if (!std::isfinite(value))
        fail(Code::numeric, "{}: the output for {} is not finite", network.bundle().path(), path);
    const Reading reading = read_classes(output, out, task.labels);
    lines += reading.text + "\n";
    results.push_back({{"picture", path},
                       {"text", reading.text},
                       {"confidence", reading.confidence},
                       {"macs", meter.macs()}});
  }
  if (globals.json) {
    print_json({{"model", network.bundle().path()}, {"results", results}});
  } else {
    print(lines);
  }
  return kSuccess;
}

}  // namespace sluice::cli
#endif
