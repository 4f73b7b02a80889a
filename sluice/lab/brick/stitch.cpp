#include "sluice/lab/brick/stitch.h"

#include <algorithm>
#include <array>

#include "sluice/base/path_pattern.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {

// ---- Stitch ----

Stitch::Stitch(int64_t inputs, int64_t outputs, bool pixels) {
  require_range(inputs, 1, kMaxChannels, "inputs", "stitch");
  require_range(outputs, 1, kMaxChannels, "outputs", "stitch");
  require_elements({inputs, outputs}, "weight", "stitch");
  at::Tensor values = initial_uniform({outputs, inputs}, inputs);
  if (pixels) values = values.view({outputs, inputs, 1, 1});
  weight = register_parameter("weight", values);
  bias = register_parameter("bias", at::zeros({outputs}));
}

Json Stitch::attributes() const {
  return {{"inputs", inputs()}, {"outputs", outputs()}, {"over", pixels() ? "pixels" : "rows"}};
}

BrickPtr make_stitch(const Json& attributes) {
  const AttributeReader read(attributes, "stitch", {"inputs", "outputs", "over"});
  const std::string over = read.text("over", "rows");
  if (over != "rows" && over != "pixels") {
    fail(Code::config, "over of stitch: expected rows or pixels, found '{}'", over.substr(0, 60));
  }
  return std::make_shared<Stitch>(read.integer("inputs"), read.integer("outputs"),
                                  over == "pixels");
}

at::Tensor Stitch::forward(const at::Tensor& x, Context& context) {
  at::Tensor y = pixels() ? at::conv2d(x, weight, bias) : at::linear(x, weight, bias);
  if (context.meter != nullptr) {
    context.meter->add(
        context.path(), y.numel() * inputs(),
        tensor_bytes(x) + tensor_bytes(weight) + tensor_bytes(bias) + tensor_bytes(y));
  }
  return y;
}

Shape Stitch::output_shape(const Shape& input) const {
  const bool fits = pixels() ? input.size() == 3 && input[0] == inputs()
                             : !input.empty() && input.back() == inputs();
  if (!fits) {
    fail(
        Code::shape, "stitch: expected {}, found {}",
        pixels() ? fmt::format("[{}, height, width]", inputs()) : fmt::format("[.., {}]", inputs()),
        to_string(input));
  }
  Shape output = input;
  (pixels() ? output.front() : output.back()) = outputs();
  return output;
}

Cost Stitch::cost(const Shape& input) const {
  const int64_t params = weight.numel() + bias.numel();
  return {checked_mul(numel(output_shape(input)), inputs(), "MACs of stitch"), params, 4 * params};
}

bundle::Value Stitch::lower(bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) const {
  return lower_at(builder, x, path, node_path_of(path, *this));
}

bundle::Value Stitch::lower_at(bundle::Builder& builder, const bundle::Value& x,
                               const std::string& path, const std::string& node) const {
  const std::string w = join_path(path, "weight"), b = join_path(path, "bias");
  add_tensor(builder, w, weight);
  add_tensor(builder, b, bias);
  return builder.node(pixels() ? "conv2d" : "linear", node, {x}, {}, {{"weight", w}, {"bias", b}});
}

void Stitch::set_values(const at::Tensor& w, const at::Tensor& b) {
  SLUICE_CHECK(w.numel() == weight.numel() && b.numel() == bias.numel());
  const at::NoGradGuard no_grad;
  weight.copy_(w.reshape(weight.sizes()));
  bias.copy_(b.reshape(bias.sizes()));
}

// ---- StitchPath ----

std::string StitchPath::name() const {
  if (alone()) return fmt::format("a{}", from);
  return fmt::format("a{}b{}-a{}b{}", from, out, to, into);
}

// ---- StitchedModel ----

namespace {

constexpr size_t kFields = 5;
constexpr int64_t kMaxAnchors = 26;

std::string anchor_name(int64_t index) { return fmt::format("anchor{}", index); }
std::string stitch_name(int64_t index) { return fmt::format("stitch{}", index); }

}  // namespace

StitchedModel::StitchedModel(std::vector<StitchPath> paths) : paths_(std::move(paths)) {
  if (paths_.empty() || paths_.size() > bundle::kMaxSizes) {
    fail(Code::config, "paths of stitched: expected 1 to {}, found {}", bundle::kMaxSizes,
         paths_.size());
  }
  for (const StitchPath& path : paths_) {
    require_range(path.from, 0, kMaxAnchors - 1, "paths", "stitched");
    require_range(path.to, path.from, kMaxAnchors - 1, "paths", "stitched");
    for (const int64_t index : {path.out, path.into, path.stitch}) {
      require_range(index, path.alone() ? -1 : 0, path.alone() ? -1 : kMaxChannels, "paths",
                    "stitched");
    }
  }
}

