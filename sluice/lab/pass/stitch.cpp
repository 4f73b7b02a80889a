#include "sluice/lab/pass/stitch.h"

#include <algorithm>
#include <numeric>

#include "sluice/base/random.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/pass/least_squares.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

/// Where a feature has its values: rows of a transformer, height and width of a picture.
Shape places(const Shape& feature) {
  if (feature.size() == 3) return {feature[1], feature[2]};
  return {feature.begin(), feature.end() - 1};
}

int64_t width(const Shape& feature) { return feature.size() == 3 ? feature[0] : feature.back(); }

struct Stage {
  int64_t first = 0, blocks = 0;
};

/// Runs of blocks that give the same places.
std::vector<Stage> stages_of(const std::vector<Shape>& flow) {
  std::vector<Stage> stages;
  for (size_t k = 1; k < flow.size(); ++k) {
    if (k == 1 || places(flow[k]) != places(flow[k - 1])) {
      stages.push_back({static_cast<int64_t>(k) - 1, 0});
    }
    ++stages.back().blocks;
  }
  return stages;
}

void require_alike(const Model& first, const Model& second, size_t index) {
  const auto named = [&](size_t i) { return fmt::format("anchor {}", i); };
  if (first.input_shape != second.input_shape) {
    fail(Code::shape, "{} takes {}, {} takes {}; expected the same input", named(index - 1),
         to_string(first.input_shape), named(index), to_string(second.input_shape));
  }
  const Shape a = first.root->output_shape(first.input_shape),
              b = second.root->output_shape(second.input_shape);
  if (a != b || first.task.labels != second.task.labels) {
    fail(Code::shape, "{} gives {}, {} gives {}; expected the same classes", named(index - 1),
         to_string(a), named(index), to_string(b));
  }
  if (first.root->vocabulary() != second.root->vocabulary() ||
      first.tokenizer != second.tokenizer) {
    fail(Code::shape, "{} and {} have tokens of their own; only networks of one tokenizer fit",
         named(index - 1), named(index));
  }
  if (first.task.mean != second.task.mean || first.task.std != second.task.std) {
    fail(Code::shape, "{} and {} were trained on inputs of another mean or deviation",
         named(index - 1), named(index));
  }
  if (first.cost().macs >= second.cost().macs) {
    fail(Code::usage, "{} takes {} MACs, {} {}; expected the order of their cost, cheapest first",
         named(index - 1), first.cost().macs, named(index), second.cost().macs);
  }
}

struct StitchPlan {
  std::vector<StitchPath> paths;
  std::vector<std::shared_ptr<Stitch>> stitches;
};

/// The positions between two neighbours that fit, and a stitch for each group of them.
void add_pair(StitchPlan& plan, int64_t from, const std::vector<Shape>& a,
              const std::vector<Shape>& b, const StitchOptions& options) {
  const std::vector<Stage> front = stages_of(a), end = stages_of(b);
  if (front.size() != end.size()) {
    fail(Code::shape, "anchor {} has {} stages, anchor {} {}; only like stages are stitched", from,
         front.size(), from + 1, end.size());
  }
  const size_t before = plan.paths.size();
  std::string why;
  for (size_t s = 0; s < front.size(); ++s) {
    // In a stage of one block there is nothing to slide a window over.
    StitchOptions own = options;
    own.window = std::min(own.window, std::min(front[s].blocks, end[s].blocks));
    own.stride = std::min(own.stride, own.window);
    std::map<int64_t, int64_t> stitch_of;  // by group
    for (const StitchPosition& at : stitch_positions(front[s].blocks, end[s].blocks, own)) {
      const int64_t out = front[s].first + at.out, into = end[s].first + at.into;
      const Shape &given = a[static_cast<size_t>(out) + 1], &taken = b[static_cast<size_t>(into)];
      if (given.size() != taken.size() || places(given) != places(taken)) {
        why = fmt::format("block {} of anchor {} gives {}, block {} of anchor {} takes {}", out,
                          from, to_string(given), into, from + 1, to_string(taken));
        continue;
      }
      // A stage's first block may take fewer channels than the others.
      const int64_t key = at.group * kMaxChannels + width(taken);
      if (!stitch_of.contains(key)) {
        stitch_of[key] = static_cast<int64_t>(plan.stitches.size());
        plan.stitches.push_back(
            std::make_shared<Stitch>(width(given), width(taken), given.size() == 3));
      }
      plan.paths.push_back({from, from + 1, out, into, stitch_of[key]});
    }
  }
  if (plan.paths.size() == before) {
    fail(Code::shape,
         "nothing of anchor {} fits to anchor {}: {}; a stitch changes the width of features only",
         from, from + 1, why.empty() ? "their stages have no position to stitch at" : why);
  }
}

