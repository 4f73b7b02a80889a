#include "sluice/data/dataset.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"

namespace sluice::data {
namespace dataset_test {

using ::testing::ElementsAre;

void write_gzip(const std::string& path, const std::string& text) {
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(gzwrite(file, text.data(), static_cast<unsigned>(text.size())),
            static_cast<int>(text.size()));
  ASSERT_EQ(gzclose(file), Z_OK);
}

std::string idx(const std::vector<uint8_t>& sizes, const std::string& data) {
  std::string result{'\0', '\0', '\x08', static_cast<char>(sizes.size())};
  for (const uint8_t size : sizes) {
    result += std::string{'\0', '\0', '\0', static_cast<char>(size)};
  }
  return result + data;
}

/// A Fashion-MNIST of three training and two test pictures of 2x2.
class SmallIdxSet : public ::testing::Test {
 protected:
  SmallIdxSet() {
    write_gzip(file("train-images-idx3-ubyte.gz"), idx({3, 2, 2}, "abcdefghijkl"));
    write_gzip(file("train-labels-idx1-ubyte.gz"), idx({3}, std::string("\0\1\2", 3)));
    write_gzip(file("t10k-images-idx3-ubyte.gz"), idx({2, 2, 2}, "mnopqrst"));
    write_text_file(file("t10k-labels-idx1-ubyte"), idx({2}, std::string("\3\4", 2)));
    options_.directory = directory_.path();
  }
  std::string file(const std::string& name) const { return directory_ / name; }

