// Small models and data for the tests of train.
#pragma once
#include <gtest/gtest.h>

#include <string>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/train/feed.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab::testing {

inline const data::ImageSet& blobs() {
  static const data::ImageSet set = data::load_image_set("blobs", {"", 640, 200});
  return set;
}
inline Feed train_feed() { return {blobs().train, blobs().mean, blobs().std, c10::kCPU}; }
inline Feed test_feed() { return {blobs().test, blobs().mean, blobs().std, c10::kCPU}; }

inline Model small_mlp(uint64_t seed = 5) {
  return make_model("mlp", {{"hidden", {16}}}, blobs(), seed);
}
inline Model small_resnet(uint64_t seed = 5) {
  return make_model("resnet", {{"width", 8}, {"blocks", 1}, {"stages", 2}, {"stem_stride", 2}},
                    blobs(), seed);
}

/// Names every tensor that is not bit for bit the same.
inline void expect_same_state(const Brick& a, const Brick& b) {
  const auto left = named_state(a), right = named_state(b);
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i) {
    EXPECT_EQ(left[i].first, right[i].first);
    EXPECT_TRUE(left[i].second.equal(right[i].second)) << left[i].first;
  }
}

}  // namespace sluice::lab::testing
