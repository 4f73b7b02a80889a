// S016 spark-transformer: feed-forward networks and attention that are sparse by construction
// (arXiv 2506.06644). One run trains, on the same text and seeds: a gated dense decoder, Spark
// feed-forward networks alone and with Spark attention at as many parameters, exact top-k and a
// hard mask in the place of the statistical soft threshold; and thresholds the dense one
// afterwards.
#include "recipes/recipe.h"

#include <torch/types.h>

#include <cmath>

#include "recipes/dynamic/spark-transformer/speed.h"
#include "recipes/dynamic/spark-transformer/variants.h"
#include "recipes/made_up_text.h"
#include "recipes/text_settings.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/data/directory.h"
#include "sluice/lab/train/text_corpus.h"
#include "sluice/lab/train/token_feed.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::recipes::spark_transformer {
namespace {

const std::string kSettings = "spark-transformer settings";

struct SparkPlan {
  lab::CorpusConfig corpus;
  Json model;
  SparkSizes sizes;
  int64_t context = 128, evaluated_tokens = 20000, points = 10;
  lab::TrainOptions train;
  SpeedSizes speed;
  bool measured_speed = true, random_text = false;
};

SparkPlan read_spark_plan(const Json& s, const std::string& work) {
  SparkPlan plan;
  const auto integer = [&](const char* key) { return json_get<int64_t>(s, key, kSettings); };
  plan.model = json_get<Json>(s, "model", kSettings);
  plan.context = json_get<int64_t>(plan.model, "context", kSettings);
  SparkSizes& sizes = plan.sizes;
  sizes.layers = json_get<int64_t>(plan.model, "layers", kSettings);
  sizes.heads = json_get<int64_t>(plan.model, "heads", kSettings);
  sizes.ffn.width = json_get<int64_t>(plan.model, "width", kSettings);
  sizes.ffn.split = integer("split");
  sizes.ffn.neurons = integer("neurons");
  sizes.ffn.keep = json_get<double>(s, "keep", kSettings);
  sizes.fan_in = json_get<bool>(s, "fan_in", kSettings);
  sizes.attention.head_dim = sizes.ffn.width / sizes.heads;
  sizes.attention.split = sizes.attention.head_dim / 2;
  sizes.attention.tokens = integer("attended");
  sizes.attention.cache = plan.context;
  plan.evaluated_tokens = integer("evaluated_tokens");
  plan.random_text = json_get<bool>(s, "random_text", kSettings);
  plan.measured_speed = json_get<bool>(s, "speed", kSettings);
  plan.speed.keep = sizes.ffn.keep;
  plan.corpus = read_corpus(s, work, "text.tokens", kSettings);
  plan.train = read_text_training(s, kSettings);
  plan.train.tokens_per_sample = plan.context;
  return plan;
}

data::TokenFile text_of(const SparkPlan& plan, const RecipeRun& run) {
  lab::CorpusConfig corpus = plan.corpus;
  if (plan.random_text)
    corpus.text = made_up_text(run.options.work_directory, kMadeUpEnglish, 30, 60);
  return lab::prepare_tokens(corpus);
}

/// What ran, by block: shares of neurons awake, and MACs per token of feed-forward networks and
/// attention (its products with q, k and v left out).
struct Metered {
  std::vector<double> density;
  double macs = 0;
};

Metered metered_run(lab::Model& model, const at::Tensor& ids) {
  Meter meter;
  lab::Context context;
  context.meter = &meter;
  const at::NoGradGuard no_grad;
  model.root->eval();
  model.forward(ids, context);
  const double rows = double(ids.numel());
  Metered result;
  std::map<std::string, int64_t> macs;
  for (const Meter::Entry& entry : meter.entries()) {
    macs[entry.path] += entry.macs;
    const bool core = entry.path.ends_with(".attn");
    const bool ffn = entry.path.find(".ffn") != std::string::npos;
    if (core || ffn) result.macs += double(entry.macs) / rows;
  }
  for (const lab::SlotRef& ref : lab::walk(*model.root, "blocks.*.ffn")) {
    const auto* spark = dynamic_cast<const lab::SparkFfn*>(ref.slot->get().get());
    if (spark == nullptr) continue;
    const auto& o = spark->options();
    const double all = rows * double(o.neurons);
    result.density.push_back((double(macs.at(ref.path)) - all * double(o.split)) /
                             (all * double(2 * o.width - o.split)));
  }
  return result;
}

class SparkStudy {
 public:
  SparkStudy(RecipeRun& run, const SparkPlan& plan, uint64_t seed)
      : run_(run), plan_(plan), seed_(seed), tokens_(text_of(plan, run)) {
    const int64_t windows =
        std::clamp<int64_t>(tokens_.count(data::TextSplit::held_out) / plan.context, 1, 16);
    probe_ = at::empty({windows, plan.context}, at::kLong);
    tokens_.read(data::TextSplit::held_out, 0,
                 {probe_.data_ptr<int64_t>(), static_cast<size_t>(probe_.numel())});
    probe_ = probe_.to(run.options.device);
  }
  void run_all();

 private:
  lab::Model base_model() const;
  lab::Model trained(const std::string& arm, lab::Model model, Figure* densities);
  double perplexity(lab::Model& model);
  void report(const std::string& arm, const char* role, lab::Model& model);

