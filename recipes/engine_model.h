// Networks of recipes in the engine, for timing. Empty in builds without it.
#pragma once
#if SLUICE_HAS_ENGINE
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sluice/bundle/bundle.h"
#include "sluice/data/dataset.h"
#include "sluice/engine/graph/network.h"
#include "sluice/lab/model/model.h"

namespace sluice::recipes {

/// The model as a bundle at `path`, in evaluation mode, opened by the engine.
engine::Network in_engine(const lab::Model& model, const std::string& path);

/// `count` normal numbers of mean 0.
std::vector<float> normal_floats(int64_t count, double deviation, uint64_t seed);

/// For every size of a nested network that takes pictures: how far the engine's outputs for the
/// first `count` test images are from the model's, relative; the largest. Throws Error{internal}
/// naming the size whose MACs differ between engine, table and model.
double largest_size_difference(const lab::Model& original, const engine::Network& network,
                               const data::ImageSet& data, int64_t count);

/// Networks that are alike but for where they lie in memory, so that weights come from there and
/// not from a cache. One thread, one sample.
class NetworkCopies {
 public:
  /// As many as fill one and a half last-level caches, and one more; from 2 to `most`.
  /// `bytes`: of one network's weights.
  static int64_t count_for(double bytes, int64_t most);
  NetworkCopies(int64_t count, const std::function<void(bundle::Builder&)>& make);
  /// The next one's turn.
  void run(const std::vector<float>& x, std::vector<float>& y);

 private:
  std::vector<std::vector<std::byte>> bytes_;
  std::vector<engine::Network> networks_;
  std::vector<engine::Session> sessions_;
  size_t turn_ = 0;
};

}  // namespace sluice::recipes
#endif
