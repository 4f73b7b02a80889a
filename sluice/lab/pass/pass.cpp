#include "sluice/lab/pass/pass.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <deque>
#include <mutex>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/random.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/model/whole_floats.h"
#include "sluice/lab/pass/delta.h"
#include "sluice/lab/pass/exits.h"
#include "sluice/lab/pass/steps.h"
#include "sluice/lab/pass/stitch.h"
#include "sluice/lab/pass/subnet.h"

namespace sluice::lab {
namespace {

std::vector<PassEntry> builtin_passes() {
  return {
      {{"insert-gates", "puts gates that look at each input into empty gate slots",
        "granularity=channel   one unit per hidden channel of a residual block, or 'block': one "
        "per\n"
        "                      block with an identity shortcut; of transformers, for each token\n"
        "                      'neuron': one per neuron of feed-forward networks, 'token': one "
        "per\n"
        "                      block, which a closed token passes by, 'head': one per key head "
        "of\n"
        "                      attention with its query heads\n"
        "slots=**              what gets a gate, by path pattern\n"
        "noise=0               logistic noise on the logits while training\n"
        "bias=2                first bias of the last layer: gates start open\n"
        "hidden=0              hidden width of the gate; 0: max(4, inputs / 4)\n"
        "score=mlp             of transformers' gates: that hidden layer, or 'linear': none\n"
        "decision=threshold    of neurons also 'top_k' and 'statistical_top_k', by token\n"
        "keep=0.5              share of the neurons that these two keep\n"
        "estimator=ste_sigmoid how gradients pass the decision\n"
        "seed=0                of the gates' first weights",
        false, false},
       insert_gates},
      {{"freeze-gates", "replaces per-sample gates by the decision most calibration samples take",
        "slots=**              gates or their blocks, by path pattern\n"
        "threshold=0.5         share of samples above which a unit stays open\n"
        "min_channels=0.1      least share of a layer's units that stays",
        true, false},
       freeze_gates},
      {{"slice-channels", "removes what constant masks close from the tensors", "(no options)",
        false, true},
       slice_channels},
      {{"fold-norm",
        "folds batch norms into the layer before them, scales of other norms into those behind",
        "(no options)", false, true},
       fold_norm},
      {{"fold-linear", "two layers with nothing but faded activations between them become one",
        "slots=**              first layers, by path pattern\n"
        "fading=faded          'any': take activations for faded that are not; refused where that\n"
        "                      changes outputs",
        false, true},
       fold_linear},
      {{"prune", "zeroes weights, or masks channels, neurons or heads, of least score",
        "rate=0.5              share of the surviving weights, channels, ... that goes\n"
        "score=magnitude       or 'random'; 'activation': by what calibration inputs make of them\n"
        "scope=layer           'layer': the share of each; 'global': of all together\n"
        "granularity=weight    or 'channel', 'neuron' (of feed-forward networks), 'head' (key "
        "heads\n"
        "                      with their query heads): masks that slice-channels removes\n"
        "slots=**              layers (blocks, for channels), by path pattern\n"
        "seed=0                of score=random",
        false, false, true},
       prune},
      {{"quantize", "stores the weights of linear layers and embeddings in few bits",
        "format=i8             bf16, i8, i8-32, i4-32, i4-32-min, ternary, binary, binary-2 or "
        "mixed\n"
        "activations=f32       'bf16', or 'i8': inputs of these layers are rounded to it\n"
        "slots=**              layers, by path pattern\n"
        "skip=[]               layers that stay as they are, by path patterns: the last one, say\n"
        "embeddings=true       tables of embeddings, too; false where a weight gets less than 4 "
        "bits",
        false, false, true},
       quantize},
      {{"dequantize", "ordinary linear layers of the values that packed ones stand for",
        "slots=**              layers, by path pattern", false, false, true},
       dequantize},
      {{"rotate-residual", "turns a decoder's residual stream so that no column is an outlier",
        "by=random             'columns': so that the columns of k and gate become orthogonal; "
        "adds "
        "a\n"
        "                      layer beside every branch\n"
        "seed=0                of the random orthogonal matrix",
        false, true},
       rotate_residual},
      {{"nest", "one set of weights, many sizes: each runs the leading part of every layer",
        "widths=[0.25,0.5,0.75,1] shares of the channels and neurons\n"
        "depths=[]             blocks that run, the last number all: [4,6,8]\n"
        "scope=hidden          inside blocks and feed-forward networks; 'all': every channel of a "
        "network\n"
        "                      of pictures\n"
        "order=magnitude       most important units first; 'activation': by calibration inputs, "
        "'none'\n"
        "multiple=1            units that stay together\n"
        "knobs=one             'blocks': a width for each block of a transformer; or path "
        "patterns\n"
        "mixtures=uniform      one width for all; 'graded': and wider ones in the last blocks; "
        "'all'\n"
        "slots=**              layers or their blocks, by path pattern",
        false, true},
       nest},
      {{"set-sizes", "other sizes for a nested network, over the same weights",
        "widths=[0.25,0.5,0.75,1] shares of the channels and neurons\n"
        "depths=[]             blocks that run, the last number all\n"
        "multiple=1            units that stay together\n"
        "knobs=one             'blocks': a width for each block of a transformer; or path "
        "patterns\n"
        "mixtures=uniform      one width for all; 'graded': and wider ones in the last blocks; "
        "'all'\n"
        "sizes                 in place of mixtures, their names: [\"maabb\"] is of four knobs",
        false, false},
       set_sizes},
      {{"pick-size", "the ordinary network that a nested one is at one of its sizes",
        "size                  by name or number: sluice inspect --sizes", false, false},
       pick_size},
      {{"sparsify-activations",
        "attention and feed-forward layers read only the inputs that matter for the token",
        "sparsity=0.5          share of the inputs that is left out, from 0 to below 1\n"
        "keep=                 in its place the share that is kept; a list such as [0.3,0.5,0.7,1] "
        "makes\n"
        "                      a network of as many sizes, the last one dense (run --budget)\n"
        "score=wina            an input's size times the norm of its column; 'magnitude': size "
        "alone\n"
        "select=threshold      one per layer, from the calibration inputs; 'topk': the same number "
        "for\n"
        "                      every token\n"
        "budget=uniform        every layer alike; 'greedy': more where the block's output suffers "
        "least\n"
        "rotate=false          turn the stream first, so that columns of k and gate are "
        "orthogonal\n"
        "norms=**              layers whose column norms count, by path pattern or patterns\n"
        "dense_first=          tokens at the front that stay dense; default: 1% of a run\n"
        "slots=**              projections, by path pattern",
        true, false},
       sparsify_activations},
      {{"add-exits", "exits behind layers, through which what is sure enough leaves early",
        "layers=               behind which layers or blocks: [2,4]\n"
        "every=2               in its place: behind every second\n"
        "heads=shared          a decoder's own norm and head; 'own': fresh ones, fitted to the "
        "calibration\n"
        "                      inputs where there are any (classifiers: always)\n"
        "gate=confidence       largest probability; 'margin' to the second; 'entropy', negative\n"
        "shares=[0.5,0.7,0.85] sizes that spend that share of the dense cost, with thresholds from "
        "the\n"
        "                      calibration inputs; the last size is dense (run --budget)\n"
        "threshold=            in their place one size with that threshold for all exits\n"
        "seed=0                of fresh heads",
        false, true},
       add_exits},
      {{"calibrate-exits", "other sizes for a network with exits, from data",
        "shares=[0.5,0.7,0.85] sizes that spend that share of the dense cost\n"
        "threshold=            in their place one size with that threshold for all exits",
        false, false},
       calibrate_exits},
      {{"calibrate-gates", "sizes for a network with gates, each with a price for what they open",
        "shares=[0.5,0.7,0.85] sizes that spend that share of the dense cost; beside them "
        "\"trained\"\n"
        "                      and, the last, \"dense\": every gate open (run --budget)",
        true, false},
       calibrate_gates},
      {{"acmize", "feed-forward networks of which each row runs as much as it needs",
        "learners=4            small networks, summed, in place of each\n"
        "factor=1              their cost together, as a share of what they replace\n"
        "choice=-1             0 or more: that many learners for every row, no gate\n"
        "hidden=16             of the gate's two hidden layers\n"
        "projections=false     q, k, v and o of attention, too\n"
        "slots=**              layers, by path pattern\n"
        "seed=0                of the first weights: all are to be trained",
        false, false},
       acmize},
      {{"apply-delta", "adds a sparse difference that sluice delta made, or takes it away",
        "file                  the difference\n"
        "scale=1               times how much; -1 takes it away\n"
        "force=false           add it to a network that it was not made from",
        false, false, true},
       apply_delta},
      {{"add-lora", "side paths of low rank beside linear layers, which learn in their place",
        "rank=8                of the side paths\n"
        "scale=1               by which their output is multiplied\n"
        "slots=**              layers, by path pattern\n"
        "seed=0                of their first weights; fresh ones change nothing",
        false, true},
       add_lora},
      {{"fold-lora", "puts what the side paths have learnt into their layers",
        "slots=**              layers, by path pattern", false, true},
       fold_lora},
      {{"stitch", "this network and others as one, which also runs at sizes in between",
        "with                  file of another network, or a list: [\"a\",\"b\"]\n"
        "window=2              blocks that a stitch may lead over\n"
        "stride=1              by which the window slides\n"
        "seed=1                of the stitches' first values\n"
        "ridge=1e-4            of the least squares that fit them",
        true, false},
       stitch_pass},
      {{"reestimate-norm", "batch-norm statistics anew from calibration data", "(no options)", true,
        false},
       reestimate_norm},
  };
}

struct PassRegistry {
  std::mutex mutex;
  std::deque<PassEntry> entries;  // addresses stay valid as passes join
  PassRegistry() {
    for (PassEntry& entry : builtin_passes()) entries.push_back(std::move(entry));
  }
};

PassRegistry& passes() {
  static PassRegistry instance;
  return instance;
}

at::Tensor probe(const Model& model) {
  const at::NoGradGuard no_grad;
  const WholeFloats whole_floats;
  const EvaluationMode evaluation(*model.root);
  Context context;
  return model.root->forward(probe_input(model, 4, derive_seed(0, "run_pass")), context);
}

// A pass that promises equal outputs is held to it on every model, not only on those of the tests.
void check_unchanged(const at::Tensor& before, const at::Tensor& after, const std::string& name) {
  constexpr double kTolerance = 1e-3;
  const double scale = std::max(before.norm().item<double>(), 1e-6);
  const double error = (after - before).norm().item<double>() / scale;
  if (!(error <= kTolerance)) {
    fail(Code::internal,
         "pass {}: outputs differ by {:.2g} (relative) though the pass promises equal ones; the "
         "network has a structure it does not understand",
         name, error);
  }
}

}  // namespace

bool register_pass(PassEntry entry) {
  const std::lock_guard lock(passes().mutex);
  for (const PassEntry& known : passes().entries) {
    if (known.info.name == entry.info.name) return false;
  }
  passes().entries.push_back(std::move(entry));
  return true;
}

std::vector<const PassEntry*> all_passes() {
  const std::lock_guard lock(passes().mutex);
  std::vector<const PassEntry*> result;
  for (const PassEntry& entry : passes().entries) result.push_back(&entry);
  return result;
}

const PassEntry& find_pass(const std::string& name) {
  std::vector<std::string> names;
  for (const PassEntry* entry : all_passes()) {
    if (entry->info.name == name) return *entry;
    names.push_back(entry->info.name);
  }
  const std::string near = nearest_name(name, names);
  fail(Code::usage, "unknown pass '{}'{}; known: {}", name.substr(0, 60),
       near.empty() ? "" : fmt::format(", did you mean '{}'?", near), fmt::join(names, ", "));
}

Model run_pass(const Model& model, const std::string& name, const PassInput& input) {
  const PassEntry& entry = find_pass(name);
  if (entry.info.needs_calibration && !input.calibration.defined()) {
    fail(Code::usage, "pass {} needs calibration data, and none was given", name);
  }
  if (!entry.info.takes_graphs && model.root->kind() == "graph_network") {
    std::vector<std::string> others;
    for (const PassEntry* other : all_passes())
      if (other->info.takes_graphs) others.push_back(other->info.name);
    fail(Code::unsupported,
         "pass {}: the network is an imported graph, without the blocks, gates and norms that this "
         "pass changes; what works on its layers: {}",
         name, fmt::join(others, ", "));
  }
  Model result = clone(model);
  const Json report = entry.run(result, input);
  result.root->output_shape(result.input_shape);
  const at::Tensor output = probe(result);
  if (!at::isfinite(output).all().item<bool>()) {
    fail(Code::numeric, "pass {}: the network gives NaN or infinity afterwards", name);
  }
  if (entry.info.keeps_function) check_unchanged(probe(model), output, name);
  result.add_step({{"step", name}, {"options", input.options}, {"report", report}});
  return result;
}

// ---- steps.h ----

EvaluationMode::EvaluationMode(Brick& root) : root_(root), training_(root.is_training()) {
  for (const auto& module : root.modules(/*include_self=*/false)) {
    modes_.emplace_back(module, module->is_training());
  }
  root.eval();
}

EvaluationMode::~EvaluationMode() {
  root_.train(training_);
  for (const auto& [module, training] : modes_) {  // parents first: train() recurses
    if (module->is_training() != training) module->train(training);
  }
}

void for_each_calibration_batch(const Model& model, const PassInput& input, const std::string& pass,
                                const std::function<void(const at::Tensor& x)>& visit) {
  const at::Tensor& data = input.calibration;
  if (!data.defined() || data.dim() == 0 || data.size(0) == 0) {
    fail(Code::usage, "pass {} needs calibration data, and none was given", pass);
  }
  const Shape sample(data.sizes().begin() + 1, data.sizes().end());
  const bool text = model.root->vocabulary() > 0;  // of any length
  if (text ? sample.size() != 1 : sample != model.input_shape) {
    fail(Code::shape, "pass {}: calibration samples: expected {}, found {}", pass,
         text ? "token ids [T]" : to_string(model.input_shape), to_string(sample));
  }
  if (input.batch < 1) fail(Code::usage, "pass {}: batch {}; at least 1", pass, input.batch);
  const at::NoGradGuard no_grad;
  for (int64_t first = 0; first < data.size(0); first += input.batch) {
    const int64_t count = std::min(input.batch, data.size(0) - first);
    visit(as_input(data.narrow(0, first, count), model));
  }
}

BrickPtr placed_like(BrickPtr brick, const Brick& like) {
  brick->to(device_of(like));
  brick->train(like.is_training());
  return brick;
}

std::vector<BrickRef> all_bricks(const Model& model) {
  std::vector<BrickRef> result = {{"", model.root}};
  for (const SlotRef& ref : walk(*model.root)) {
    if (!ref.slot->empty()) result.push_back({ref.path, ref.slot->get()});
  }
  return result;
}

bool matches_any(const std::string& pattern, const std::string& path,
                 const std::vector<std::string>& inner) {
  if (path_matches(pattern, path)) return true;
  for (const std::string& name : inner) {
    if (path_matches(pattern, join_path(path, name))) return true;
  }
  return false;
}

// ---- reestimate-norm ----

namespace {

/// Calls `visit` for each of them.
template <class F>
void for_each_norm(const std::vector<std::shared_ptr<BatchNorm>>& norms,
                   const std::vector<std::shared_ptr<NestedConv2d>>& nested, const F& visit) {
  for (const auto& norm : norms) visit(*norm);
  for (const auto& conv : nested) visit(*conv);
}

}  // namespace

Json reestimate_norm(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {}, "pass reestimate-norm");
  std::vector<std::shared_ptr<BatchNorm>> norms;
  std::vector<std::shared_ptr<NestedConv2d>> nested;
  for (const BrickRef& ref : all_bricks(model)) {
    if (auto norm = std::dynamic_pointer_cast<BatchNorm>(ref.brick)) norms.push_back(norm);
    auto conv = std::dynamic_pointer_cast<NestedConv2d>(ref.brick);
    if (conv != nullptr && conv->norm().present) nested.push_back(conv);
  }
  const EvaluationMode evaluation(*model.root);  // gates decide as they will, without noise
  const auto end = [](auto& norm) { norm.end_estimate(); };
  // Ordinary norms have one set of statistics: in the end that of the last size, the whole.
  const auto sizes =
      nested.empty() ? 1 : static_cast<int64_t>(std::max<size_t>(1, model.sizes.size()));
  int64_t samples = 0;
  try {
    for (int64_t size = 0; size < sizes; ++size) {
      for_each_norm(norms, nested, [](auto& norm) {
        norm.begin_estimate();
        norm.train();
      });
      samples = 0;
      for_each_calibration_batch(model, input, "reestimate-norm", [&](const at::Tensor& x) {
        // Every batch counts the same in the average: a small last one would count too much.
        if (samples > 0 && x.size(0) < input.batch) return;
        Context context;
        context.size = size;
        model.root->forward(x, context);
        samples += x.size(0);
      });
    }
  } catch (...) {
    for_each_norm(norms, nested, end);
    throw;
  }
  for_each_norm(norms, nested, end);
  return {{"norms", norms.size() + nested.size()}, {"samples", samples}};
}

}  // namespace sluice::lab
