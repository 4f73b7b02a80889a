#include "sluice/lab/train/elastic.h"

#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

ElasticOptions elastic_options(const Json& json) {
  const std::string what = "nest";
  ElasticOptions options;
  options.nest = json;
  options.sampling = json_get_or<std::string>(json, "sampling", options.sampling, what);
  options.draws = json_get_or<int64_t>(json, "draws", options.draws, what);
  options.calibration = json_get_or<int64_t>(json, "calibration", options.calibration, what);
  for (const char* key : {"sampling", "draws", "calibration"}) options.nest.erase(key);
  SizeSampler{options.sampling, 2, options.draws}.check();
  if (options.calibration < 1) {
    fail(Code::config, "{}: calibration = {}; it has to be at least 1", what, options.calibration);
  }
  return options;
}

void sample_sizes(TrainHooks& hooks, const Model& model, const ElasticOptions& options,
                  uint64_t seed) {
  hooks.sizes = [sampler = SizeSampler{options.sampling, static_cast<int64_t>(model.sizes.size()),
                                       options.draws, derive_seed(seed, "sampler")}](int64_t step) {
    return sampler.at_step(step);
  };
}

ElasticResult train_elastic(const Model& model, Feed& feed, const TrainOptions& train,
                            const ElasticOptions& options, bool resume) {
  if (!model.sizes.empty() && !options.nest.empty()) {
    fail(Code::usage,
         "the network is nested already, of {} sizes; options of pass nest ({}, ...) do not apply",
         model.sizes.size(), options.nest.begin().key());
  }
  PassInput input;
  input.options = options.nest;
  ElasticResult result{model.sizes.empty() ? run_pass(model, "nest", input) : clone(model), {}};
  TrainHooks hooks;
  sample_sizes(hooks, result.model, options, train.seed);
  Trainer trainer(result.model, feed, train, std::move(hooks));
  if (resume) trainer.load_checkpoint(train.checkpoint);
  result.training = trainer.run();
  PassInput norms;
  norms.calibration = feed.range(0, std::min(options.calibration, feed.count())).inputs;
  result.model = run_pass(result.model, "reestimate-norm", norms);
  return result;
}

}  // namespace sluice::lab