  TempDirectory directory_;
  LoadOptions options_;
};

TEST_F(SmallIdxSet, LoadsSplitsAndLabels) {
  const ImageSet set = load_image_set("fashion-mnist", options_);
  EXPECT_EQ(set.name, "fashion-mnist");
  EXPECT_EQ(set.labels.size(), 10U);
  EXPECT_EQ(set.labels[9], "Ankle boot");
  EXPECT_EQ(set.train.count(), 3);
  EXPECT_EQ(set.train.sample_shape, (Shape{1, 2, 2}));
  EXPECT_THAT(set.train.labels, ElementsAre(0, 1, 2));
  EXPECT_THAT(set.train.sample(1), ElementsAre('e', 'f', 'g', 'h'));
  EXPECT_THAT(set.test.labels, ElementsAre(3, 4));
  EXPECT_NEAR(set.mean, ('a' + 'l') / 2.0 / 255, 1e-9);
  EXPECT_NEAR(set.std, std::sqrt(143.0 / 12) / 255, 1e-9);
}

TEST_F(SmallIdxSet, IsFoundThroughTheEnvironment) {
  const TempDirectory root;
  std::filesystem::create_directory_symlink(directory_.path(), root / "fashion-mnist");
  ::setenv("SLUICE_DATA", root.path().c_str(), 1);
  const ImageSet set = load_image_set("fashion-mnist");
  ::unsetenv("SLUICE_DATA");
  EXPECT_EQ(set.train.count(), 3);
}

TEST_F(SmallIdxSet, LimitsTakeTheFirstSamples) {
  options_.train_limit = 2;
  options_.test_limit = 1;
  const ImageSet set = load_image_set("fashion-mnist", options_);
  EXPECT_EQ(set.train.count(), 2);
  EXPECT_EQ(set.train.pixels.size(), 8U);
  EXPECT_THAT(set.test.labels, ElementsAre(3));
  options_.train_limit = -1;
  expect_error(Code::usage, "-1", [&] { load_image_set("fashion-mnist", options_); });
}

TEST_F(SmallIdxSet, RefusesFilesThatDoNotFitEachOther) {
  write_gzip(file("train-labels-idx1-ubyte.gz"), idx({2}, std::string("\0\1", 2)));
  expect_error(Code::shape, "expected 3 labels",
               [&] { load_image_set("fashion-mnist", options_); });
  write_gzip(file("train-labels-idx1-ubyte.gz"), idx({3}, std::string("\0\1\x0A", 3)));
  expect_error(Code::format, "label 10 of sample 2",
               [&] { load_image_set("fashion-mnist", options_); });
  write_gzip(file("train-images-idx3-ubyte.gz"), idx({3, 4}, "abcdefghijkl"));
  expect_error(Code::shape, "expected pictures",
               [&] { load_image_set("fashion-mnist", options_); });
  write_gzip(file("train-labels-idx1-ubyte.gz"), idx({3}, std::string("\0\1\2", 3)));
  write_gzip(file("train-images-idx3-ubyte.gz"), idx({3, 2, 1}, "abcdef"));
  expect_error(Code::shape, "test pictures are 1 x 2 x 2",
               [&] { load_image_set("fashion-mnist", options_); });
}

TEST(LoadImageSet, TellsHowToGetMissingData) {
  const TempDirectory directory;
  LoadOptions options;
  options.directory = directory.path();
  expect_error(Code::missing, "apt-get install dataset-fashion-mnist",
               [&] { load_image_set("fashion-mnist", options); });
  expect_error(Code::missing, "apt-get install python3-sklearn",
               [&] { load_image_set("digits", options); });
}

TEST(LoadImageSet, SuggestsTheNearestName) {
  expect_error(Code::usage, "did you mean 'fashion-mnist'?",
               [&] { load_image_set("fashion-mist"); });
  expect_error(Code::usage, "known: fashion-mnist, digits, emoji, blobs",
               [&] { load_image_set("imagenet"); });
}

TEST(LoadImageSet, ReadsTheInstalledFashionMnist) {
  if (!file_exists("/usr/share/datasets/fashion-mnist")) {
    GTEST_SKIP() << "dataset-fashion-mnist is not installed";
  }
  LoadOptions options;
  options.directory = "/usr/share/datasets/fashion-mnist";
  const ImageSet set = load_image_set("fashion-mnist", options);
  EXPECT_EQ(set.train.count(), 60000);
  EXPECT_EQ(set.test.count(), 10000);
  EXPECT_EQ(set.train.sample_shape, (Shape{1, 28, 28}));
  EXPECT_NEAR(set.mean, 0.2860, 1e-4);
  EXPECT_NEAR(set.std, 0.3530, 1e-4);
  EXPECT_EQ(std::count(set.test.labels.begin(), set.test.labels.end(), 9), 1000);
}

std::string digit_line(int value, int label) {
  std::string line;
  for (int i = 0; i < 64; ++i) {
    line += std::to_string(value) + ",";
  }
  return line + std::to_string(label) + "\n";
}

TEST(Digits, ScalesAndKeepsTheLastFifthOfEachClassForTest) {
  const TempDirectory directory;
  std::string text;
  for (int i = 0; i < 10; ++i) {
    text += digit_line(i, 3) + digit_line(i, 7);
  }
  text += digit_line(16, 0);
  write_gzip(directory / "digits.csv.gz", text);
  LoadOptions options;
  options.directory = directory.path();
  const ImageSet set = load_image_set("digits", options);
  EXPECT_EQ(set.train.sample_shape, (Shape{1, 8, 8}));
  EXPECT_EQ(set.train.count(), 17);
  EXPECT_THAT(set.test.labels, ElementsAre(3, 7, 3, 7));
  EXPECT_EQ(set.test.sample(0)[0], 8 * 255 / 16 + 1);  // 127.5, rounded up
  EXPECT_EQ(set.test.sample(3)[63], 143);
  EXPECT_EQ(set.train.sample(16)[5], 255);
  EXPECT_EQ(set.labels[7], "7");
}

TEST(Digits, NamesTheLineOfAnError) {
  const TempDirectory directory;
  LoadOptions options;
  options.directory = directory.path();
  const auto expect = [&](const std::string& second_line, const char* message) {
    write_text_file(directory / "digits.csv", digit_line(1, 1) + second_line);
    expect_error(Code::format, message, [&] { load_image_set("digits", options); });
  };
  expect("1,2,3\n", "line 2: expected 65 columns");
  expect(digit_line(17, 1), "line 2, column 1: expected a whole number from 0 to 16");
  expect(digit_line(1, 10), "line 2, column 65: expected a whole number from 0 to 9");
  expect(digit_line(-1, 1), "line 2, column 1");
  expect("x" + digit_line(1, 1), "line 2, column 1");
  expect("0.5" + digit_line(1, 1).substr(1), "line 2, column 1");
  expect("nan" + digit_line(1, 1).substr(1), "line 2, column 1");
  std::string long_line = digit_line(1, 1);
  long_line.insert(long_line.size() - 1, ",5");
  expect(long_line, "expected 65 columns");
}

TEST(Blobs, AreTheSameEveryTimeAndBalanced) {
  const ImageSet a = load_image_set("blobs"), b = load_image_set("blobs");
  EXPECT_EQ(a.train.pixels, b.train.pixels);
  EXPECT_EQ(a.train.count(), 2000);
  EXPECT_EQ(a.test.count(), 500);
  EXPECT_EQ(a.train.sample_shape, (Shape{1, 12, 12}));
  EXPECT_EQ(a.labels.size(), 10U);
  for (int label = 0; label < 10; ++label) {
    EXPECT_EQ(std::count(a.train.labels.begin(), a.train.labels.end(), label), 200);
  }
  EXPECT_NE(std::vector<uint8_t>(a.train.pixels.begin(), a.train.pixels.begin() + 144),
            std::vector<uint8_t>(a.test.pixels.begin(), a.test.pixels.begin() + 144));
}

/// Test accuracy of the nearest class mean, over the pixels [first, last).
double centroid_accuracy(const ImageSet& set, size_t first, size_t last) {
  const size_t size = 144;
  std::vector<double> means(10 * size, 0.0);
  for (int64_t i = 0; i < set.train.count(); ++i) {
    for (size_t p = 0; p < size; ++p) {
      means[static_cast<size_t>(set.train.labels[static_cast<size_t>(i)]) * size + p] +=
          set.train.sample(i)[p] / 200.0;
    }
  }
  int right = 0;
  for (int64_t i = 0; i < set.test.count(); ++i) {
    const std::span<const uint8_t> sample = set.test.sample(i);
    size_t best = 0;
    double best_distance = 1e30;
    for (size_t label = 0; label < 10; ++label) {
      double distance = 0;
      for (size_t p = first; p < last; ++p) {
        distance += std::pow(sample[p] - means[label * size + p], 2);
      }
      if (distance < best_distance) {
        best_distance = distance;
        best = label;
      }
    }
    right += static_cast<int64_t>(best) == set.test.labels[static_cast<size_t>(i)];
  }
  return right / 500.0;
}

TEST(Blobs, NeedMoreThanOnePixelAndMoreThanClassMeans) {
  const ImageSet set = load_image_set("blobs");
  const double whole = centroid_accuracy(set, 0, 144);
  EXPECT_GT(whole, 0.7);
  EXPECT_LT(whole, 0.9);
  EXPECT_LT(centroid_accuracy(set, 70, 71), 0.3);
}

TEST(SplitValidation, IsStratifiedCompleteAndSeeded) {
  const Split train = load_image_set("blobs").train;
  const auto [rest, validation] = split_validation(train, 0.1, 7);
  EXPECT_EQ(rest.count(), 1800);
  EXPECT_EQ(validation.count(), 200);
  EXPECT_EQ(validation.sample_shape, train.sample_shape);
  for (int label = 0; label < 10; ++label) {
    EXPECT_EQ(std::count(validation.labels.begin(), validation.labels.end(), label), 20);
  }
  std::map<std::vector<uint8_t>, int> seen;  // every picture exactly once in one of the two
  const auto count = [&seen](const Split& split, int by) {
    for (int64_t i = 0; i < split.count(); ++i) {
      const std::span<const uint8_t> sample = split.sample(i);
      seen[{sample.begin(), sample.end()}] += by;
    }
  };
  count(train, 1);
  count(rest, -1);
  count(validation, -1);
  EXPECT_TRUE(
      std::all_of(seen.begin(), seen.end(), [](const auto& item) { return item.second == 0; }));
  EXPECT_EQ(split_validation(train, 0.1, 7).second.pixels, validation.pixels);
  EXPECT_NE(split_validation(train, 0.1, 8).second.pixels, validation.pixels);
}

TEST(SplitValidation, HoldsTheRangeOfTheFraction) {
  const Split train = load_image_set("blobs").train;
  EXPECT_EQ(split_validation(train, 0, 1).second.count(), 0);
  expect_error(Code::usage, "fraction", [&] { split_validation(train, 1, 1); });
  expect_error(Code::usage, "fraction", [&] { split_validation(train, -0.1, 1); });
  expect_error(Code::usage, "fraction", [&] { split_validation(train, std::nan(""), 1); });
}

TEST(ToFloats, ScalesABlockAndChecksItsBounds) {
  Split split;
  split.sample_shape = {1, 1, 2};
  split.pixels = {0, 255, 51, 102};
  split.labels = {0, 1};
  std::vector<float> out(2);
  to_floats(split, 1, 1, 0.2, 0.5, out);
  EXPECT_NEAR(out[0], 0, 1e-6);
  EXPECT_NEAR(out[1], 0.4, 1e-6);
  expect_error(Code::shape, "split of 2", [&] { to_floats(split, 1, 2, 0, 1, out); });
  expect_error(Code::shape, "split of 2", [&] { to_floats(split, -1, 1, 0, 1, out); });
  expect_error(Code::shape, "need 4 floats", [&] { to_floats(split, 0, 2, 0, 1, out); });
  expect_error(Code::numeric, "above 0", [&] { to_floats(split, 0, 1, 0, 0, out); });
  expect_error(Code::shape, "0 to 1", [&] { split.sample(2); });
}

}  // namespace dataset_test
}  // namespace sluice::data