  RecipeRun& run_;
  const SparkPlan& plan_;
  const uint64_t seed_;
  data::TokenFile tokens_;
  at::Tensor probe_;
};

lab::Model SparkStudy::base_model() const {
  Json options = plan_.model;
  options["vocab"] = tokens_.info().vocabulary;
  lab::Model model = lab::make_model("decoder", options, derive_seed(seed_, "init"));
  if (plan_.sizes.fan_in) draw_by_fan_in(model, plan_.sizes.layers, derive_seed(seed_, "fan-in"));
  return model;
}

lab::Model SparkStudy::trained(const std::string& arm, lab::Model model, Figure* densities) {
  model.root->to(run_.options.device);
  lab::TrainOptions options = plan_.train;
  options.seed = derive_seed(seed_, "train");  // the same windows for all
  options.title = "spark-transformer: " + arm;
  lab::TokenFeed feed(tokens_, data::TextSplit::train, plan_.context, run_.options.device);
  lab::Trainer trainer(model, feed, options);
  for (int64_t point = 1; point <= plan_.points; ++point) {
    trainer.run(options.steps * point / plan_.points);
    if (densities == nullptr) continue;
    const Metered now = metered_run(model, probe_);
    densities->series.resize(now.density.size());
    for (size_t layer = 0; layer < now.density.size(); ++layer) {
      densities->series[layer].name = fmt::format("layer {}", layer);
      densities->series[layer].x.push_back(double(trainer.step()));
      densities->series[layer].y.push_back(100 * now.density[layer]);
    }
    model.root->train();
  }
  model.root->eval();
  return model;
}

double SparkStudy::perplexity(lab::Model& model) {
  return std::exp(lab::evaluate_text(model, tokens_, data::TextSplit::held_out, plan_.context,
                                     plan_.evaluated_tokens)
                      .loss);
}

void SparkStudy::report(const std::string& arm, const char* role, lab::Model& model) {
  Report& out = run_.report;
  out.add(arm, role, "perplexity", perplexity(model));
  const Metered ran = metered_run(model, probe_);
  out.add(arm, role, "macs_per_token", ran.macs);
  if (ran.density.empty()) return;
  double sum = 0;
  for (const double each : ran.density) sum += each;
  const double mean = sum / double(ran.density.size());
  out.add(arm, role, "density", mean);
  out.add(arm, role, "density_error", std::abs(mean - plan_.sizes.ffn.keep));
  out.add(arm, role, "density_most", *std::max_element(ran.density.begin(), ran.density.end()));
}

void SparkStudy::run_all() {
  const uint64_t own = derive_seed(seed_, "spark");
  lab::Model dense = trained("dense", base_model(), nullptr);
  report("dense", "baseline", dense);
  lab::Model later = post_hoc(dense, plan_.sizes.ffn.keep);
  report("post-hoc", "baseline", later);

  SparkSizes ffn_only = plan_.sizes;
  ffn_only.spark_attention = false;
  const auto spark = [&](const std::string& arm, const char* role, const SparkSizes& sizes,
                         Rule rule, Figure* densities = nullptr) {
    lab::Model model = base_model();
    make_spark(model, sizes, rule, own);
    model = trained(arm, std::move(model), densities);
    report(arm, role, model);
    return model;
  };
  Figure densities;
  densities.title = "Neurons awake over training";
  densities.x_label = "steps";
  densities.y_label = "awake, %";
  const lab::Model system = spark("spark", "system", plan_.sizes, Rule::statistical, &densities);
  if (seed_ == run_.seeds.front()) run_.report.figures.push_back({"density", densities});
  spark("spark-ffn", "system", ffn_only, Rule::statistical);
  spark("exact-top-k", "baseline", ffn_only, Rule::exact);
  spark("hard-mask", "baseline", ffn_only, Rule::hard);
  for (const auto& [arm, rule] :
       {std::pair{"random-neurons", Rule::random}, std::pair{"foreign-threshold", Rule::foreign}}) {
    lab::Model control = with_rule(system, rule, own);
    report(arm, "control", control);
  }
  compare_with_engine(run_, system, probe_);
  if (seed_ == run_.seeds.front()) race_decoders(run_, dense, system, probe_);
  if (seed_ == run_.seeds.front() && plan_.measured_speed)
    measure_spark_speed(run_, plan_.speed, own);
}

void run(RecipeRun& run) {
  const SparkPlan plan = read_spark_plan(run.settings, run.options.work_directory);
  for (const uint64_t seed : run.seeds) SparkStudy(run, plan, seed).run_all();
  const data::TokenFile tokens = data::TokenFile::open(plan.corpus.tokens);
  run.report.data.push_back(fmt::format("{}: {} training and {} held-out tokens",
                                        tokens.info().source, tokens.count(data::TextSplit::train),
                                        tokens.count(data::TextSplit::held_out)));
  run.report.notes.push_back(
      "macs_per_token: metered, of feed-forward networks and of attention without its projections; "
      "density: share of neurons awake, mean over layers; hard-mask and exact-top-k are trained as "
      "such, post-hoc keeps the neurons of the dense network with the largest activated gates");
}

const bool registered = register_recipe("spark-transformer", run);

}  // namespace
}  // namespace sluice::recipes::spark_transformer