void check_windows(const StitchOptions& options, int64_t blocks) {
  if (options.window < 1 || options.window > blocks) {
    fail(Code::config, "window of stitches: expected 1 to the {} blocks, found {}", blocks,
         options.window);
  }
  if (options.stride < 1 || options.stride > options.window) {
    fail(Code::config, "stride of stitches: expected 1 to the window's {} blocks, found {}",
         options.window, options.stride);
  }
}

}  // namespace

std::vector<StitchPosition> stitch_positions(int64_t front, int64_t end,
                                             const StitchOptions& options) {
  std::vector<StitchPosition> result;
  if (front != end) {
    for (int64_t into = 0; into < end; ++into) {
      const int64_t out = into * front / end;  // as nearest interpolation has it
      if (out < into) result.push_back({out, into, static_cast<int64_t>(result.size())});
    }
    return result;
  }
  check_windows(options, front);
  int64_t group = 0;
  for (int64_t first = 0; first + options.window <= front; first += options.stride, ++group) {
    for (int64_t out = first; out < first + options.window; ++out) {
      for (int64_t into = first; into < first + options.window; ++into) {
        const bool seen =
            std::any_of(result.begin(), result.end(), [&](const StitchPosition& position) {
              return position.out == out && position.into == into;
            });
        if (!seen) result.push_back({out, into, group});
      }
    }
  }
  return result;
}

Model stitch(const std::vector<Model>& anchors, const StitchOptions& options) {
  if (anchors.size() < 2) {
    fail(Code::usage, "{} anchors; at least two networks can be stitched", anchors.size());
  }
  StitchPlan plan;
  std::vector<std::vector<Shape>> flows;
  int64_t longest = StitchOptions().window;
  for (size_t i = 0; i < anchors.size(); ++i) {
    if (i > 0) require_alike(anchors[i - 1], anchors[i], i);
    flows.push_back(
        BlockChain(*anchors[i].root, fmt::format("anchor {}", i)).shapes(anchors[i].input_shape));
    const auto index = static_cast<int64_t>(i);
    plan.paths.push_back({index, index});
    longest = std::max(longest, static_cast<int64_t>(flows.back().size()) - 1);
  }
  check_windows(options, longest);
  for (size_t i = 1; i < anchors.size(); ++i) {
    add_pair(plan, static_cast<int64_t>(i) - 1, flows[i - 1], flows[i], options);
  }
  if (plan.paths.size() > bundle::kMaxSizes) {
    fail(Code::limit, "{} paths; a network has at most {} sizes: take fewer anchors or blocks",
         plan.paths.size(), bundle::kMaxSizes);
  }

  const auto assemble = [&](std::vector<StitchPath> paths) {
    auto root = std::make_shared<StitchedModel>(std::move(paths));
    for (size_t i = 0; i < anchors.size(); ++i) {
      root->adopt(fmt::format("anchor{}", i), clone(*anchors[i].root));
    }
    for (size_t i = 0; i < plan.stitches.size(); ++i) {
      root->adopt(fmt::format("stitch{}", i), plan.stitches[i]);
    }
    root->check_slots();
    return root;
  };
  const at::Tensor like = anchors[0].root->parameters().front();
  for (size_t i = 0; i < plan.stitches.size(); ++i) {
    Stitch& layer = *plan.stitches[i];
    fill_uniform(layer.weight, 1.0 / std::sqrt(static_cast<double>(layer.inputs())),
                 derive_seed(options.seed, "stitch", i));
    const at::NoGradGuard no_grad;
    layer.bias.zero_();
    layer.to(like.device(), like.scalar_type());
  }
  Model model;
  model.input_shape = anchors[0].input_shape;
  model.task = anchors[0].task;
  model.tokenizer = anchors[0].tokenizer;
  std::vector<std::pair<int64_t, StitchPath>> by_cost;
  {
    const auto root = assemble(plan.paths);
    for (const StitchPath& path : plan.paths) {
      by_cost.emplace_back(root->path_macs(path, model.input_shape), path);
    }
  }
  const StitchPath whole = {static_cast<int64_t>(anchors.size()) - 1,
                            static_cast<int64_t>(anchors.size()) - 1};
  std::stable_sort(by_cost.begin(), by_cost.end(), [&](const auto& a, const auto& b) {
    const bool last_a = a.second == whole, last_b = b.second == whole;
    return last_a != last_b ? last_b : a.first < b.first;
  });
  std::vector<StitchPath> paths;
  for (const auto& [macs, path] : by_cost) {
    paths.push_back(path);
    model.sizes.push_back({path.name(), macs, {}});
  }
  model.root = assemble(std::move(paths));
  model.root->train(anchors[0].root->is_training());
  model.root->output_shape(model.input_shape);
  Json sources = Json::array();
  for (const Model& anchor : anchors) sources.push_back(anchor.provenance);
  model.add_step({{"step", "stitch"},
                  {"window", options.window},
                  {"stride", options.stride},
                  {"seed", options.seed},
                  {"paths", model.sizes.size()},
                  {"anchors", std::move(sources)}});
  return model;
}

