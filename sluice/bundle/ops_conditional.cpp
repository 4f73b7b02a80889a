// Operators whose work depends on the input: chosen inputs, neurons, experts, adapters.
#include <cmath>
#include <limits>

#include "sluice/base/error.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();

bool has(const OpInput& in, const char* role) { return find_tensor(in, role) != nullptr; }

/// A tensor of that rank without empty dimensions; `layout` is what the message calls it.
const Shape& require_weight(const OpInput& in, const char* role, size_t rank, const char* layout) {
  const TensorSpec& spec = *find_tensor(in, role);
  bool good = spec.shape.size() == rank;
  for (int64_t size : spec.shape) good = good && size >= 1 && size <= kMaxRows;
  if (!good)
    fail(Code::shape, "{} '{}': expected {} with sizes >= 1, found {}", role, printable(spec.name),
         layout, to_string(spec.shape));
  return spec.shape;
}

void require_choice(const OpInput& in, const char* name, const char* fallback,
                    std::initializer_list<std::string_view> choices) {
  const std::string value = attr_string(in.node.attrs, name, fallback);
  std::string known;
  for (std::string_view choice : choices) {
    if (value == choice) return;
    known.append(known.empty() ? "" : ", ").append(choice);
  }
  fail(Code::shape, "attribute '{}': expected one of {}, found '{}'", name, known,
       printable(value, 40));
}

/// A number, or a list with one per size of the network.
template <class T>
std::vector<T> list_of(const Attributes& attrs, const char* name, T fallback) {
  const auto found = attrs.find(name);
  if (found == attrs.end()) return {fallback};
  std::vector<T> list;
  if (const auto* integers = std::get_if<std::vector<int64_t>>(&found->second)) {
    list.assign(integers->begin(), integers->end());
  } else if (const auto* numbers = std::get_if<std::vector<T>>(&found->second)) {
    list = *numbers;
  } else if constexpr (std::is_same_v<T, double>) {
    list = {attr_double(attrs, name, fallback)};
  } else {
    list = {attr_int(attrs, name, fallback)};
  }
  if (list.empty() || list.size() > kMaxSizes)
    fail(Code::shape, "attribute '{}': expected 1 to {} numbers, one per size, found {}", name,
         kMaxSizes, list.size());
  return list;
}

double require_threshold(double threshold) {
  if (!(std::fabs(threshold) <= std::numeric_limits<float>::max()))
    fail(Code::numeric, "attribute 'threshold': expected a finite number, found {}", threshold);
  return threshold;
}

double require_keep(double keep) {
  if (!(keep > 0 && keep <= 1))
    fail(Code::shape, "attribute 'keep': expected a share above 0 and up to 1, found {}", keep);
  return keep;
}

int64_t require_k(int64_t k) {
  if (k < 0 || k > kMaxRows)
    fail(Code::shape, "attribute 'k': expected 0 to {}, found {}", kMaxRows, k);
  return k;
}

/// Checks the attributes of a selector: the list, if any, stands where `select` looks.
void require_select(const OpInput& in) {
  const Attributes& attrs = in.node.attrs;
  const std::string kind = attr_string(attrs, "select", "all");
  select_sizes(attrs);
  if (kind != "threshold") require_threshold(attr_double(attrs, "threshold", 0));
  if (kind != "statistical") require_keep(attr_double(attrs, "keep", 1));
}

/// The most of n entries that the selector may keep, at any size.
int64_t most_kept(const OpInput& in, int64_t n) {
  if (attr_string(in.node.attrs, "select", "all") != "topk") return n;
  int64_t most = 0;
  for (const SelectSize& size : select_sizes(in.node.attrs)) most = std::max(most, size.k);
  return std::min(n, most);
}

/// Rows at the front of a sequence for which every input counts.
int64_t dense_first(const OpInput& in) { return require_int(in, "dense_first", 0, 0, kMaxRows); }

int64_t rows_of(const Shape& shape) { return numel(shape, "rows") / shape.back(); }

Shape with_last(Shape shape, int64_t last) {
  shape.back() = last;
  return shape;
}

