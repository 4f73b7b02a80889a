#include "sluice/data/dataset.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <map>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/data/directory.h"
#include "sluice/data/emoji.h"
#include "sluice/data/gzip.h"
#include "sluice/data/idx.h"
#include "sluice/data/synthetic.h"

namespace sluice::data {
namespace {

/// The directory that a set is read from: the caller's, or data_directory's.
std::string find_directory(const std::string& name, const LoadOptions& options,
                           const std::string& packaged = "") {
  return options.directory.empty() ? data_directory(name, packaged) : options.directory;
}

/// `file` or `file`.gz in `directory`.
std::string find_file(const std::string& directory, const std::string& file,
                      const std::string& name, const std::string& package) {
  const std::string path = directory + "/" + file;
  for (const std::string& candidate : {path + ".gz", path}) {
    if (file_exists(candidate)) {
      return candidate;
    }
  }
  fail(Code::missing,
       "data set '{}': {}[.gz] is not there; install it with: apt-get install {} (or set "
       "SLUICE_DATA to a directory that holds {}/)",
       name, path, package, name);
}

Split read_idx_split(const std::string& directory, const std::string& stem, const std::string& name,
                     const std::string& package) {
  const std::string image_path = find_file(directory, stem + "-images-idx3-ubyte", name, package);
  const std::string label_path = find_file(directory, stem + "-labels-idx1-ubyte", name, package);
  IdxArray images = read_idx(image_path);
  const IdxArray labels = read_idx(label_path);
  if (images.shape.size() != 3 || images.shape[1] < 1 || images.shape[2] < 1) {
    fail(Code::shape, "{}: expected pictures (count x height x width), found {}", image_path,
         to_string(images.shape));
  }
  if (labels.shape.size() != 1 || labels.shape[0] != images.shape[0]) {
    fail(Code::shape, "{}: expected {} labels, one for each picture of {}, found shape {}",
         label_path, images.shape[0], image_path, to_string(labels.shape));
  }
  Split split;
  split.sample_shape = {1, images.shape[1], images.shape[2]};
  split.pixels = std::move(images.bytes);
  split.labels.assign(labels.bytes.begin(), labels.bytes.end());
  return split;
}

void check_labels(const Split& split, size_t classes, const std::string& where) {
  for (size_t i = 0; i < split.labels.size(); ++i) {
    if (split.labels[i] < 0 || static_cast<size_t>(split.labels[i]) >= classes) {
      fail(Code::format, "{}: label {} of sample {}; expected 0 to {}", where, split.labels[i], i,
           classes - 1);
    }
  }
}

ImageSet load_fashion_mnist(const LoadOptions& options) {
  ImageSet set;
  set.name = "fashion-mnist";
  const std::string package = "dataset-fashion-mnist";
  const std::string directory =
      find_directory(set.name, options, "/usr/share/datasets/fashion-mnist");
  set.labels = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
  set.train = read_idx_split(directory, "train", set.name, package);
  set.test = read_idx_split(directory, "t10k", set.name, package);
  if (set.train.sample_shape != set.test.sample_shape) {
    fail(Code::shape, "{}: training pictures are {}, test pictures are {}", directory,
         to_string(set.train.sample_shape), to_string(set.test.sample_shape));
  }
  check_labels(set.train, set.labels.size(), directory + " (train)");
  check_labels(set.test, set.labels.size(), directory + " (test)");
  return set;
}

/// One line of "v,v,...,v,label": 64 values of 0 to 16, written by Python as integers or as
/// "0.000000000000000000e+00".
std::array<int, 65> parse_digit_line(const std::string& line, const std::string& path,
                                     size_t number) {
  std::array<int, 65> values{};
  const char* at = line.c_str();
  for (size_t i = 0; i < values.size(); ++i) {
    char* end = nullptr;
    const double value = std::strtod(at, &end);
    const int most = i < 64 ? 16 : 9;
    if (end == at || !(value >= 0 && value <= most) || value != std::floor(value)) {
      fail(Code::format, "{}: line {}, column {}: expected a whole number from 0 to {}", path,
           number, i + 1, most);
    }
    if (*end != (i + 1 < values.size() ? ',' : '\0')) {
      fail(Code::format, "{}: line {}: expected 65 columns", path, number);
    }
    values[i] = static_cast<int>(value);
    at = end + 1;
  }
  return values;
}

void append_sample(Split& to, const Split& from, size_t index) {
  const std::span<const uint8_t> sample = from.sample(static_cast<int64_t>(index));
  to.pixels.insert(to.pixels.end(), sample.begin(), sample.end());
  to.labels.push_back(from.labels[index]);
}

ImageSet load_digits(const LoadOptions& options) {
  ImageSet set;
  set.name = "digits";
  const std::string directory =
      find_directory(set.name, options, "/usr/lib/python3/dist-packages/sklearn/datasets/data");
  const std::string path = find_file(directory, "digits.csv", set.name, "python3-sklearn");
  constexpr size_t kMostText = size_t{1} << 24;
  const MappedFile file = MappedFile::open(path);
  std::string text;
  if (is_gzip(file.bytes())) {
    const std::vector<uint8_t> bytes = inflate_gzip(file.bytes(), path, kMostText);
    text.assign(bytes.begin(), bytes.end());
  } else {
    text = read_text_file(path, kMostText);
  }
  Split all;
  all.sample_shape = {1, 8, 8};
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (!line.empty() && line.back() == '\r') {
      line.pop_back();
    }
    if (line.empty()) {
      continue;
    }
    const std::array<int, 65> values = parse_digit_line(line, path, number);
    for (size_t i = 0; i < 64; ++i) {
      all.pixels.push_back(static_cast<uint8_t>((values[i] * 255 + 8) / 16));
    }
    all.labels.push_back(values[64]);
  }
  // The file comes without a split: the last fifth of each class, in file order, is the test.
  std::array<int64_t, 10> total{}, seen{};
  for (const int64_t label : all.labels) {
    ++total[static_cast<size_t>(label)];
  }
  set.train.sample_shape = set.test.sample_shape = all.sample_shape;
  for (size_t i = 0; i < all.labels.size(); ++i) {
    const auto label = static_cast<size_t>(all.labels[i]);
    const bool last_fifth = seen[label]++ >= total[label] - total[label] / 5;
    append_sample(last_fifth ? set.test : set.train, all, i);
  }
  for (char digit = '0'; digit <= '9'; ++digit) {
    set.labels.emplace_back(1, digit);
  }
  return set;
}

void limit(Split& split, int64_t most) {
  if (most > 0 && most < split.count()) {
    split.labels.resize(static_cast<size_t>(most));
    split.pixels.resize(static_cast<size_t>(most * numel(split.sample_shape)));
  }
}

/// Mean and deviation of pixel / 255, from a histogram: exact and independent of the order of
/// samples.
void measure(ImageSet& set) {
  std::array<int64_t, 256> histogram{};
  for (const uint8_t pixel : set.train.pixels) {
    ++histogram[pixel];
  }
  double count = 0, sum = 0, squares = 0;
  for (int v = 0; v < 256; ++v) {
    const auto n = static_cast<double>(histogram[static_cast<size_t>(v)]);
    count += n;
    sum += n * v;
    squares += n * v * v;
  }
  if (count == 0) {
    fail(Code::format, "data set '{}': no training pictures", set.name);
  }
  set.mean = sum / count / 255;
  set.std = std::sqrt(std::max(0.0, squares / count / (255.0 * 255.0) - set.mean * set.mean));
  if (set.std == 0) {
    set.std = 1;  // pictures of one colour: nothing to scale
  }
}

}  // namespace

