// S126 mir-l: one network that removes noise, rain or haze without being told which, pruned to a
// tenth of its weights as a lottery ticket (MIR-L, arXiv 2510.14463). One run trains the dense
// network, prunes it round by round with rewind, and beside the ticket a narrow dense network, one
// that is pruned once, and tickets without their mask or without their first values.
#include "recipes/recipe.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "recipes/elastic/mir-l/study.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/train/iterative_prune.h"

namespace sluice::recipes::mir_l {
namespace {

struct Sets {
  TestSet test, validation, sequence;
};

/// What is kept of a round: enough for its point on the curves.
Json to_json(const Quality& quality) {
  Json tasks = Json::object();
  for (const auto& [task, value] : quality.psnr) tasks[task] = value;
  return {{"psnr", tasks}, {"psnr_mean", quality.psnr_mean()}};
}

class Study {
 public:
  Study(RecipeRun& run, const Plan& plan, const data::PhotoSet& photos)
      : run_(run), plan_(plan), photos_(photos) {
    sets_.test = make_test_set(plan, photos.test, "test");
    sets_.validation = make_test_set(plan, photos.validation, "validation");
    if (!photos.sequence.empty()) sets_.sequence = make_test_set(plan, photos.sequence, "sequence");
  }

  void run_seed(uint64_t seed, bool first);

 private:
  void record(const std::string& arm, const std::string& role, lab::Model& model, double weights) {
    const auto device = run_.options.device;
    const Quality quality = test(model, sets_.test, device);
    const auto add = [&](const std::string& metric, double value) {
      run_.report.add(arm, role, metric, value);
    };
    add("psnr_mean", quality.psnr_mean());
    add("ssim_mean", quality.ssim_mean());
    add("worst_gain", quality.worst_gain());
    for (const auto& [task, value] : quality.psnr) {
      add("psnr_" + task, value);
      add("gain_" + task, value - quality.input_psnr.at(task));
    }
    add("psnr_validation", test(model, sets_.validation, device).psnr_mean());
    if (!sets_.sequence.clean.empty())
      add("psnr_sequence", test(model, sets_.sequence, device).psnr_mean());
    add("weights", weights);
    last_ = quality;
  }

  lab::Model trained(lab::Model model, const lab::MaskSet& masks, uint64_t seed,
                     const std::string& title) {
    model.root->to(run_.options.device);
    masks.apply(*model.root);
    train(model, masks, plan_, photos_.train, derive_seed(seed, "batches"), run_.options.device,
          title);
    return model;
  }

  void show(const std::vector<lab::PruneRound>& rounds, const Quality& ticket);
  void strips(lab::Model& dense, lab::Model& ticket);

