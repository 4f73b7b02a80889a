// A model: the root brick with what is needed to use it and to know where it came from.
#pragma once
#include <c10/core/Device.h>

#include "sluice/bundle/bundle.h"
#include "sluice/data/dataset.h"
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

struct Model {
  BrickPtr root;
  Shape input_shape;  ///< per sample
  bundle::Task task;
  std::string tokenizer = {};       ///< text of tokenizer.json; "" when there is none
  Json provenance = Json::array();  ///< steps in order; append with add_step
  /// Of a nested network: what Context::size chooses from (lab/pass/subnet.h sets it), the whole
  /// network last. The bundle gets this table, with MACs as the graph has them.
  std::vector<bundle::SizeEntry> sizes = {};

  Cost cost() const { return root->cost(input_shape); }
  void add_step(Json step) { provenance.push_back(std::move(step)); }
  /// Runs the bricks. Counts the samples when the context has a meter, and refuses with
  /// Error{limit} before computing when the model's cost exceeds the context's budget (MACs: those
  /// of the context's size).
  at::Tensor forward(const at::Tensor& x, Context& context);
};

Model clone(const Model& model);

/// Lowers the model to a graph and writes graph, description, task and provenance as one bundle
/// (from the CPU or a GPU).
void save_bundle(const Model& model, const std::string& path);
/// The same into a builder (parity tests, in-memory engines).
void lower(const Model& model, bundle::Builder& builder);
/// Rebuilds the bricks of a bundle written by save_bundle. Throws Error{unsupported} for one
/// without a description, Error{format} when its table of sizes, bricks and graph disagree.
Model load_model(const std::string& path);
Model load_model(const bundle::Bundle& bundle);

c10::Device device_of(const Brick& brick);
/// `x` on the device and of the type of the model's first parameter that is no packed one; token
/// ids keep their type.
at::Tensor as_input(const at::Tensor& x, const Model& model);
/// Samples that depend on `seed` and the model's kind of input only: normal numbers, or for a text
/// model token ids [samples, T] with T up to `tokens`. On the model's device.
at::Tensor probe_input(const Model& model, int64_t samples, uint64_t seed, int64_t tokens = 32);

/// Parameters and buffers by dotted path.
std::vector<std::pair<std::string, at::Tensor>> named_state(const Brick& brick);
/// Copies values in, from any device; throws Error{missing|shape} naming the first tensor that does
/// not fit, before changing any. Entries that the brick does not have are ignored.
void load_state(Brick& brick, const std::map<std::string, at::Tensor>& state);

/// Reference networks by name, with their options:
///   resnet   {width = 32, blocks = 2, stages = 3, stem_stride = 2}: residual conv net, 3x3, widths
///            doubling per stage; or {widths = [16, 32, 64, 64]} in place of width and stages
///   mlp      {hidden = [300, 100]}                 LeNet-300-100 by default
///   convnet  {widths = [32, 64], hidden = 128}     VGG-like: conv norm relu pool, linear layers
///   vit      {patch = 7, width = 64, layers = 6, heads = 4, ffn = 4 width, activation = "gelu",
///            pooling = "first" | "mean"}: vision transformer, with a class token for "first"
/// and for all  init = "kaiming_normal" | "glorot_normal" | "uniform" (brick/init.h; mlp and vit:
/// glorot_normal, others: kaiming_normal) Unknown names and options: Error{config} with the
/// nearest. `seed` alone fixes the initial weights.
Model make_model(const std::string& name, const Json& options, const data::ImageSet& data,
                 uint64_t seed);
std::vector<std::string> model_names();

/// Transformers for text by name (docs/architecture.md has their paths), with their options:
///   decoder  {vocab, layers = 4, width = 128, heads = 4, kv_heads = heads, head_dim = width /
///   heads, ffn, context = 256, block = min(128, context), tied = true, gated = true, activation =
///   "silu", norm = "rms" | "layer", norm_eps = 1e-5, order = "pre" | "post", positions = "rope" |
///   "learned" | "none", rope_base = 10000, window = 0, qk_norm = false, bias = false, cache_type =
///   "f32"} encoder  the same without tied, window and cache_type, but gated = false, activation =
///   "gelu", norm = "layer", order = "post", positions = "learned", bias = true, block = context,
///   and pooling = "mean" | "first" | "last", normalize = true
/// and for both  init_std = 0.02: weights are normal with this deviation, those that add to the
/// residual stream divided by sqrt(2 layers) (Radford et al. 2019). `ffn` neurons: by default 4
/// width, gated 8/3 width rounded up to a multiple of 32. input_shape is [block]: the most tokens
/// of one run of the engine; forwards take any T <= context.
Model make_model(const std::string& name, const Json& options, uint64_t seed);

}  // namespace sluice::lab
