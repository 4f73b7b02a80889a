// A model: the root brick with what is needed to use it and to know where it came from.
#pragma once
#include "sluice/bundle/bundle.h"
#include "sluice/data/dataset.h"
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

struct Model {
  BrickPtr root;
  Shape input_shape;  ///< per sample
  bundle::Task task;
  Json provenance = Json::array();  ///< steps in order; append with add_step

  Cost cost() const { return root->cost(input_shape); }
  void add_step(Json step) { provenance.push_back(std::move(step)); }
  /// Runs the bricks. Counts the samples when the context has a meter, and refuses with
  /// Error{limit} before computing when the model's cost exceeds the context's budget.
  at::Tensor forward(const at::Tensor& x, Context& context);
};

Model clone(const Model& model);

/// Lowers the model to a graph and writes graph, description, task and provenance as one bundle
/// (from the CPU or a GPU).
void save_bundle(const Model& model, const std::string& path);
/// The same into a builder (parity tests, in-memory engines).
void lower(const Model& model, bundle::Builder& builder);
/// Rebuilds the bricks of a bundle written by save_bundle. Throws Error{unsupported} for one
/// without a description.
Model load_model(const std::string& path);
Model load_model(const bundle::Bundle& bundle);

/// Parameters and buffers by dotted path.
std::vector<std::pair<std::string, at::Tensor>> named_state(const Brick& brick);
/// Copies values in, from any device; throws Error{missing|shape} naming the first tensor that does
/// not fit, before changing any. Entries that the brick does not have are ignored.
void load_state(Brick& brick, const std::map<std::string, at::Tensor>& state);

/// Reference networks by name, with their options:
///   resnet   {width = 32, blocks = 2, stages = 3, stem_stride = 2}   residual conv net, 3x3,
///   widths doubling per stage mlp      {hidden = [300, 100]} LeNet-300-100 by default convnet
///   {widths = [32, 64], hidden = 128}                        VGG-like: conv norm relu pool, then
///   linear layers
/// and for all  init = "kaiming_normal" | "glorot_normal" | "uniform" (brick/init.h; mlp:
/// glorot_normal, others: kaiming_normal) Unknown names and options: Error{config} with the
/// nearest. `seed` alone fixes the initial weights.
Model make_model(const std::string& name, const Json& options, const data::ImageSet& data,
                 uint64_t seed);
std::vector<std::string> model_names();

}  // namespace sluice::lab
