// Surgery: model -> model. A pass addresses slots by path pattern through walk() and puts new
// bricks into them. It reports what it changed; the report becomes a step of the model's
// provenance.
#pragma once
#include <functional>

#include "sluice/lab/model/model.h"

namespace sluice::lab {

/// What a pass may look at besides the model.
struct PassInput {
  Json options = Json::object();
  /// Calibration inputs, normalised [n, ...]; undefined when none were given. Passes that need them
  /// say so.
  at::Tensor calibration;
  int64_t batch = 128;  ///< of calibration forwards
};

struct PassInfo {
  std::string name;     ///< "slice-channels"
  std::string summary;  ///< one line
  std::string options;  ///< "keep=0.5 norm=1": names, defaults and meaning, one per line
  bool needs_calibration = false;
  bool keeps_function =
      false;  ///< outputs are equal before and after (to rounding): tests prove it
  /// Finds what it changes in an imported graph too (brick graph_network); others need bricks.
  bool takes_graphs = false;
};

struct PassEntry {
  PassInfo info;
  /// Changes the model in place; on an exception the model may be half-changed (callers work on a
  /// clone). Returns the report.
  Json (*run)(Model& model, const PassInput& input);
};

/// Registers at program start.
bool register_pass(PassEntry entry);
std::vector<const PassEntry*> all_passes();
/// Throws Error{usage} naming the nearest pass.
const PassEntry& find_pass(const std::string& name);
/// Runs on a clone, checks it still runs and is finite, appends {"step": name, "options", "report"}
/// to the provenance.
Model run_pass(const Model& model, const std::string& name, const PassInput& input);

// ---- the passes of lab/pass, also callable directly ----

/// insert-gates {slots="**", granularity="channel"|"block"|"neuron"|"token"|"head", noise=0,
/// bias=2, hidden=0, score="mlp"|"linear", decision="threshold"|"top_k"|"statistical_top_k",
/// keep=0.5, estimator="ste_sigmoid", seed=0}: puts fresh gates into the empty gate slots of
/// matching bricks. Channel and block: residual blocks (pooled_mlp, threshold 0.5), block gates
/// only where the shortcut is the identity. Neuron: feed-forward networks of linear layers, decided
/// token by token from the token; top_k and statistical_top_k keep the share `keep` of the neurons.
/// Token: transformer blocks, which a closed token passes by. Head: key heads of attention with
/// their query heads, token by token; not in a block with a token gate. First weights depend on
/// (seed, path) only. Report: gates (paths), units, added_params.
Json insert_gates(Model& model, const PassInput& input);
/// freeze-gates {slots="**", threshold=0.5, min_channels=0.1}: every gate -> constant mask of units
/// open for more than `threshold` of the calibration samples; keeps at least min_channels of a
/// layer's units and one block per stage. Report: kept {path: share of open units}, consensus (mean
/// of 4 m (1 - m) over all units; 0 where all samples agree), histogram (20 counts of m over [0,
/// 1]), gates {path: {units, open, consensus}}, units, open, samples, threshold.
Json freeze_gates(Model& model, const PassInput& input);
/// slice-channels {}: removes the closed units of constant masks: channels out of producers,
/// carriers and consumers; blocks whose block gate is closed become Identity (their final
/// activation kept when it matters). Equal outputs.
Json slice_channels(Model& model, const PassInput& input);
/// fold-norm {}: batch norms into the layer before them, scale and shift of RMS and layer norms
/// into the linear layers that alone read them (evaluation-mode equal outputs).
Json fold_norm(Model& model, const PassInput& input);
/// fold-linear {slots="**", fading="faded"|"any"}: two linear layers, or convolutions of which one
/// is 1 x 1, that follow each other in a sequential become one where that has no more weights, and
/// fading activations between them (brick/fading.h) go; norms first (fold-norm). Faded ones go
/// everywhere. With fading=any also those that have not faded: the check of equal outputs then
/// refuses the result. Products in double. Report: folded (layers that went), activations, left
/// {path: why}.
Json fold_linear(Model& model, const PassInput& input);
/// add-lora {rank=8, scale=1, slots="**", seed=0}: LoraLinear (adapt/lora.h) in place of the
/// matching linear layers, which are not trained from then on. Equal outputs: B starts at 0. Throws
/// Error{usage} for layers whose inputs are masked (slice-channels first).
Json add_lora(Model& model, const PassInput& input);
/// fold-lora {slots="**"}: each LoraLinear becomes the one linear layer it stands for. Equal
/// outputs to rounding, products in double.
Json fold_lora(Model& model, const PassInput& input);
/// prune {rate=0.5, score="magnitude"|"random"|"activation", scope="layer"|"global",
/// granularity="weight"|"channel"|"neuron"|"head", slots="**", seed=0}: weights: zeroes the lowest
/// `rate` of surviving weights of matching layers; else: constant masks over channel groups of that
/// unit. Score activation needs calibration inputs.
Json prune(Model& model, const PassInput& input);
/// quantize {format="i8", activations="f32"|"bf16"|"i8", slots="**", skip=[], embeddings=true for
/// formats of 4 bits and more}: linear layers become QuantLinear, tables QuantEmbedding, with
/// format i8 convolutions QuantConv, whose inputs activations=i8 rounds where that pays
/// (bundle::rounding_pays); one whose packed bytes would not be fewer stays. With calibration
/// inputs the format mixed keeps those columns in 8 bits whose signs alone would cost the output
/// most. Report: quantized, relative_rms (of all their weights), bytes_before, bytes_after,
/// convolution_bytes (of those that stay f32), layers {path: {rows, columns, activations,
/// bytes_before, bytes_after, relative_rms}}, left {path: why}.
Json quantize(Model& model, const PassInput& input);
/// dequantize {slots="**"}: the way back, to the values that the codes stand for. Report: layers.
Json dequantize(Model& model, const PassInput& input);
/// rotate-residual {seed=0, by="random"|"columns"}: turns the residual stream of a decoder by a
/// random orthogonal matrix, which spreads outliers over all columns before weights are quantized
/// (QuaRot: Ashkboos et al. 2024; SliceGPT has the algebra). By columns: before each branch by the
/// right singular vectors of k, or of gate (up), so that its columns become orthogonal with the
/// singular values as norms (WINA: arXiv 2505.19427); a turning layer [D, D] beside every branch
/// then leads from one basis to the next. Folds norms first and unties the head where the last norm
/// has a scale. Equal outputs. Report: by, width, folded, untied, turns (layers added),
/// turn_macs_per_token.
Json rotate_residual(Model& model, const PassInput& input);
/// nest {widths=[0.25,0.5,0.75,1], depths=[], scope="hidden"|"all", order="magnitude"|"activation"|
/// "none", multiple=1, slots="**"}: makes one network of many sizes: layers become nested ones
/// (brick/nested.h) and the model gets a table of sizes (subnet.h), every width with every depth.
/// Scope hidden: channels inside residual blocks, neurons of feed-forward networks, layers that
/// feed the next; all: every channel but the network's inputs and outputs. With depths (numbers of
/// residual blocks) the blocks stand in one chain "body". Units of hidden groups are put in order
/// of importance first, so that the leading ones matter most; `activation` needs calibration inputs
/// and linear readers. Equal outputs at full size; others are to be trained, their norms
/// re-estimated. Report: nested (paths), ordered (groups), sizes [{name, macs}].
Json nest(Model& model, const PassInput& input);
/// pick-size {size}: the ordinary network that a nested one is at a size, by name or number; batch
/// norms folded. Report: size, macs.
Json pick_size(Model& model, const PassInput& input);
/// sparsify-activations {sparsity=0.5, score="wina"|"magnitude", select="threshold"|"topk",
/// budget="uniform"|"greedy", rotate=false, norms="**", dense_first=1% of a run, slots="**"}: the
/// projections of attention and feed-forward layers become SparseLinear (sparsify.h): a token's
/// inputs of least score are not computed. Needs calibration inputs. sparsity 0 leaves all dense.
/// Folds norms, or turns the stream by columns first. Report: projections, kept (share of weights
/// read on the calibration inputs), dense_macs_per_token, sparse_macs_per_token, norm_spread
/// (deviation of column norms over their mean), layers {path: {sparsity, kept, norm_spread,
/// threshold}}, rotation, note.
Json sparsify_activations(Model& model, const PassInput& input);
/// acmize {learners=4, factor=1, choice=-1, hidden=16, projections=false, slots="**", seed=0}:
/// every feed-forward network, with `projections` also q, k, v and o of attention, becomes a fresh
/// PrefixMlp (brick/prefix_mlp.h) of `learners` learners that together cost `factor` times as much,
/// with an ordinal gate of two hidden layers of `hidden`, or with `choice` >= 0 that many learners
/// for every row. Projections have no activation and always run one learner. To be trained:
/// train_layers (train/layerwise.h) with prefix_loss, then choice_loss, then the whole. Report:
/// learners, replaced {path: {macs_before, macs_of_learner, macs_of_gate}} per row.
Json acmize(Model& model, const PassInput& input);
/// reestimate-norm {}: batch-norm statistics anew from calibration data; of a nested network for
/// each of its sizes.
Json reestimate_norm(Model& model, const PassInput& input);

}  // namespace sluice::lab
