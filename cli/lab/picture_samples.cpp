#include "cli/lab/picture_samples.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/data/image.h"

namespace sluice::cli {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kMostElements = int64_t{1} << 30;

std::vector<std::string> pictures_in(const std::string& folder, const std::string& option) {
  std::error_code error;
  std::vector<std::string> paths;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string extension = at->path().extension().string();
    if (extension == ".png" || extension == ".pgm" || extension == ".ppm")
      paths.push_back(at->path().string());
  }
  if (error) fail(Code::missing, "{} {}: {}", option, folder, error.message());
  if (paths.empty()) fail(Code::usage, "{} {}: no file ends in .png, .pgm or .ppm", option, folder);
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

TextSamples load_pictures(const std::string& folder, const lab::Model& model, int64_t limit,
                          const std::string& option) {
  const Shape& shape = model.input_shape;
  if (shape.size() != 3 || (shape[0] != 1 && shape[0] != 3)) {
    fail(Code::shape, "{}: the model takes {}; expected [1 or 3, height, width]", option,
         to_string(shape));
  }
  std::vector<std::string> paths = pictures_in(folder, option);
  const auto count = std::min(limit, static_cast<int64_t>(paths.size()));
  if (count > kMostElements / numel(shape)) {
    fail(Code::limit, "{} {}: {} pictures of {} are more than {} numbers; take fewer with --limit",
         option, folder, count, to_string(shape), kMostElements);
  }
  TextSamples samples{at::empty({count, shape[0], shape[1], shape[2]}), {}};
  const bool lines = model.task.kind == "read";
  for (int64_t i = 0; i < count; ++i) {
    const data::Image image = data::read_image(paths[static_cast<size_t>(i)]);
    const std::vector<float> pixels = (lines ? data::to_line_input : data::to_input)(
        image, shape[0], shape[1], shape[2], model.task.mean, model.task.std);
    std::memcpy(samples.ids[i].data_ptr<float>(), pixels.data(), pixels.size() * sizeof(float));
  }
  return samples;
}

}  // namespace sluice::cli