Json StitchedModel::attributes() const {
  std::vector<int64_t> numbers;
  for (const StitchPath& p : paths_) {
    numbers.insert(numbers.end(), {p.from, p.to, p.out, p.into, p.stitch});
  }
  return {{"paths", numbers}};
}

BrickPtr make_stitched(const Json& attributes) {
  const AttributeReader read(attributes, "stitched", {"paths"});
  const std::vector<int64_t> numbers = read.integers("paths", kFields * bundle::kMaxSizes);
  if (numbers.size() % kFields != 0) {
    fail(Code::config, "paths of stitched: expected {} numbers each, found {} in all", kFields,
         numbers.size());
  }
  std::vector<StitchPath> paths;
  for (size_t i = 0; i < numbers.size(); i += kFields) {
    paths.push_back({numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3], numbers[i + 4]});
  }
  return std::make_shared<StitchedModel>(std::move(paths));
}

void StitchedModel::adopt(const std::string& name, BrickPtr child) {
  add_slot(name, std::move(child));
}

int64_t StitchedModel::anchors() const {
  int64_t count = 0;
  while (has_slot(anchor_name(count))) ++count;
  return count;
}

BlockChain StitchedModel::anchor(int64_t index) const {
  const std::string name = anchor_name(index);
  return {*slot(name), name};
}

Stitch& StitchedModel::stitch(int64_t index) const { return slot(stitch_name(index)).as<Stitch>(); }

int64_t StitchedModel::vocabulary() const {
  return has_slot(anchor_name(0)) ? slot(anchor_name(0))->vocabulary() : 0;
}

void StitchedModel::check_slots() const {
  for (const auto& slot : slots()) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
  for (int64_t a = 1; a < anchors(); ++a) {
    const int64_t tokens = slot(anchor_name(a))->vocabulary();
    if (tokens != vocabulary()) {
      fail(Code::config, "{}: has a vocabulary of {}, {} one of {}; expected the same",
           anchor_name(a), tokens, anchor_name(0), vocabulary());
    }
  }
  for (const StitchPath& path : paths_) {
    for (const int64_t index : {path.from, path.to}) {
      if (!has_slot(anchor_name(index))) {
        fail(Code::config, "{}: not there; path '{}' needs it", anchor_name(index), path.name());
      }
    }
    if (path.alone()) continue;
    if (!has_slot(stitch_name(path.stitch))) {
      fail(Code::config, "{}: not there; path '{}' needs it", stitch_name(path.stitch),
           path.name());
    }
    stitch(path.stitch);
    require_range(path.out, 0, anchor(path.from).length() - 1, "paths", "stitched");
    require_range(path.into, 0, anchor(path.to).length() - 1, "paths", "stitched");
  }
}

at::Tensor StitchedModel::forward(const at::Tensor& x, Context& context) {
  const auto count = static_cast<int64_t>(paths_.size());
  const StitchPath& path =
      paths_[static_cast<size_t>(chosen_size(context, count, "stitched model"))];
  at::Tensor y;
  int64_t block = 0;
  if (!path.alone()) {
    const BlockChain first = anchor(path.from);
    {
      const Context::Scope scope(context, anchor_name(path.from));
      y = first.front(x, context);
      for (int64_t i = 0; i <= path.out; ++i) y = first.block(i, y, context);
    }
    y = slot(stitch_name(path.stitch)).forward(y, context);
    block = path.into;
  }
  const BlockChain last = anchor(path.to);
  const Context::Scope scope(context, anchor_name(path.to));
  if (path.alone()) y = last.front(x, context);
  for (; block < last.length(); ++block) y = last.block(block, y, context);
  return last.tail(y, context);
}

Shape StitchedModel::path_shape(const StitchPath& path, const Shape& input) const {
  const BlockChain last = anchor(path.to);
  const std::vector<Shape> flow = last.shapes(input);
  if (!path.alone()) {
    const Shape given = anchor(path.from).shapes(input)[static_cast<size_t>(path.out) + 1];
    const Shape& taken = flow[static_cast<size_t>(path.into)];
    const Stitch& layer = stitch(path.stitch);
    const bool as_stored = layer.pixels() ? given.size() == 3 && given[0] == layer.inputs()
                                          : !given.empty() && given.back() == layer.inputs();
    if (!as_stored || layer.output_shape(given) != taken) {
      fail(Code::shape,
           "path '{}': block {} of {} gives {}, block {} of {} takes {}; {} [{} -> {}] changes the "
           "{} only",
           path.name(), path.out, anchor_name(path.from), to_string(given), path.into,
           anchor_name(path.to), to_string(taken), stitch_name(path.stitch), layer.inputs(),
           layer.outputs(), layer.pixels() ? "channels" : "columns");
    }
  }
  return last.tail_shape(flow.back());
}

