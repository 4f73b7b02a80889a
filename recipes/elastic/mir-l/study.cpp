#include "recipes/elastic/mir-l/study.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/random.h"
#include "sluice/data/degrade.h"
#include "sluice/data/image_quality.h"
#include "sluice/lab/train/iterative_prune.h"
#include "sluice/lab/train/optimizer.h"

namespace sluice::recipes::mir_l {
namespace {

const std::string kWhat = "recipe.toml";

at::Tensor to_tensor(const std::vector<data::Planes>& pictures, c10::Device device) {
  const data::Planes& first = pictures.front();
  at::Tensor result =
      at::empty({static_cast<int64_t>(pictures.size()), first.channels, first.height, first.width});
  float* to = result.data_ptr<float>();
  for (const data::Planes& each : pictures) {
    std::copy(each.values.begin(), each.values.end(), to);
    to += each.values.size();
  }
  return result.to(device);
}

data::Planes to_planes(const at::Tensor& picture) {
  const at::Tensor host = picture.to(c10::kCPU).contiguous();
  data::Planes planes{host.size(0), host.size(1), host.size(2), {}};
  planes.values.assign(host.data_ptr<float>(), host.data_ptr<float>() + host.numel());
  return planes;
}

double mean_of(const std::map<std::string, double>& values) {
  double sum = 0;
  for (const auto& [name, value] : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace

Plan read_plan(const Json& settings) {
  json_require_known_keys(settings,
                          {"data", "width", "blocks", "heads", "refinement", "prompt_width",
                           "prompt_side", "tasks", "crop", "batch", "steps", "rounds", "prune_rate",
                           "guard", "rate", "weight_decay", "test_crop", "test_crops", "seeds"},
                          kWhat);
  const auto integer = [&](const char* key) { return json_get<int64_t>(settings, key, kWhat); };
  const auto integers = [&](const char* key) {
    return json_get<std::vector<int64_t>>(settings, key, kWhat);
  };
  Plan plan;
  plan.data = json_get<std::string>(settings, "data", kWhat);
  plan.layers.width = integer("width");
  plan.layers.blocks = integers("blocks");
  plan.layers.heads = integers("heads");
  plan.layers.refinement = integer("refinement");
  plan.layers.prompt_width = integers("prompt_width");
  plan.layers.prompt_side = integers("prompt_side");
  plan.tasks = json_get<std::vector<std::string>>(settings, "tasks", kWhat);
  plan.crop = integer("crop");
  plan.batch = integer("batch");
  plan.steps = integer("steps");
  plan.rounds = integer("rounds");
  plan.prune_rate = json_get<double>(settings, "prune_rate", kWhat);
  plan.guard = json_get<double>(settings, "guard", kWhat);
  plan.optimizer.kind = "adamw";
  plan.optimizer.rate = json_get<double>(settings, "rate", kWhat);
  plan.optimizer.weight_decay = json_get<double>(settings, "weight_decay", kWhat);
  plan.schedule.warmup = 0.125;  // 15 of 120 epochs, then cosine
  plan.test_crop = integer("test_crop");
  plan.test_crops = integer("test_crops");
  return plan;
}

TestSet make_test_set(const Plan& plan, const std::vector<data::Photo>& photos,
                      std::string_view what) {
  TestSet set;
  for (size_t p = 0; p < photos.size(); ++p) {
    const data::Planes& picture = photos[p].planes;
    std::mt19937_64 engine(derive_seed(derive_seed(7, what), "places", p));
    for (int64_t c = 0; c < plan.test_crops; ++c) {
      const auto place = [&](int64_t side) {
        return static_cast<int64_t>(engine() % static_cast<uint64_t>(side - plan.test_crop + 1));
      };
      const int64_t top = place(picture.height), left = place(picture.width);
      set.clean.push_back(data::crop(picture, top, left, plan.test_crop, plan.test_crop));
    }
  }
  for (const std::string& task : plan.tasks) {
    for (size_t i = 0; i < set.clean.size(); ++i) {
      data::Planes degraded = set.clean[i];
      data::degrade(degraded, task, derive_seed(derive_seed(7, what), task, i));
      set.degraded[task].push_back(std::move(degraded));
    }
  }
  return set;
}

double Quality::psnr_mean() const { return mean_of(psnr); }
double Quality::ssim_mean() const { return mean_of(ssim); }

double Quality::worst_gain() const {
  double worst = psnr.begin()->second - input_psnr.begin()->second;
  for (const auto& [task, value] : psnr) worst = std::min(worst, value - input_psnr.at(task));
  return worst;
}

Quality test(lab::Model& model, const TestSet& set, c10::Device device) {
  const at::NoGradGuard no_grad;
  model.root->eval();
  Quality quality;
  constexpr size_t kBatch = 8;
  for (const auto& [task, pictures] : set.degraded) {
    double psnr = 0, ssim = 0, input = 0;
    std::vector<double> prompts;
    for (size_t first = 0; first < pictures.size(); first += kBatch) {
      const size_t end = std::min(pictures.size(), first + kBatch);
      lab::GateLog log;
      lab::Context context;
      context.gate_log = &log;
      const at::Tensor y =
          model.root->forward(to_tensor({pictures.begin() + static_cast<std::ptrdiff_t>(first),
                                         pictures.begin() + static_cast<std::ptrdiff_t>(end)},
                                        device),
                              context);
      if (!log.empty()) {
        const at::Tensor sums = log.records()[0].probability.sum(0).to(c10::kCPU, at::kDouble);
        prompts.resize(static_cast<size_t>(sums.numel()), 0.0);
        for (size_t i = 0; i < prompts.size(); ++i) prompts[i] += sums.data_ptr<double>()[i];
      }
      for (size_t i = first; i < end; ++i) {
        const data::Planes found = to_planes(y[static_cast<int64_t>(i - first)]);
        psnr += data::psnr(found, set.clean[i]);
        ssim += data::ssim(found, set.clean[i]);
        input += data::psnr(pictures[i], set.clean[i]);
      }
    }
    const auto n = static_cast<double>(pictures.size());
    quality.psnr[task] = psnr / n;
    quality.ssim[task] = ssim / n;
    quality.input_psnr[task] = input / n;
    for (double& weight : prompts) weight /= n;
    quality.prompt_weights[task] = std::move(prompts);
  }
  return quality;
}

data::Planes restore(lab::Model& model, const data::Planes& picture, c10::Device device) {
  const at::NoGradGuard no_grad;
  model.root->eval();
  lab::Context context;
  return to_planes(model.root->forward(to_tensor({picture}, device), context)[0]);
}

lab::Model make_network(const Plan& plan, uint64_t seed) {
  lab::Model model;
  model.root = lab::make_restoration_net(plan.layers, seed);
  model.input_shape = {plan.layers.channels, plan.crop, plan.crop};
  model.task.kind = "restore";
  model.add_step({{"step", "make"}, {"model", "restoration_net"}, {"seed", seed}});
  return model;
}

lab::PruneRates rates(double rate) { return {{{"**.weight", rate}}}; }

int64_t prunable_weights(const lab::Model& model) {
  int64_t total = 0;
  const lab::MaskSet all = lab::full_masks(*model.root, rates(0.5));
  for (const auto& [path, mask] : all.masks()) total += mask.numel();
  return total;
}

lab::Model make_narrow_network(const Plan& plan, int64_t weights, uint64_t seed) {
  Plan best = plan;
  int64_t fewest = prunable_weights(make_network(plan, seed));
  const int64_t heads = *std::max_element(plan.layers.heads.begin(), plan.layers.heads.end());
  for (int64_t width = 2; width < plan.layers.width; width += 2) {
    for (const double share : {0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}) {
      Plan narrow = plan;
      narrow.layers.width = width;
      for (int64_t& prompt : narrow.layers.prompt_width) {
        const double own =
            share * static_cast<double>(prompt * width) / static_cast<double>(plan.layers.width);
        prompt = std::max<int64_t>(heads, std::llround(own / static_cast<double>(heads)) * heads);
      }
      const int64_t count = prunable_weights(make_network(narrow, seed));
      if (count < weights || count >= fewest) continue;
      fewest = count;
      best = narrow;
    }
  }
  return make_network(best, seed);
}

void train(lab::Model& model, const lab::MaskSet& masks, const Plan& plan,
           const std::vector<data::Photo>& photos, uint64_t seed, c10::Device device,
           const std::string& title) {
  model.root->to(device);
  model.root->train();
  const lab::NamedParameters parameters = lab::trainable_parameters(*model.root);
  const auto optimizer = lab::build_optimizer(plan.optimizer, parameters);
  Progress progress(title, plan.steps);
  for (int64_t step = 0; step < plan.steps; ++step) {
    std::mt19937_64 engine(derive_seed(seed, "batch", static_cast<uint64_t>(step)));
    const auto below = [&](int64_t count) {
      return static_cast<int64_t>(engine() % static_cast<uint64_t>(count));
    };
    std::vector<data::Planes> clean, degraded;
    for (int64_t i = 0; i < plan.batch; ++i) {
      const data::Planes& picture = photos[static_cast<size_t>(below(std::ssize(photos)))].planes;
      const int64_t top = below(picture.height - plan.crop + 1),
                    left = below(picture.width - plan.crop + 1);
      clean.push_back(data::turned(data::crop(picture, top, left, plan.crop, plan.crop),
                                   static_cast<int>(below(8))));
      degraded.push_back(clean.back());
      data::degrade(degraded.back(), plan.tasks[static_cast<size_t>(below(std::ssize(plan.tasks)))],
                    engine());
    }
    optimizer->set_rate(plan.optimizer.rate *
                        lab::schedule_factor(plan.schedule, step, plan.steps));
    for (const auto& [name, p] : parameters) at::Tensor(p).mutable_grad() = at::Tensor();
    lab::Context context;
    const at::Tensor y = model.root->forward(to_tensor(degraded, device), context);
    const at::Tensor loss = (y - to_tensor(clean, device)).abs().mean();
    loss.backward();
    masks.apply_to_gradients(*model.root);
    optimizer->step();
    masks.apply(*model.root);
    if (step % 20 == 19 || step + 1 == plan.steps) {
      const auto value = loss.item<double>();
      if (!std::isfinite(value)) {
        fail(Code::numeric, "mir-l: {}: the loss is {} at step {}", title, value, step);
      }
      progress.update(step + 1, fmt::format("L1 {:.4f}", value));
    }
  }
  progress.finish();
}

}  // namespace sluice::recipes::mir_l