Shape sparse_input_shape(const OpInput& in) {
  const Shape& x = input(in, 0);
  const Shape& weight = require_weight(in, "weight", 2, "[I,O]");
  if (weight[0] != x.back())
    fail(Code::shape, "weight '{}': expected [{},O], found {}",
         printable(in.tensors.at("weight").name), x.back(), to_string(weight));
  require_tensor(in, "bias", {weight[1]});
  require_tensor(in, "column_norm", {weight[0]});
  require_choice(in, "select", "", {"topk", "threshold", "statistical"});
  require_select(in);
  if (dense_first(in) > 0 && x.size() != 2)
    fail(Code::shape,
         "attribute 'dense_first': counts rows of a sequence; expected [T,{}], found {}", weight[0],
         to_string(x));
  return with_last(x, weight[1]);
}

/// With `kept` inputs of a row.
int64_t sparse_input_cost(const OpInput& in, const Shape& output, int64_t kept) {
  const Shape& x = input(in, 0);
  const int64_t whole = x.size() == 2 ? std::min(dense_first(in), x[0]) : 0;
  const int64_t rows = rows_of(output);
  const int64_t pairs = checked_add(checked_mul(rows - whole, kept, "MACs"),
                                    checked_mul(whole, x.back(), "MACs"), "MACs");
  return checked_mul(pairs, output.back(), "MACs");
}

int64_t sparse_input_macs(const OpInput& in, const Shape& output) {
  return sparse_input_cost(in, output, most_kept(in, input(in, 0).back()));
}

/// With rows that stay dense a row's place in its sequence matters.
Rows sparse_input_rows(const OpInput& in) {
  return dense_first(in) > 0 ? Rows::ordered : matrix_rows(in);
}

Shape gathered_linear_shape(const OpInput& in) {
  const Shape& x = input(in, 0);
  const Shape& weight = require_weight(in, "weight", 2, "[O,I]");
  if (weight[1] != x.back())
    fail(Code::shape, "weight '{}': expected [O,{}], found {}",
         printable(in.tensors.at("weight").name), x.back(), to_string(weight));
  require_tensor(in, "bias", {weight[0]});
  require_activations(in);
  const Shape& mask = input(in, 1);
  if (mask.size() != x.size() || mask.back() < 1 || with_last(mask, x.back()) != x ||
      weight[0] % mask.back() != 0)
    fail(Code::shape, "mask: expected {} with a number for each unit of {} outputs, found {}",
         to_string(with_last(x, 1)), weight[0], to_string(mask));
  return with_last(x, weight[0]);
}

/// With all units open.
int64_t gathered_linear_macs(const OpInput& in, const Shape& output) {
  return checked_mul(numel(output, "output"), input(in, 0).back(), "MACs");
}

Shape sparse_ffn_shape(const OpInput& in) {
  const Shape& x = input(in, 0);
  const Shape up = require_weight(in, "up", 2, "[F,D]");
  const Shape down = require_weight(in, "down", 2, "[F,D]");
  const int64_t split = require_int(in, "split", 0, 0, x.back() - 1);
  if (split > 0 && (!has(in, "gate") || has(in, "predictor_a")))
    fail(
        Code::shape,
        "attribute 'split': the gate reads the first {} inputs, up the others; expected a gate and "
        "no predictor",
        split);
  if (up[1] != x.back() - split)
    fail(Code::shape, "up '{}': expected [F,{}], found {}", printable(in.tensors.at("up").name),
         x.back() - split, to_string(up));
  require_tensor(in, "gate", split > 0 ? Shape{up[0], split} : up);
  if (down[0] != up[0])
    fail(Code::shape, "down '{}': expected [{},D], one row per neuron, found {}",
         printable(in.tensors.at("down").name), up[0], to_string(down));
  require_tensor(in, "up_bias", {up[0]});
  require_tensor(in, "gate_bias", {up[0]});
  require_tensor(in, "down_bias", {down[1]});
  if (has(in, "gate_bias") && !has(in, "gate"))
    fail(Code::shape, "gate_bias without gate; expected both or none");
  require_activation(in, "activation", "relu");
  require_activations(in);
  require_choice(in, "select", "all", {"all", "topk", "threshold", "statistical"});
  require_choice(in, "rank", "value", {"value", "magnitude"});
  require_choice(in, "scores", "first", {"first", "activated"});
  require_select(in);
  const bool predictor = has(in, "predictor_a") || has(in, "predictor_b");
  if (predictor) {
    if (!has(in, "predictor_a") || !has(in, "predictor_b"))
      fail(Code::missing, "predictor_a and predictor_b belong together; one of them is not there");
    const Shape& a = require_weight(in, "predictor_a", 2, "[R,D]");
    if (a[1] != x.back())
      fail(Code::shape, "predictor_a '{}': expected [R,{}], found {}",
           printable(in.tensors.at("predictor_a").name), x.back(), to_string(a));
    require_tensor(in, "predictor_b", {up[0], a[0]});
  }
  if (in.inputs.size() > 1) {
    if (predictor) fail(Code::shape, "scores come from input 2 or from a predictor, not from both");
    if (input(in, 1) != with_last(x, up[0]))
      fail(Code::shape, "input 2: expected the scores of {} neurons, {}, found {}", up[0],
           to_string(with_last(x, up[0])), to_string(input(in, 1)));
  }
  if (attr_bool(in.node.attrs, "soft", false)) {
    const std::string select = attr_string(in.node.attrs, "select", "all");
    if ((select != "threshold" && select != "statistical") || predictor || in.inputs.size() > 1 ||
        attr_string(in.node.attrs, "scores", "first") != "first")
      fail(Code::shape,
           "attribute 'soft': subtracts the threshold of the first product; expected select "
           "threshold or statistical, scores first, no predictor and one input");
  }
  return with_last(x, down[1]);
}

