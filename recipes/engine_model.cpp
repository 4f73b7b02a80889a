#include "recipes/engine_model.h"
#if SLUICE_HAS_ENGINE
#include <algorithm>
#include <cmath>

#include "sluice/base/machine.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/train/feed.h"

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

double largest_size_difference(const lab::Model& original, const engine::Network& network,
                               const data::ImageSet& data, int64_t count) {
  lab::Model model = lab::clone(original);
  model.root->to(c10::kCPU);
  model.root->eval();
  const at::NoGradGuard no_grad;
  const lab::Feed test(data.test, data.mean, data.std, c10::kCPU);
  count = std::min(count, test.count());
  const at::Tensor x = test.range(0, count).inputs.contiguous();
  // Metered one image at a time: a batch is rounded up to whole chunks, which run, too.
  engine::Session session(network, {.batch = count}), single(network, {.batch = 1});
  double largest = 0;
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    lab::Context context;
    context.size = static_cast<int64_t>(i);
    Meter meter;
    const at::Tensor expected = model.forward(x, context).contiguous();
    at::Tensor found = at::empty_like(expected);
    session.run({x.data_ptr<float>(), size_t(x.numel())},
                {found.data_ptr<float>(), size_t(found.numel())}, {.size = context.size});
    largest = std::max(largest, ((found - expected).norm() / expected.norm()).item<double>());
    single.run({x.data_ptr<float>(), size_t(x.numel() / count)},
               {found.data_ptr<float>(), size_t(found.numel() / count)},
               {.meter = &meter, .size = context.size});
    const auto& entry = network.bundle().sizes()[i];
    if (meter.macs() != entry.macs || meter.macs() != model.sizes[i].macs) {
      fail(Code::internal,
           "size '{}': the engine ran {} MACs, the table says {}, "
           "training metered {}",
           entry.name, meter.macs(), entry.macs, model.sizes[i].macs);
    }
  }
  return largest;
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
