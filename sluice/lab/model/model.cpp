#include "sluice/lab/model/model.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/exit_network.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/sparse_linear.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/brick/stitch.h"
#include "sluice/lab/gate/gate.h"
#include "sluice/lab/quant/packed_weight.h"

namespace sluice::lab {
namespace {

constexpr int kMaxJsonDepth = 100;  // 32 levels of bricks take two each, attributes a few more

Json describe(const Model& model) {
  return {{"brick", spec_of(*model.root)}, {"input_shape", model.input_shape}};
}

// The stored bytes of a packed weight; what they mean is checked once all are there.
void load_packed(const bundle::Bundle& bundle, const std::string& path,
                 const bundle::TensorView& view, const at::Tensor& target) {
  if (static_cast<int64_t>(view.bytes.size()) != target.numel()) {
    fail(Code::shape, "{}: tensor '{}': the model description says {} packed bytes, the file {}",
         bundle.path(), path, target.numel(), view.bytes.size());
  }
  if (!view.bytes.empty()) {
    std::memcpy(target.data_ptr(), view.bytes.data(), view.bytes.size());
  }
}

// A matrix that the graph reads by its columns.
void load_turned(const bundle::Bundle& bundle, const std::string& path,
                 const bundle::TensorView& view, const at::Tensor& target) {
  if (target.dim() != 2 || view.shape != Shape{target.size(1), target.size(0)}) {
    fail(Code::shape, "{}: tensor '{}': the model description says {}, transposed, the file {}",
         bundle.path(), stored_by_input(path), to_string(target.sizes()), to_string(view.shape));
  }
  const at::NoGradGuard no_grad;
  const std::span<const float> values = view.f32();
  const at::Tensor stored = at::from_blob(const_cast<float*>(values.data()),
                                          {target.size(1), target.size(0)}, at::kFloat);
  at::Tensor(target).copy_(stored.t());
}

void check_packed(const Model& model, const bundle::Bundle& bundle) {
  std::vector<std::pair<std::string, const Brick*>> bricks = {{"", model.root.get()}};
  for (const SlotRef& ref : walk(*model.root)) bricks.emplace_back(ref.path, ref.slot->get().get());
  for (const auto& [path, brick] : bricks) {
    const auto* layer = dynamic_cast<const PackedBrick*>(brick);
    if (layer == nullptr) continue;
    const std::string name = join_path(path, "weight");
    const auto spec = bundle.graph().tensors.find(name);
    const std::string_view expected = bundle::format_name(layer->format());
    if (spec == bundle.graph().tensors.end() || spec->second.format != expected) {
      fail(Code::format, "{}: tensor '{}': the model description says format {}, the graph {}",
           bundle.path(), name, expected,
           spec == bundle.graph().tensors.end() ? "nothing" : spec->second.format);
    }
    layer->check_bytes(fmt::format("{}: tensor '{}'", bundle.path(), name));
  }
}

// A nested brick and the node it was lowered to say the same, for as many sizes as the table has.
void check_nested(const Model& model, const bundle::Bundle& bundle) {
  std::map<std::string, const bundle::Node*> nodes;
  for (const bundle::Node& node : bundle.graph().nodes) nodes[node.path] = &node;
  const auto count = static_cast<int64_t>(std::max<size_t>(1, model.sizes.size()));
  const auto expect = [&](const std::string& path, const char* name, std::vector<int64_t> list) {
    const std::vector<int64_t>* found = nullptr;
    if (const auto node = nodes.find(path); node != nodes.end()) {
      if (const auto attr = node->second->attrs.find(name); attr != node->second->attrs.end()) {
        found = std::get_if<std::vector<int64_t>>(&attr->second);
      }
    }
    if (found == nullptr || *found != list) {
      fail(Code::format, "{}: {}: '{}' of the model description and of the graph differ",
           bundle.path(), path, name);
    }
  };
  const auto require_count = [&](const std::string& path, int64_t found) {
    if (found == count) return;
    fail(Code::format, "{}: {}: {} sizes; the table of sizes has {}", bundle.path(), path, found,
         count);
  };
  if (const auto* stitched = dynamic_cast<const StitchedModel*>(model.root.get())) {
    require_count("model", static_cast<int64_t>(stitched->paths().size()));
    std::vector<int64_t> ends;
    for (const StitchPath& path : stitched->paths()) ends.push_back(path.to);
    if (stitched->anchors() > 1) expect("end", "choice", ends);
  }
  if (const auto* exits = dynamic_cast<const ExitNetwork*>(model.root.get());
      exits != nullptr && !exits->exit_sizes().empty()) {
    require_count("exits", std::ssize(exits->exit_sizes()));
  }
  for (const SlotRef& ref : walk(*model.root)) {
    const Brick* brick = ref.slot->get().get();
    if (const auto* layer = dynamic_cast<const NestedLayer*>(brick)) {
      require_count(ref.path, layer->sizes().count);
      const auto each = [&](const std::vector<int64_t>& list, int64_t all) {
        return list.empty() ? std::vector<int64_t>(static_cast<size_t>(count), all) : list;
      };
      if (!nodes.contains(ref.path)) continue;  // behind the last end that any size takes
      expect(ref.path, "rows", each(layer->sizes().rows, layer->outputs()));
      expect(ref.path, "columns", each(layer->sizes().columns, layer->inputs()));
    } else if (const auto* sparse = dynamic_cast<const SparseLinear*>(brick)) {
      if (!sparse->options().sizes.empty()) {
        require_count(ref.path, std::ssize(sparse->options().sizes));
      }
    } else if (const auto* chain = dynamic_cast<const NestedChain*>(brick)) {
      if (!chain->exits().empty()) {
        require_count(ref.path, static_cast<int64_t>(chain->exits().size()));
      }
    }
  }
}

void require_root(const Model& model) {
  if (model.root == nullptr) fail(Code::state, "the model has no bricks");
}

}  // namespace

at::Tensor Model::forward(const at::Tensor& x, Context& context) {
  if (context.budget.macs_per_sample || context.budget.weight_bytes) {
    Cost needed = cost();
    if (context.size >= 0 && context.size < static_cast<int64_t>(sizes.size())) {
      needed.macs = sizes[static_cast<size_t>(context.size)].macs;
    }
    context.budget.require(needed, "model");
  }
  if (context.meter != nullptr) context.meter->add_samples(x.size(0));
  return root->forward(x, context);
}

Model clone(const Model& model) {
  require_root(model);
  Model copy = model;
  copy.root = clone(*model.root);
  return copy;
}

at::Tensor probe_input(const Model& model, int64_t samples, uint64_t seed, int64_t tokens) {
  const int64_t vocabulary = model.root->vocabulary();
  std::vector<int64_t> sizes = {samples};
  if (vocabulary > 0) {
    sizes.push_back(std::min(model.input_shape[0], tokens));
    at::Tensor ids = at::empty(sizes);
    fill_uniform(ids, 1.0, seed);  // -1 .. 1
    ids = ((ids + 1) / 2 * static_cast<double>(vocabulary)).floor().clamp(0, vocabulary - 1);
    return ids.to(device_of(*model.root));
  }
  sizes.insert(sizes.end(), model.input_shape.begin(), model.input_shape.end());
  at::Tensor x = at::empty(sizes);
  fill_normal(x, 1.0, seed);
  return as_input(x, model);
}

c10::Device device_of(const Brick& brick) {
  const auto state = named_state(brick);
  return state.empty() ? c10::Device(c10::kCPU) : state.front().second.device();
}

at::Tensor as_input(const at::Tensor& x, const Model& model) {
  if (model.root->vocabulary() == 0) {
    for (const auto& [path, tensor] : named_state(*model.root)) {
      if (tensor.is_floating_point()) return x.to(tensor.options().requires_grad(false));
    }
  }
  return x.to(device_of(*model.root));
}

std::vector<std::pair<std::string, at::Tensor>> named_state(const Brick& brick) {
  std::vector<std::pair<std::string, at::Tensor>> result;
  for (const auto& item : brick.named_parameters()) result.emplace_back(item.key(), item.value());
  for (const auto& item : brick.named_buffers()) result.emplace_back(item.key(), item.value());
  return result;
}

void load_state(Brick& brick, const std::map<std::string, at::Tensor>& state) {
  const at::NoGradGuard no_grad;
  const auto targets = named_state(brick);
  for (const auto& [path, target] : targets) {
    const auto found = state.find(path);
    if (found == state.end()) {
      std::vector<std::string> names;
      for (const auto& [name, value] : state) names.push_back(name);
      const std::string near = nearest_name(path, names);
      fail(Code::missing, "no value for '{}' among {} tensors{}", path, state.size(),
           near.empty() ? "" : fmt::format("; the nearest is '{}'", near));
    }
    if (found->second.sizes() != target.sizes()) {
      fail(Code::shape, "'{}': expected {}, found {}", path, to_string(target.sizes()),
           to_string(found->second.sizes()));
    }
  }
  for (const auto& [path, target] : targets) at::Tensor(target).copy_(state.at(path));
}

void lower(const Model& model, bundle::Builder& builder) {
  require_root(model);
  const bool text = model.root->vocabulary() > 0;
  const bundle::Value input = builder.input(text ? "tokens" : "input", model.input_shape);
  builder.output(model.root->lower(builder, input, ""));
  // State that no node reads (a gate that is folded away in the graph) still belongs to the model.
  // Packed weights are no floats, and their own bricks have added them.
  const auto& stored = builder.graph().tensors;
  for (const auto& [path, tensor] : named_state(*model.root)) {
    if (!tensor.is_floating_point() || stored.contains(stored_by_input(path))) continue;
    add_tensor(builder, path, tensor);
  }
  if (!model.sizes.empty()) {
    const std::string what = "model";
    const bundle::GraphInfo info = bundle::check_graph(builder.graph(), what);
    const bundle::GraphSizes graph = bundle::graph_sizes(builder.graph(), info, what);
    std::vector<bundle::SizeEntry> sizes = model.sizes;
    for (size_t i = 0; i < std::min(sizes.size(), graph.macs.size()); ++i) {
      sizes[i].macs = graph.macs[i];
    }
    builder.set_sizes(std::move(sizes));
  }
  builder.set_task(model.task);
  if (!model.tokenizer.empty()) builder.set_tokenizer(model.tokenizer);
  builder.set_model_json(describe(model).dump());
  builder.set_provenance_json(model.provenance.dump());
}

void save_bundle(const Model& model, const std::string& path) {
  bundle::Builder builder;
  lower(model, builder);
  builder.write(path);
}

Model load_model(const std::string& path) { return load_model(bundle::Bundle::open(path)); }

Model load_model(const bundle::Bundle& bundle) {
  const std::string& what = bundle.path();
  if (bundle.model_json().empty()) {
    fail(
        Code::unsupported,
        "{}: a bundle without the metadata 'sluice.model' holds a graph but no bricks: it runs and "
        "can be inspected, but not trained or transformed",
        what);
  }
  const std::string place = what + ": sluice.model";
  const Json description = parse_json(bundle.model_json(), place, kMaxJsonDepth);
  json_require_known_keys(description, {"brick", "input_shape"}, place);
  Model model;
  model.input_shape = json_get<std::vector<int64_t>>(description, "input_shape", place);
  model.task = bundle.task();
  model.sizes = bundle.sizes();
  model.tokenizer = bundle.tokenizer_json();
  model.provenance = parse_json(bundle.provenance_json(), what + ": sluice.provenance");
  if (!model.provenance.is_array()) {
    fail(Code::format, "{}: sluice.provenance: expected a list of steps", what);
  }
  constexpr size_t kMaxRank = 8;
  if (model.input_shape.empty() || model.input_shape.size() > kMaxRank ||
      numel(model.input_shape, place + ": input_shape") > kMaxElements ||
      std::find(model.input_shape.begin(), model.input_shape.end(), 0) != model.input_shape.end()) {
    fail(Code::limit, "{}: input_shape: {} is no shape of a sample", place,
         to_string(model.input_shape));
  }
  // Every value must be in the file: a description cannot make us allocate much more than that.
  int64_t stored = 1 << 20;
  for (const bundle::TensorView& view : bundle.file().tensors()) {
    const bool packed = view.dtype != bundle::DType::f32;  // bricks hold these as bytes
    stored += 2 * (packed ? static_cast<int64_t>(view.bytes.size()) : view.elements());
  }
  const WithoutInit without_init;
  try {
    model.root = make_brick(json_get<Json>(description, "brick", place), stored);
    model.root->output_shape(model.input_shape);
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", place, error.what()));
  }

  std::set<std::string> known;
  for (const bundle::Node& node : bundle.graph().nodes) {
    for (const auto& [role, name] : node.tensors) known.insert(name);
  }
  for (const auto& [path, target] : named_state(*model.root)) {
    const bool by_input = !bundle.graph().tensors.contains(path) &&
                          bundle.graph().tensors.contains(stored_by_input(path));
    const bundle::TensorView& view = bundle.tensor(by_input ? stored_by_input(path) : path);
    if (target.scalar_type() == at::kByte) {
      load_packed(bundle, path, view, target);
      known.insert(path);
      continue;
    }
    if (by_input) {
      load_turned(bundle, path, view, target);
      continue;
    }
    if (Shape(target.sizes().begin(), target.sizes().end()) != view.shape) {
      fail(Code::shape, "{}: tensor '{}': the model description says {}, the file {}", what, path,
           to_string(target.sizes()), to_string(view.shape));
    }
    const std::span<const float> values = view.f32();
    if (!values.empty()) {
      std::memcpy(target.data_ptr<float>(), values.data(), values.size_bytes());
    }
    known.insert(path);
  }
  check_packed(model, bundle);
  check_nested(model, bundle);
  for (const SlotRef& ref : walk(*model.root)) {  // what slicing takes for granted
    if (const auto* mask = dynamic_cast<const ConstantMask*>(ref.slot->get().get())) {
      checked_mask(mask->mask, fmt::format("{}: {}", what, ref.path));
    } else if (const auto* channels = dynamic_cast<const ChannelMask*>(ref.slot->get().get())) {
      checked_mask(channels->mask, fmt::format("{}: {}", what, ref.path));
    }
  }
  if (!model.task.tokenizer.empty()) known.insert(model.task.tokenizer);
  for (const bundle::TensorView& view : bundle.file().tensors()) {
    if (!known.contains(view.name)) {
      fail(Code::format,
           "{}: tensor '{}' belongs neither to the model description nor to the graph", what,
           view.name);
    }
  }
  return model;
}

}  // namespace sluice::lab