/// With `kept` neurons of a row.
int64_t sparse_ffn_cost(const OpInput& in, const Shape& output, int64_t kept) {
  const Shape &up = in.tensors.at("up").shape, &down = in.tensors.at("down").shape;
  const bool gated = has(in, "gate"), predictor = has(in, "predictor_a");
  const bool itself = !predictor && in.inputs.size() == 1;
  const int64_t lead = gated ? in.tensors.at("gate").shape[1] : up[1];
  int64_t each = checked_mul(kept, down[1], "MACs");
  each = checked_add(each, checked_mul(itself ? up[0] : kept, lead, "MACs"), "MACs");
  if (gated) each = checked_add(each, checked_mul(kept, up[1], "MACs"), "MACs");
  if (predictor) {
    const int64_t rank = in.tensors.at("predictor_a").shape[0];
    each = checked_add(each, checked_mul(rank, checked_add(up[0], up[1], "MACs"), "MACs"), "MACs");
  }
  return checked_mul(rows_of(output), each, "MACs");
}

int64_t sparse_ffn_macs(const OpInput& in, const Shape& output) {
  return sparse_ffn_cost(in, output, most_kept(in, in.tensors.at("up").shape[0]));
}

Shape experts_shape(const OpInput& in) {
  const Shape& x = input(in, 0);
  const Shape up = require_weight(in, "up", 3, "[E,F,D]");
  const Shape down = require_weight(in, "down", 3, "[E,F,D]");
  if (up[2] != x.back())
    fail(Code::shape, "up '{}': expected [E,F,{}], found {}", printable(in.tensors.at("up").name),
         x.back(), to_string(up));
  if (down[0] != up[0] || down[1] != up[1])
    fail(Code::shape, "down '{}': expected [{},{},D], one row per neuron, found {}",
         printable(in.tensors.at("down").name), up[0], up[1], to_string(down));
  require_tensor(in, "gate", up);
  if (input(in, 1) != with_last(x, up[0]))
    fail(Code::shape, "input 2: expected the logits of {} experts, {}, found {}", up[0],
         to_string(with_last(x, up[0])), to_string(input(in, 1)));
  require_int(in, "top_k", 0, 1, up[0]);
  require_activation(in, "activation", "silu");
  require_activations(in);
  require_choice(in, "normalize", "after", {"before", "after"});
  return with_last(x, down[2]);
}

int64_t experts_macs(const OpInput& in, const Shape& output) {
  const Shape &up = in.tensors.at("up").shape, &down = in.tensors.at("down").shape;
  const int64_t in_width = checked_mul(up[2], has(in, "gate") ? 2 : 1, "MACs");
  const int64_t each = checked_mul(up[1], checked_add(in_width, down[2], "MACs"), "MACs");
  return checked_mul(rows_of(output),
                     checked_mul(attr_int(in.node.attrs, "top_k", 1), each, "MACs"), "MACs");
}

