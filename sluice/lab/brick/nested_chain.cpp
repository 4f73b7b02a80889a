// Depth of nested networks.
#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/nested.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {
namespace {

constexpr std::string_view kExit = "exit";

int64_t parameter_count(const Brick& brick) {
  return static_cast<int64_t>(brick.parameters().size() + brick.buffers().size());
}

}  // namespace

NestedChain::NestedChain(std::vector<int64_t> exits) : exits_(std::move(exits)) {
  for (const int64_t steps : exits_) {
    require_range(steps, 1, kMaxChannels, "exits", "nested_chain");
  }
}

NestedChain& NestedChain::append(const std::string& name, BrickPtr child) {
  add_slot(name, std::move(child));
  return *this;
}

Json NestedChain::attributes() const {
  return exits_.empty() ? Json::object() : Json{{"exits", exits_}};
}

BrickPtr make_nested_chain(const Json& attributes) {
  const AttributeReader read(attributes, "nested_chain", {"exits"});
  return std::make_shared<NestedChain>(read.integers("exits", bundle::kMaxSizes));
}

void NestedChain::adopt(const std::string& name, BrickPtr child) {
  add_slot(name, std::move(child));
}

const Slot* NestedChain::exit() const { return has_slot(kExit) ? &slot(kExit) : nullptr; }

int64_t NestedChain::length() const {
  return static_cast<int64_t>(slots().size()) - (exit() == nullptr ? 0 : 1);
}

int64_t NestedChain::steps_of(int64_t size) const {
  return exits_.empty() ? length() : exits_[static_cast<size_t>(size)];
}

void NestedChain::check_slots() const {
  for (const auto& slot : slots()) {
    if (slot->empty())
      fail(Code::config, "{}: empty; a nested chain has no use for that", slot->name());
  }
  if (length() < 1) fail(Code::config, "nested_chain: it has no children to run");
  if (exit() != nullptr && (slots().back().get() != exit() || parameter_count(**exit()) > 0)) {
    fail(Code::config, "exit of nested_chain: expected the last slot, and a brick without weights");
  }
  for (const int64_t steps : exits_) {
    require_range(steps, 1, length(), "exits", "nested_chain");
  }
}

void NestedChain::set_exits(std::vector<int64_t> exits) {
  if (exits.size() > bundle::kMaxSizes) {
    fail(Code::limit, "exits of nested_chain: {} sizes; at most {}", exits.size(),
         bundle::kMaxSizes);
  }
  for (const int64_t steps : exits) require_range(steps, 1, length(), "exits", "nested_chain");
  exits_ = std::move(exits);
}

at::Tensor NestedChain::forward(const at::Tensor& x, Context& context) {
  const auto count = static_cast<int64_t>(exits_.size());
  const int64_t steps =
      exits_.empty() ? length() : steps_of(chosen_size(context, count, "nested_chain"));
  at::Tensor y = x;
  for (int64_t i = 0; i < steps; ++i) y = slots()[static_cast<size_t>(i)]->forward(y, context);
  return exit() == nullptr ? y : exit()->forward(y, context);
}

Shape NestedChain::output_shape(const Shape& input) const {
  Shape shape = input, widest;
  for (int64_t i = 0; i < length(); ++i) {
    shape = slots()[static_cast<size_t>(i)]->output_shape(shape);
    const bool ends =
        i + 1 == length() || std::find(exits_.begin(), exits_.end(), i + 1) != exits_.end();
    if (!ends) continue;
    const Shape end = exit() == nullptr ? shape : exit()->output_shape(shape);
    const bool features = end.size() == 1 && widest.size() == 1;
    if (widest.empty() || (features && end[0] >= widest[0])) {
      widest = end;
    } else if (!features && end != widest) {
      fail(Code::shape, "nested_chain: it ends with {} after {} children, with {} before",
           to_string(end), i + 1, to_string(widest));
    }
  }
  return widest;
}

Cost NestedChain::cost(const Shape& input) const {
  Cost total;
  Shape shape = input;
  for (int64_t i = 0; i < length(); ++i) {
    const Slot& child = *slots()[static_cast<size_t>(i)];
    total += child.cost(shape);
    shape = child.output_shape(shape);
  }
  if (exit() != nullptr) total += exit()->cost(shape);
  return total;
}

bundle::Value NestedChain::lower(bundle::Builder& builder, const bundle::Value& x,
                                 const std::string& path) const {
  std::vector<int64_t> ends = exits_.empty() ? std::vector<int64_t>{length()} : exits_;
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  if (ends.size() > bundle::GraphLimits::kNodeInputs) {
    fail(Code::limit, "{}: {} different depths; at most {}", node_path_of(path, *this), ends.size(),
         bundle::GraphLimits::kNodeInputs);
  }
  std::vector<bundle::Value> values;
  bundle::Value y = x;
  int64_t steps = 0, widest = 0;
  for (const int64_t end : ends) {
    for (; steps < end; ++steps) {
      y = slots()[static_cast<size_t>(steps)]->lower(builder, y, path);
    }
    const std::string name = fmt::format("exit{}", end);
    values.push_back(exit() == nullptr ? y : (**exit()).lower(builder, y, join_path(path, name)));
    widest = std::max(widest, values.back().shape[0]);
  }
  // Nodes behind the last end that any size takes keep their weights in the file; nothing runs
  // them.
  if (values.size() == 1) return values.front();
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t width = values[i].shape[0];
    if (values[i].shape.size() != 1 || width == widest) continue;  // a node's shape is one for all
    values[i] = builder.node(
        "pad", join_path(path, fmt::format("pad{}", ends[i])), {values[i]},
        {{"before", std::vector<int64_t>{0}}, {"after", std::vector<int64_t>{widest - width}}});
  }
  std::vector<int64_t> choice;
  for (const int64_t end : exits_) {
    choice.push_back(std::lower_bound(ends.begin(), ends.end(), end) - ends.begin());
  }
  return builder.node("size_switch", join_path(path, "end"), values, {{"choice", choice}});
}

BrickPtr NestedChain::pick(int64_t size) const {
  auto result = std::make_shared<Sequential>();
  for (int64_t i = 0; i < steps_of(size); ++i) {
    const Slot& child = *slots()[static_cast<size_t>(i)];
    result->append(child.name(), child.get());
  }
  if (exit() != nullptr) result->append(exit()->name(), exit()->get());
  result->train(is_training());
  return result;
}

}  // namespace sluice::lab
