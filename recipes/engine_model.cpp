#include "recipes/engine_model.h"
#if SLUICE_HAS_ENGINE
#include <algorithm>
#include <cmath>

#include "sluice/base/machine.h"
#include "sluice/lab/brick/init.h"

namespace sluice::recipes {

engine::Network in_engine(const lab::Model& model, const std::string& path) {
  lab::Model copy = lab::clone(model);
  copy.root->to(c10::kCPU);
  copy.root->eval();
  lab::save_bundle(copy, path);
  return engine::Network::open(path);
}

std::vector<float> normal_floats(int64_t count, double deviation, uint64_t seed) {
  at::Tensor values = at::empty({count});
  lab::fill_normal(values, deviation, seed);
  return {values.data_ptr<float>(), values.data_ptr<float>() + count};
}

int64_t NetworkCopies::count_for(double bytes, int64_t most) {
  const double fill = std::ceil(1.5 * double(last_level_cache_bytes()) / bytes);
  return std::clamp<int64_t>(static_cast<int64_t>(fill) + 1, 2, most);
}

NetworkCopies::NetworkCopies(int64_t count, const std::function<void(bundle::Builder&)>& make) {
  for (int64_t i = 0; i < count; ++i) {
    bundle::Builder builder;
    make(builder);
    bytes_.push_back(builder.bytes());
  }
  for (const auto& each : bytes_) {
    networks_.emplace_back(bundle::Bundle::parse(each, "copy", {}));
    sessions_.emplace_back(networks_.back(), engine::Session::Options{.batch = 1, .threads = 1});
  }
}

void NetworkCopies::run(const std::vector<float>& x, std::vector<float>& y) {
  sessions_[turn_++ % sessions_.size()].run(x, y);
}

}  // namespace sluice::recipes
#endif