Shape lora_shape(const OpInput& in) {
  const Shape &y = input(in, 0), &x = input(in, 1);
  const Shape a = require_weight(in, "a", 3, "[N,R,I]");
  require_weight(in, "b", 3, "[N,R,O]");
  if (a[2] != x.back())
    fail(Code::shape, "a '{}': expected [N,R,{}], found {}", printable(in.tensors.at("a").name),
         x.back(), to_string(a));
  require_tensor(in, "b", {a[0], a[1], y.back()});
  require_tensor(in, "scale", {a[0]});
  require_activations(in);
  if (with_last(x, y.back()) != y)
    fail(Code::shape, "input 2: expected the same rows as {}, found {}", to_string(y),
         to_string(x));
  if (input(in, 2) != with_last(y, 1))
    fail(Code::shape, "input 3: expected one adapter per row, {}, found {}",
         to_string(with_last(y, 1)), to_string(input(in, 2)));
  return y;
}

int64_t lora_macs(const OpInput& in, const Shape& output) {
  const Shape &a = in.tensors.at("a").shape, &b = in.tensors.at("b").shape;
  return checked_mul(rows_of(output), checked_mul(a[1], checked_add(a[2], b[2], "MACs"), "MACs"),
                     "MACs");
}

}  // namespace

std::vector<SelectSize> select_sizes(const Attributes& attrs) {
  const std::string kind = attr_string(attrs, "select", "all");
  std::vector<SelectSize> sizes;
  if (kind == "topk") {
    for (const int64_t k : list_of<int64_t>(attrs, "k", -1)) sizes.push_back({.k = require_k(k)});
  } else if (kind == "statistical") {
    for (const double keep : list_of<double>(attrs, "keep", 0))
      sizes.push_back({.keep = require_keep(keep)});
  } else if (kind == "threshold") {
    for (const double threshold : list_of<double>(attrs, "threshold", 0))
      sizes.push_back({.threshold = require_threshold(threshold)});
  } else {
    sizes.emplace_back();
  }
  return sizes;
}

std::vector<int64_t> select_macs(const OpInput& in, const Shape& output) {
  const bool ffn = in.node.op == "sparse_ffn";
  const int64_t n = ffn ? in.tensors.at("up").shape[0] : input(in, 0).back();
  const bool counted = attr_string(in.node.attrs, "select", "all") == "topk";
  std::vector<int64_t> macs;
  for (const SelectSize& size : select_sizes(in.node.attrs)) {
    const int64_t kept = counted ? std::min(n, size.k) : n;
    macs.push_back(ffn ? sparse_ffn_cost(in, output, kept) : sparse_input_cost(in, output, kept));
  }
  return macs;
}

std::vector<double> threshold_values(const Attributes& attrs) {
  auto values = list_of<double>(attrs, "value", 0);
  for (const double value : values)
    if (!std::isfinite(value))
      fail(Code::numeric, "attribute 'value': expected a finite number, found {}", value);
  return values;
}

std::vector<Operator> conditional_operators() {
  return {
      {"sparse_input_linear",
       1,
       1,
       {"weight"},
       {"bias", "column_norm"},
       {"select", "k", "keep", "threshold", "dense_first"},
       sparse_input_shape,
       sparse_input_macs,
       sparse_input_rows,
       {"weight"}},
      {"gathered_linear",
       2,
       2,
       {"weight"},
       {"bias"},
       {"activations"},
       gathered_linear_shape,
       gathered_linear_macs,
       matrix_rows,
       {"weight"}},
      {"sparse_ffn",
       1,
       2,
       {"up", "down"},
       {"gate", "up_bias", "gate_bias", "down_bias", "predictor_a", "predictor_b"},
       {"activation", "activations", "select", "k", "keep", "threshold", "rank", "scores", "soft",
        "split"},
       sparse_ffn_shape,
       sparse_ffn_macs,
       matrix_rows,
       {"up", "gate", "down", "predictor_a", "predictor_b"}},
      {"experts",
       2,
       2,
       {"up", "down"},
       {"gate"},
       {"top_k", "activation", "activations", "normalize"},
       experts_shape,
       experts_macs,
       matrix_rows,
       {"up", "gate", "down"}},
      {"lora_add",
       3,
       3,
       {"a", "b"},
       {"scale"},
       {"activations"},
       lora_shape,
       lora_macs,
       matrix_rows,
       {"a", "b"}},
  };
}

}  // namespace sluice::bundle