std::span<const uint8_t> Split::sample(int64_t index) const {
  if (index < 0 || index >= count()) {
    fail(Code::shape, "sample {}: expected 0 to {}", index, count() - 1);
  }
  const auto size = static_cast<size_t>(numel(sample_shape));
  return std::span(pixels).subspan(static_cast<size_t>(index) * size, size);
}

std::vector<std::string> image_set_names() { return {"fashion-mnist", "digits", "emoji", "blobs"}; }

ImageSet load_image_set(const std::string& name, const LoadOptions& options) {
  if (options.train_limit < 0 || options.test_limit < 0) {
    fail(Code::usage, "data set '{}': limits: expected 0 or more, found {} and {}", name,
         options.train_limit, options.test_limit);
  }
  ImageSet set;
  if (name == "fashion-mnist") {
    set = load_fashion_mnist(options);
  } else if (name == "digits") {
    set = load_digits(options);
  } else if (name == "emoji") {
    set = load_emoji(find_directory(name, options));
  } else if (name == "blobs") {
    set = make_blobs();
  } else {
    const std::string nearest = nearest_name(name, image_set_names());
    fail(Code::usage, "unknown data set '{}'{}; known: fashion-mnist, digits, emoji, blobs", name,
         nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest));
  }
  limit(set.train, options.train_limit);
  limit(set.test, options.test_limit);
  measure(set);
  return set;
}

std::pair<Split, Split> split_validation(const Split& split, double fraction, uint64_t seed) {
  if (!(fraction >= 0 && fraction < 1)) {
    fail(Code::usage, "validation fraction: expected 0 or more and less than 1, found {}",
         fraction);
  }
  std::map<int64_t, std::vector<size_t>> by_label;
  for (size_t i = 0; i < split.labels.size(); ++i) {
    by_label[split.labels[i]].push_back(i);
  }
  std::vector<char> chosen(split.labels.size(), 0);
  for (auto& [label, indices] : by_label) {
    const uint64_t stream = derive_seed(seed, "validation", static_cast<uint64_t>(label));
    const auto take =
        static_cast<size_t>(std::llround(fraction * static_cast<double>(indices.size())));
    for (size_t i = 0; i < take; ++i) {  // the first `take` steps of a Fisher-Yates shuffle
      const size_t other = i + derive_seed(stream, "draw", i) % (indices.size() - i);
      std::swap(indices[i], indices[other]);
      chosen[indices[i]] = 1;
    }
  }
  std::pair<Split, Split> result;
  result.first.sample_shape = result.second.sample_shape = split.sample_shape;
  for (size_t i = 0; i < chosen.size(); ++i) {
    append_sample(chosen[i] ? result.second : result.first, split, i);
  }
  return result;
}

void to_floats(const Split& split, int64_t first, int64_t count, double mean, double std,
               std::span<float> out) {
  if (first < 0 || count < 0 || first > split.count() || count > split.count() - first) {
    fail(Code::shape, "samples {} to {} of a split of {}", first, first + count, split.count());
  }
  const auto size = static_cast<size_t>(numel(split.sample_shape));
  if (out.size() != static_cast<size_t>(count) * size) {
    fail(Code::shape, "{} samples need {} floats, found room for {}", count,
         static_cast<size_t>(count) * size, out.size());
  }
  if (!(std > 0) || !std::isfinite(std) || !std::isfinite(mean)) {
    fail(Code::numeric, "expected a finite mean and a standard deviation above 0, found {} and {}",
         mean, std);
  }
  std::array<float, 256> value{};
  for (int v = 0; v < 256; ++v) {
    value[static_cast<size_t>(v)] = static_cast<float>((v / 255.0 - mean) / std);
  }
  const uint8_t* pixels = split.pixels.data() + static_cast<size_t>(first) * size;
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = value[pixels[i]];
  }
}

}  // namespace sluice::data
