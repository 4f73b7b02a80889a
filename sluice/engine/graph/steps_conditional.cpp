#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/experts.h"
#include "sluice/engine/kernel/gathered_linear.h"
#include "sluice/engine/kernel/lora.h"
#include "sluice/engine/kernel/sparse_ffn.h"
#include "sluice/engine/kernel/sparse_input.h"

namespace sluice::engine {
namespace {

using bundle::Node;
using bundle::PackedMatrix;

/// The matrices of a tensor [.., rows, columns] one by one; empty when the node has none of that
/// role. They stay in the bundle's memory.
std::vector<PackedMatrix> matrices(const Planner& planner, const Node& node,
                                   const std::string& role) {
  std::vector<PackedMatrix> result;
  const auto found = node.tensors.find(role);
  if (found == node.tensors.end()) return result;
  const bundle::TensorSpec& spec = planner.bundle().graph().tensors.at(found->second);
  const auto format = bundle::format_from_name(spec.format);
  SLUICE_CHECK(format.has_value());
  const int64_t rows = spec.shape[spec.shape.size() - 2], columns = spec.shape.back();
  const auto bytes = planner.bundle().tensor(found->second).bytes;
  const int64_t count = numel(spec.shape) / (rows * columns);
  const size_t each = bytes.size() / static_cast<size_t>(count);
  for (int64_t i = 0; i < count; ++i) {
    const std::string what = count == 1 ? found->second : fmt::format("{}[{}]", found->second, i);
    result.push_back(bundle::view_packed(*format, rows, columns,
                                         bytes.subspan(static_cast<size_t>(i) * each, each), what));
  }
  return result;
}

/// A node's f32 vectors, kept beside the kernel.
struct Vectors {
  std::vector<std::vector<float>> all;
  const float* take(const Planner& planner, const Node& node, const std::string& role) {
    auto values = copy_tensor(planner.bundle(), node, role);
    if (values.empty()) return nullptr;
    all.push_back(std::move(values));
    return all.back().data();  // moving the outer vector keeps the inner ones where they are
  }
};

/// One per size of the network, and one in all where the node has none.
std::vector<Selector> selectors_of(const Node& node) {
  const std::string kind = bundle::attr_string(node.attrs, "select", "all");
  Selector s;
  if (kind == "topk") s.kind = Selector::Kind::top_k;
  if (kind == "threshold") s.kind = Selector::Kind::threshold;
  if (kind == "statistical") s.kind = Selector::Kind::statistical;
  s.rank = bundle::attr_string(node.attrs, "rank", "value") == "magnitude" ? Rank::magnitude
                                                                           : Rank::value;
  std::vector<Selector> selectors;
  for (const bundle::SelectSize& size : bundle::select_sizes(node.attrs)) {
    s.k = size.k;
    s.keep = size.keep;
    s.threshold = static_cast<float>(size.threshold);
    selectors.push_back(s);
  }
  return selectors;
}

/// Tells the planner what each size of the node may cost.
void add_select_sizes(Planner& planner, size_t index, const Step& step) {
  const Node& node = planner.node(index);
  const auto& info = planner.bundle().info();
  std::vector<Shape> inputs;
  for (const std::string& name : node.inputs) inputs.push_back(info.shapes.at(name));
  std::map<std::string, bundle::TensorSpec> tensors;
  for (const auto& [role, name] : node.tensors)
    tensors.emplace(role, planner.bundle().graph().tensors.at(name));
  const auto macs = bundle::select_macs({node, inputs, tensors}, info.shapes.at(node.output));
  if (macs.size() < 2) return;
  // The step's cost may be of fewer rows than the graph's.
  const int64_t most = std::max<int64_t>(1, *std::max_element(macs.begin(), macs.end()));
  std::vector<int64_t> own;
  for (const int64_t each : macs)
    own.push_back(static_cast<int64_t>(static_cast<double>(step.info.cost.macs) *
                                       static_cast<double>(each) / static_cast<double>(most)));
  planner.add_sizes(index, own, step.info.cost.macs);
}

/// Of `count` kernels the one of the run's size; the last without a choice.
size_t size_of(const int64_t* size, size_t count) {
  return size && *size >= 0 ? std::min(static_cast<size_t>(*size), count - 1) : count - 1;
}

DotKind dot_kind_of(const Node& node) {
  return dot_kind_from_name(bundle::attr_string(node.attrs, "activations", "f32"));
}

Activation activation_of(const Node& node, const char* fallback) {
  return activation_from_name(bundle::attr_string(node.attrs, "activation", fallback));
}

/// Rows of input `of` behind each counted row of the current row set.
int64_t rows_each(const Planner& planner, int of) {
  const Shape& shape = planner.shape_of(of);
  return numel(shape) / shape.back();
}

/// A metered kernel over rows: run(inputs, output, rows, scratch, work, size), size null or the
/// run's.
template <class F>
Kernel metered_kernel(const Planner& planner, const Step& step, std::string name, int64_t scratch,
                      F run) {
  Kernel kernel;
  kernel.name = std::move(name);
  kernel.scratch_bytes = scratch;
  kernel.metered = true;
  kernel.counts_rows = true;
  const int64_t each = rows_each(planner, step.inputs[0]), planned = planner.options().samples;
  kernel.bind = [run, each, planned](const Binding& b) -> std::function<void()> {
    const std::vector<float*> inputs(b.inputs.begin(), b.inputs.end());
    return [run, each, planned, inputs, out = b.output, scratch = b.scratch, work = b.work,
            live = b.rows, size = b.size] {
      const int64_t rows = each * (live ? live->count : planned);
      run(inputs.data(), out, static_cast<size_t>(rows), scratch, work, size);
    };
  };
  return kernel;
}

void fetch_inputs(Planner& planner, size_t index, Step& step) {
  for (const std::string& name : planner.group(index).inputs)
    step.inputs.push_back(planner.fetch(name, Layout::plain));
}

void plan_sparse_input(Planner& planner, size_t index, Step step) {
  const Node& node = planner.node(index);
  fetch_inputs(planner, index, step);
  struct Layer {
    std::vector<SparseInput> kernels;  ///< by size: the same weights
    Vectors vectors;
  };
  auto layer = std::make_shared<Layer>();
  SparseInput k;
  k.weight = matrices(planner, node, "weight")[0];
  k.bias = layer->vectors.take(planner, node, "bias");
  k.column_norm = layer->vectors.take(planner, node, "column_norm");
  const int threads = planner.threads_for(step.info.cost.macs);
  int64_t scratch_bytes = 0;
  for (const Selector& select : selectors_of(node)) {
    k.select = select;
    k.select.rank = Rank::magnitude;
    layer->kernels.push_back(k);
    scratch_bytes = std::max(scratch_bytes, sparse_input_scratch(k, threads));
  }
  add_select_sizes(planner, index, step);
  const int64_t whole = bundle::attr_int(node.attrs, "dense_first", 0);
  if (whole > 0) {
    // Rule `ordered`: options() count samples, and a row's place follows from where its sample
    // begins.
    const int64_t tokens = planner.bundle().info().shapes.at(node.inputs[0])[0];
    const int64_t flags =
        align_up(checked_mul(planner.options().samples, tokens, "rows of sparse_input_linear"));
    Kernel& kernel = step.kernel;
    kernel.name =
        fmt::format("sluice sparse_input {} dense_first", bundle::format_name(k.weight.format));
    kernel.scratch_bytes = flags + scratch_bytes;
    kernel.metered = true;
    kernel.counts_rows = true;
    kernel.bind = [=](const Binding& b) -> std::function<void()> {
      SLUICE_CHECK(b.rows);
      return [=, rows = b.rows, position = b.position, in = b.inputs[0], out = b.output,
              scratch = b.scratch, work = b.work, size = b.size] {
        auto* dense = reinterpret_cast<uint8_t*>(scratch);
        const int64_t unit = tokens / rows->per_sample;
        for (int64_t s = 0; s < rows->samples; ++s) {
          const int64_t first = rows->start[s] * unit, before = position ? position[s] : 0;
          for (int64_t r = first; r < rows->start[s + 1] * unit; ++r)
            dense[r] = before + r - first < whole ? 1 : 0;
        }
        const auto count = static_cast<size_t>(rows->start[rows->samples] * unit);
        run_sparse_input(layer->kernels[size_of(size, layer->kernels.size())], in, out, count,
                         scratch + flags, threads, work, dense);
      };
    };
    planner.finish(index, std::move(step), Layout::plain);
    return;
  }
  step.kernel = metered_kernel(
      planner, step, fmt::format("sluice sparse_input {}", bundle::format_name(k.weight.format)),
      scratch_bytes,
      [layer, threads](float* const* in, float* out, size_t rows, std::byte* scratch, Work* work,
                       const int64_t* size) {
        run_sparse_input(layer->kernels[size_of(size, layer->kernels.size())], in[0], out, rows,
                         scratch, threads, work);
      });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_gathered_linear(Planner& planner, size_t index, Step step) {
  const Node& node = planner.node(index);
  fetch_inputs(planner, index, step);
  struct Layer {
    GatheredLinear kernel;
    Vectors vectors;
  };
  auto layer = std::make_shared<Layer>();
  GatheredLinear& k = layer->kernel;
  k.weight = matrices(planner, node, "weight")[0];
  k.bias = layer->vectors.take(planner, node, "bias");
  k.units = planner.bundle().info().shapes.at(node.inputs[1]).back();
  k.kind = dot_kind_of(node);
  const int threads = planner.threads_for(step.info.cost.macs);
  step.kernel = metered_kernel(
      planner, step, fmt::format("sluice gathered_linear {}", bundle::format_name(k.weight.format)),
      gathered_linear_scratch(k),
      [layer, threads](float* const* in, float* out, size_t rows, std::byte* scratch, Work* work,
                       const int64_t*) {
        run_gathered_linear(layer->kernel, in[0], in[1], out, rows, scratch, threads, work);
      });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_sparse_ffn(Planner& planner, size_t index, Step step) {
  const Node& node = planner.node(index);
  fetch_inputs(planner, index, step);
  struct Layer {
    std::vector<SparseFfn> kernels;  ///< by size: the same weights
    Vectors vectors;
  };
  auto layer = std::make_shared<Layer>();
  SparseFfn k;
  const auto take = [&](PackedMatrix& to, const char* role) {
    const auto found = matrices(planner, node, role);
    if (!found.empty()) to = found[0];
  };
  take(k.up, "up");
  take(k.gate, "gate");
  take(k.down, "down");
  take(k.predictor_a, "predictor_a");
  take(k.predictor_b, "predictor_b");
  k.up_bias = layer->vectors.take(planner, node, "up_bias");
  k.gate_bias = layer->vectors.take(planner, node, "gate_bias");
  k.down_bias = layer->vectors.take(planner, node, "down_bias");
  k.activation = activation_of(node, "relu");
  const std::vector<Selector> selectors = selectors_of(node);
  k.select = selectors.back();
  k.soft = bundle::attr_bool(node.attrs, "soft", false);
  k.split = bundle::attr_int(node.attrs, "split", 0);
  k.kind = dot_kind_of(node);
  if (k.select.kind == Selector::Kind::all) {
    k.source = SparseFfn::Source::none;
  } else if (step.inputs.size() > 1) {
    k.source = SparseFfn::Source::input;
  } else if (k.predictor_a.rows > 0) {
    k.source = SparseFfn::Source::predictor;
  } else {
    k.source = bundle::attr_string(node.attrs, "scores", "first") == "activated"
                   ? SparseFfn::Source::activated
                   : SparseFfn::Source::first;
  }
  const int threads = planner.threads_for(step.info.cost.macs);
  int64_t scratch_bytes = 0;
  for (const Selector& select : selectors) {
    k.select = select;
    layer->kernels.push_back(k);
    scratch_bytes = std::max(scratch_bytes, sparse_ffn_scratch(k, threads));
  }
  add_select_sizes(planner, index, step);
  step.kernel = metered_kernel(
      planner, step, fmt::format("sluice sparse_ffn {}", bundle::format_name(k.up.format)),
      scratch_bytes,
      [layer, threads, scored = k.source == SparseFfn::Source::input](
          float* const* in, float* out, size_t rows, std::byte* scratch, Work* work,
          const int64_t* size) {
        run_sparse_ffn(layer->kernels[size_of(size, layer->kernels.size())], in[0],
                       scored ? in[1] : nullptr, out, rows, scratch, threads, work);
      });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_experts(Planner& planner, size_t index, Step step) {
  const Node& node = planner.node(index);
  fetch_inputs(planner, index, step);
  auto experts = std::make_shared<Experts>();
  experts->up = matrices(planner, node, "up");
  experts->gate = matrices(planner, node, "gate");
  experts->down = matrices(planner, node, "down");
  experts->activation = activation_of(node, "silu");
  experts->top_k = static_cast<size_t>(bundle::attr_int(node.attrs, "top_k", 1));
  experts->softmax_first = bundle::attr_string(node.attrs, "normalize", "after") == "before";
  experts->kind = dot_kind_of(node);
  const int64_t rows =
      checked_mul(planner.options().samples, rows_each(planner, step.inputs[0]), "rows");
  if (expert_panels_pay(*experts, rows)) make_expert_panels(*experts);
  const int threads = planner.threads_for(step.info.cost.macs);
  step.kernel =
      metered_kernel(planner, step,
                     fmt::format("sluice experts {} {}", experts->count(),
                                 bundle::format_name(experts->up[0].format)),
                     experts_scratch(*experts, rows, threads),
                     [experts, threads](float* const* in, float* out, size_t count,
                                        std::byte* scratch, Work* work, const int64_t*) {
                       run_experts(*experts, in[0], in[1], out, count, scratch, threads, work);
                     });
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_lora(Planner& planner, size_t index, Step step) {
  const Node& node = planner.node(index);
  fetch_inputs(planner, index, step);
  auto lora = std::make_shared<Lora>();
  lora->a = matrices(planner, node, "a");
  lora->b = matrices(planner, node, "b");
  lora->scale = copy_tensor(planner.bundle(), node, "scale");
  lora->kind = dot_kind_of(node);
  const int64_t rows =
      checked_mul(planner.options().samples, rows_each(planner, step.inputs[0]), "rows");
  const int threads = planner.threads_for(step.info.cost.macs);
  step.kernel =
      metered_kernel(planner, step, fmt::format("sluice lora_add {}", lora->a.size()),
                     lora_scratch(*lora, rows, threads),
                     [lora, threads](float* const* in, float* out, size_t count, std::byte* scratch,
                                     Work* work, const int64_t*) {
                       if (out != in[0])
                         std::copy_n(in[0], count * static_cast<size_t>(lora->b[0].columns), out);
                       run_lora(*lora, in[1], in[2], out, count, scratch, threads, work);
                     });
  step.kernel.in_place = 0;
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

std::vector<PlanEntry> conditional_steps() {
  return {{"sparse_input_linear", plan_sparse_input},
          {"gathered_linear", plan_gathered_linear},
          {"sparse_ffn", plan_sparse_ffn},
          {"experts", plan_experts},
          {"lora_add", plan_lora}};
}

}  // namespace sluice::engine