StitchedModel& stitched_root(const Model& model) {
  auto* root = dynamic_cast<StitchedModel*>(model.root.get());
  if (root == nullptr) {
    fail(Code::unsupported, "the network is a {}; expected one that was stitched",
         model.root == nullptr ? "nothing" : model.root->kind());
  }
  return *root;
}

std::map<std::string, double> fit_stitches(Model& model, const PassInput& input, double ridge) {
  StitchedModel& root = stitched_root(model);
  const EvaluationMode evaluation(root);
  std::vector<BlockChain> chains;
  for (int64_t a = 0; a < root.anchors(); ++a) chains.push_back(root.anchor(a));
  std::vector<std::pair<StitchPath, LeastSquares>> fits;
  for (const StitchPath& path : root.paths()) {
    if (path.alone()) continue;
    const Stitch& layer = root.stitch(path.stitch);
    fits.emplace_back(path, LeastSquares(layer.inputs(), layer.outputs()));
  }
  const auto rows = [](const at::Tensor& feature) {  // [B, C, H, W]: channels last
    return feature.dim() == 4 ? feature.permute({0, 2, 3, 1}) : feature;
  };
  for_each_calibration_batch(model, input, "stitch", [&](const at::Tensor& x) {
    std::vector<std::vector<at::Tensor>> flow;  // by anchor: [0] into block 0, [k + 1] out of k
    for (const BlockChain& chain : chains) {
      Context context;
      std::vector<at::Tensor> values = {chain.front(x, context)};
      for (int64_t k = 0; k < chain.length(); ++k) {
        values.push_back(chain.block(k, values.back(), context));
      }
      for (at::Tensor& value : values) value = rows(value);
      flow.push_back(std::move(values));
    }
    for (auto& [path, fit] : fits) {
      fit.add(flow[static_cast<size_t>(path.from)][static_cast<size_t>(path.out) + 1],
              flow[static_cast<size_t>(path.to)][static_cast<size_t>(path.into)]);
    }
  });
  struct Sum {
    at::Tensor weight, bias;
    int64_t count = 0;
  };
  std::map<int64_t, Sum> sums;
  std::map<std::string, double> residuals;
  for (const auto& [path, fit] : fits) {
    const LinearFit found = fit.solve(ridge);
    residuals[path.name()] = found.residual;
    Sum& sum = sums[path.stitch];
    sum.weight = sum.count == 0 ? found.weight : sum.weight + found.weight;
    sum.bias = sum.count == 0 ? found.bias : sum.bias + found.bias;
    ++sum.count;
  }
  for (const auto& [index, sum] : sums) {
    root.stitch(index).set_values(sum.weight / sum.count, sum.bias / sum.count);
  }
  model.add_step({{"step", "fit-stitches"}, {"samples", input.calibration.size(0)}});
  return residuals;
}

}  // namespace sluice::lab