Shape StitchedModel::output_shape(const Shape& input) const {
  const Shape result = path_shape(paths_.back(), input);
  for (const StitchPath& path : paths_) {
    const Shape shape = path_shape(path, input);
    if (shape != result) {
      fail(Code::shape, "path '{}' gives {}, path '{}' {}; expected the same", path.name(),
           to_string(shape), paths_.back().name(), to_string(result));
    }
  }
  return result;
}

int64_t StitchedModel::path_macs(const StitchPath& path, const Shape& input) const {
  const auto first = anchor(path.from), last = anchor(path.to);
  const std::vector<Shape> before = first.shapes(input), flow = last.shapes(input);
  int64_t macs = first.front_cost(input).macs + last.tail_cost(flow.back()).macs;
  const auto add = [&](const BlockChain& chain, const std::vector<Shape>& shapes, int64_t begin,
                       int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      macs = checked_add(macs, chain.block_cost(i, shapes[static_cast<size_t>(i)]).macs,
                         "MACs of a path");
    }
  };
  if (path.alone()) {
    add(last, flow, 0, last.length());
  } else {
    add(first, before, 0, path.out + 1);
    macs += stitch(path.stitch).cost(before[static_cast<size_t>(path.out) + 1]).macs;
    add(last, flow, path.into, last.length());
  }
  return macs;
}

Cost StitchedModel::cost(const Shape& input) const {
  Cost total;
  for (int64_t a = 0; a < anchors(); ++a) total += slot(anchor_name(a)).cost(input);
  for (int64_t s = 0; has_slot(stitch_name(s)); ++s) {
    const Stitch& layer = stitch(s);
    total += layer.cost(layer.pixels() ? Shape{layer.inputs(), 1, 1} : Shape{layer.inputs()});
  }
  total.macs = 0;
  for (const StitchPath& path : paths_) total.macs = std::max(total.macs, path_macs(path, input));
  return total;
}

bundle::Value StitchedModel::lower(bundle::Builder& builder, const bundle::Value& x,
                                   const std::string& path) const {
  std::vector<std::vector<bundle::Value>> given;  // by anchor: what each block gives
  std::vector<bundle::Value> ends;
  std::map<std::array<int64_t, 3>, bundle::Value> stitched;  // stitch, anchor, block
  std::vector<int64_t> choice(paths_.size(), 0);
  for (int64_t a = 0; a < anchors(); ++a) {
    const BlockChain chain = anchor(a);
    const std::string own = join_path(path, anchor_name(a));
    bundle::Value stream = chain.lower_front(builder, x, own);
    given.emplace_back();
    for (int64_t j = 0; j < chain.length(); ++j) {
      std::vector<bundle::Value> entries = {stream};
      std::vector<std::array<int64_t, 3>> keys = {{-1, -1, -1}};
      std::fill(choice.begin(), choice.end(), 0);
      for (size_t p = 0; p < paths_.size(); ++p) {
        const StitchPath& way = paths_[p];
        if (way.alone() || way.to != a || way.into != j) continue;
        const std::array<int64_t, 3> key = {way.stitch, way.from, way.out};
        if (!stitched.contains(key)) {
          const std::string layer = join_path(path, stitch_name(way.stitch));
          stitched[key] =
              stitch(way.stitch)
                  .lower_at(builder,
                            given[static_cast<size_t>(way.from)][static_cast<size_t>(way.out)],
                            layer, fmt::format("{}.a{}b{}", layer, way.from, way.out));
        }
        auto place = std::find(keys.begin(), keys.end(), key);
        if (place == keys.end()) {
          keys.push_back(key);
          entries.push_back(stitched[key]);
          place = keys.end() - 1;
        }
        choice[p] = place - keys.begin();
      }
      if (entries.size() > 1) {
        stream = builder.node("size_switch", join_path(own, fmt::format("enter{}", j)), entries,
                              {{"choice", choice}});
      }
      stream = chain.lower_block(j, builder, stream, own);
      given.back().push_back(stream);
    }
    ends.push_back(chain.lower_tail(builder, stream, own));
  }
  if (ends.size() == 1) return ends.front();
  for (size_t p = 0; p < paths_.size(); ++p) choice[p] = paths_[p].to;
  return builder.node("size_switch", join_path(path, "end"), ends, {{"choice", choice}});
}

}  // namespace sluice::lab