  RecipeRun& run_;
  const Plan& plan_;
  const data::PhotoSet& photos_;
  Sets sets_;
  Quality last_;
};

int64_t kept(const lab::MaskSet& masks) {
  int64_t total = 0;
  for (const auto& [path, mask] : masks.masks()) total += (mask != 0).sum().item<int64_t>();
  return total;
}

void Study::run_seed(uint64_t seed, bool first) {
  const auto device = run_.options.device;
  const uint64_t init = derive_seed(seed, "init");
  lab::Model model = make_network(plan_, init);
  model.root->to(device);
  const lab::MaskSet all = lab::full_masks(*model.root, rates(plan_.prune_rate));

  lab::IterativePruneOptions options;
  options.rounds = plan_.rounds;
  options.rates = rates(plan_.prune_rate);
  options.scope = lab::PruneScope::global;
  options.score = lab::guarded_score(lab::magnitude_score(), plan_.guard);
  lab::Snapshots snapshots;
  const auto rounds = lab::iterative_prune(
      model, options,
      [&](lab::Model& m, const lab::MaskSet& masks, int64_t round, lab::Snapshots& taken) {
        train(m, masks, plan_, photos_.train, derive_seed(seed, "batches"), device,
              fmt::format("round {}", round));
        if (round == 0) taken.take("dense", *m.root);
        return to_json(test(m, sets_.test, device));
      },
      snapshots);
  const lab::MaskSet& mask = rounds.back().masks;
  const auto weights = static_cast<double>(kept(mask));
  record("ticket", "system", model, weights);
  const Quality of_ticket = last_;
  int64_t empty = 0;
  for (const auto& [path, density] : mask.density_by_path()) {
    if (density > 0) continue;
    ++empty;
    run_.report.notes.push_back(fmt::format("seed {}: no weight of {} is left", seed, path));
  }
  run_.report.add("ticket", "system", "empty_layers", static_cast<double>(empty));
  run_.report.add("ticket", "system", "density", 100 * mask.density());
  int64_t others = 0;
  for (const at::Tensor& p : model.root->parameters()) others += p.numel();
  run_.report.add("ticket", "system", "unpruned_parameters",
                  static_cast<double>(others - prunable_weights(model)));

  lab::Model dense = lab::clone(model);
  snapshots.restore("dense", *dense.root);
  record("dense", "baseline", dense, static_cast<double>(prunable_weights(model)));

  lab::Model narrow =
      trained(make_narrow_network(plan_, static_cast<int64_t>(weights), init), {}, seed, "narrow");
  record("narrow", "baseline", narrow, static_cast<double>(prunable_weights(narrow)));

  const double once = 1 - std::pow(1 - plan_.prune_rate, static_cast<double>(plan_.rounds));
  const lab::MaskSet one_shot =
      lab::prune_masks(*dense.root, all, rates(once), options.score, lab::PruneScope::global);
  const auto from_start = [&] {
    lab::Model fresh = lab::clone(model);
    snapshots.restore("init", *fresh.root);
    return fresh;
  };
  lab::Model at_once = trained(from_start(), one_shot, seed, "one-shot");
  record("one-shot", "baseline", at_once, static_cast<double>(kept(one_shot)));

  const lab::MaskSet shuffled = lab::shuffle_masks(mask, derive_seed(seed, "shuffle"));
  lab::Model random = trained(from_start(), shuffled, seed, "random mask");
  record("random-mask", "control", random, static_cast<double>(kept(shuffled)));

  lab::Model redrawn =
      trained(make_network(plan_, derive_seed(seed, "redraw")), mask, seed, "redrawn");
  record("random-reinit", "control", redrawn, weights);

  if (!first) return;
  show(rounds, of_ticket);
  strips(dense, model);
  measure_engine(run_, plan_, dense, model);
}

void Study::show(const std::vector<lab::PruneRound>& rounds, const Quality& ticket) {
  Figure curve;
  curve.title = "Quality against weights left";
  curve.x_label = "weights left, %";
  curve.y_label = "PSNR, dB";
  curve.log_x = true;
  for (const std::string& task : plan_.tasks) {
    Series series{.name = task};
    for (const lab::PruneRound& round : rounds) {
      series.x.push_back(100 * round.density);
      series.y.push_back(round.result.at("psnr").at(task).get<double>());
    }
    curve.series.push_back(std::move(series));
  }
  run_.report.figures.push_back({"rounds", std::move(curve)});
  for (const lab::PruneRound& round : rounds) {
    run_.report.add("ticket", "system", fmt::format("psnr_mean_at_{:.0f}", 100 * round.density),
                    round.result.at("psnr_mean").get<double>());
  }
  Figure bars;
  bars.kind = Figure::Kind::bars;
  bars.title = "Which prompts each degradation asks for";
  bars.y_label = "mean weight";
  bars.categories = plan_.tasks;
  for (int64_t prompt = 0; prompt < plan_.layers.prompts; ++prompt) {
    Series series{.name = fmt::format("prompt {}", prompt)};
    for (const std::string& task : plan_.tasks) {
      const auto& weights = ticket.prompt_weights.at(task);
      if (weights.empty()) return;  // a network of one level has no prompts
      series.y.push_back(weights[static_cast<size_t>(prompt)]);
    }
    bars.series.push_back(std::move(series));
  }
  run_.report.figures.push_back({"prompts", std::move(bars)});
}

/// A picture with a row for each task: degraded, dense, ticket, clean.
void Study::strips(lab::Model& dense, lab::Model& ticket) {
  const int64_t side = plan_.test_crop, gap = 4;
  data::Planes sheet{3, std::ssize(plan_.tasks) * (side + gap), 4 * (side + gap), {}};
  sheet.values.assign(static_cast<size_t>(3 * sheet.pixels()), 1.0f);
  for (size_t row = 0; row < plan_.tasks.size(); ++row) {
    const data::Planes& degraded = sets_.test.degraded.at(plan_.tasks[row]).front();
    const data::Planes pictures[] = {degraded, restore(dense, degraded, run_.options.device),
                                     restore(ticket, degraded, run_.options.device),
                                     sets_.test.clean.front()};
    for (int64_t column = 0; column < 4; ++column) {
      for (int64_t c = 0; c < 3; ++c) {
        for (int64_t y = 0; y < side; ++y) {
          for (int64_t x = 0; x < side; ++x) {
            sheet.at(c, static_cast<int64_t>(row) * (side + gap) + y, column * (side + gap) + x) =
                pictures[column].at(c, y, x);
          }
        }
      }
    }
  }
  data::write_image(
      (std::filesystem::path(run_.options.work_directory) / "mir-l-strips.png").string(),
      data::to_image(sheet));
}

void run(RecipeRun& run) {
  const Plan plan = read_plan(run.settings);
  const data::PhotoSet photos = data::load_photos(plan.data);
  run.report.data.push_back(fmt::format(
      "{}: {} pictures to train with, {} to validate, {} to test, {} frames of a sequence",
      plan.data, photos.train.size(), photos.validation.size(), photos.test.size(),
      photos.sequence.size()));
  Study study(run, plan, photos);
  for (const uint64_t seed : run.seeds) study.run_seed(seed, seed == run.seeds.front());
  run.report.notes.emplace_back(fmt::format(
      "psnr in dB on RGB, clamped to 0..1, mean over {} crops of {} x {} of each test picture; "
      "gain: over the degraded input; worst_gain: the least over the tasks; psnr_sequence: grey "
      "frames of a recorded sequence; psnr_validation: pictures that are neither trained with nor "
      "tested",
      plan.test_crops, plan.test_crop, plan.test_crop));
  run.report.notes.emplace_back(
      "weights: those of convolutions and linear layers that are left; unpruned_parameters: norms, "
      "biases, temperatures and prompts, which all arms keep whole");
  run.report.notes.emplace_back(
      "mir-l-strips.png in the run's folder: degraded, dense, ticket and clean for each task");
}

const bool registered = register_recipe("mir-l", run);

}  // namespace
}  // namespace sluice::recipes::mir_l
