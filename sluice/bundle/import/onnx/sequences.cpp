// ONNX operators over sequences, and branches whose choice is known.
#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/import/onnx/lowering.h"

namespace sluice::bundle::onnx {
namespace {

using Vals = std::vector<Val>;

/// Blocks of `hidden` rows of x [gates H, ..] in another order.
ConstantPtr reorder(const Constant& x, int64_t hidden, const std::vector<int64_t>& order,
                    const std::string& name) {
  std::vector<int64_t> rows;
  for (const int64_t gate : order)
    for (int64_t i = 0; i < hidden; ++i) rows.push_back(gate * hidden + i);
  ConstantPtr turned = fold_gather(x, 0, rows);
  auto result = std::make_shared<Constant>(*turned);
  result->name = name;
  return result;
}

struct Direction {
  ConstantPtr weight, recurrent, bias, recurrent_bias;
};

/// x [T,I], one direction; the states before and after are [H].
struct Ran {
  Val rows;  ///< [T,H]
  Val h, c;  ///< [H]
};

class Recurrent {
 public:
  explicit Recurrent(const Call& c) : c_(c), lstm_(c.node.op == "LSTM") {
    gates_ = lstm_ ? 4 : 3;
    const std::string direction = c.attr("direction", "forward");
    if (direction != "forward" && direction != "reverse" && direction != "bidirectional")
      c.refuse(Code::unsupported, "direction '" + direction + "'");
    directions_ = direction == "bidirectional" ? 2 : 1;
    backward_ = direction == "reverse";
    hidden_ = c.attr("hidden_size", int64_t{0});
    batch_first_ = c.attr("layout", int64_t{0}) != 0;
    if (c.find("activations", AttributeSource::Kind::texts))
      c.refuse(Code::unsupported, "activations of its own; only the usual ones are known");
    if (c.node.attributes.count("clip") || c.attr("input_forget", int64_t{0}) != 0)
      c.refuse(Code::unsupported, "clip or input_forget");
    if (lstm_ && c.has(7)) c.refuse(Code::unsupported, "peepholes");
    reset_after_ = lstm_ || c.attr("linear_before_reset", int64_t{0}) != 0;
    const Shape& x = c.in(0).shape;
    if (x.size() != 3) c.refuse(Code::shape, fmt::format("of {}", to_string(x)));
    rows_ = x[batch_first_ ? 1 : 0];
    batch_ = x[batch_first_ ? 0 : 1];
    if (batch_ > 64)
      c.refuse(
          Code::unsupported,
          fmt::format("a batch of {}; import the model for 1 sample, the engine runs any batch",
                      batch_));
    const Constant &w = c.known(1, "W"), &r = c.known(2, "R");
    if (hidden_ < 1 || hidden_ > 1 << 20 || w.integer || r.integer ||
        w.shape != Shape{directions_, gates_ * hidden_, x[2]} ||
        r.shape != Shape{directions_, gates_ * hidden_, hidden_})
      c.refuse(Code::shape, fmt::format("W {} and R {} for {} hidden units", to_string(w.shape),
                                        to_string(r.shape), hidden_));
    if (c.has(3)) {
      const Constant& b = c.known(3, "B");
      if (b.integer || b.shape != Shape{directions_, 2 * gates_ * hidden_})
        c.refuse(Code::shape, fmt::format("B {}", to_string(b.shape)));
    }
    if (numel(x) < 1) c.refuse(Code::shape, fmt::format("X {}", to_string(x)));
    const Shape states =
        batch_first_ ? Shape{batch_, directions_, hidden_} : Shape{directions_, batch_, hidden_};
    for (const size_t i : {size_t{5}, size_t{6}})
      if (c.has(i) && c.in(i).shape != states)
        c.refuse(Code::shape, fmt::format("initial state {}; expected {}", to_string(c.in(i).shape),
                                          to_string(states)));
    if (c.has(4)) {
      for (const int64_t length : c.integers(4, "sequence_lens"))
        if (length != rows_) c.refuse(Code::unsupported, "sequences of different lengths");
    }
  }

  Vals run() {
    // Y [T, directions, batch, H]; with layout 1 the batch comes first. A batch in the file is one
    // sample after the other.
    std::vector<Val> y, h, cells;
    for (int64_t b = 0; b < batch_; ++b) {
      std::vector<Val> rows, last, cell;
      for (int64_t d = 0; d < directions_; ++d) {
        const Ran ran = one(d, b);
        rows.push_back(c_.to.reshape(ran.rows, {rows_, 1, 1, hidden_}));
        last.push_back(c_.to.reshape(ran.h, {1, 1, hidden_}));
        if (lstm_) cell.push_back(c_.to.reshape(ran.c, {1, 1, hidden_}));
      }
      y.push_back(c_.to.concat(rows, 1));
      h.push_back(c_.to.concat(last, 0));
      if (lstm_) cells.push_back(c_.to.concat(cell, 0));
    }
    Vals outputs{c_.to.concat(y, 2), c_.to.concat(h, 1)};
    if (lstm_) outputs.push_back(c_.to.concat(cells, 1));
    if (batch_first_) {
      outputs[0] = c_.to.transpose(outputs[0], {2, 0, 1, 3});
      for (size_t i = 1; i < outputs.size(); ++i)
        outputs[i] = c_.to.transpose(outputs[i], {1, 0, 2});
    }
    return outputs;
  }

 private:
  Val state(size_t input, int64_t direction, int64_t sample) {
    const size_t axis = batch_first_ ? 1 : 0;
    const Val mine = c_.to.slice(c_.in(input), axis, direction, 1);
    return c_.to.slice(mine, 1 - axis, sample, 1);
  }

  Ran one(int64_t d, int64_t sample) {
    // Gates: i, o, f, c -> i, f, g, o; z, r, h -> r, z, n.
    const std::vector<int64_t> order =
        lstm_ ? std::vector<int64_t>{0, 2, 3, 1} : std::vector<int64_t>{1, 0, 2};
    const auto part = [&](size_t input) {
      const Constant& all = c_.known(input, "weights");
      ConstantPtr mine = fold_gather(all, 0, {d});
      auto flat = std::make_shared<Constant>(*mine);
      flat->shape.erase(flat->shape.begin());
      return flat;
    };
    const std::string suffix = directions_ == 2 ? fmt::format(".{}", d) : "";
    const auto named = [&](size_t input) {
      const std::string& name = c_.in(input).constant->name;
      return name.empty() ? name : name + suffix;
    };
    std::map<std::string, ConstantPtr> tensors;
    tensors["weight"] = reorder(*part(1), hidden_, order, named(1));
    tensors["recurrent"] = reorder(*part(2), hidden_, order, named(2));
    if (c_.has(3)) {
      const auto both = part(3);
      const Val all = c_.to.known(both);
      const Val wb = c_.to.slice(all, 0, 0, gates_ * hidden_),
                rb = c_.to.slice(all, 0, gates_ * hidden_, gates_ * hidden_);
      Val sum = c_.to.binary(Binary::add, wb, rb);
      if (!lstm_) {
        // The last gate's second bias is inside of the product with the reset gate.
        sum = c_.to.concat(
            {c_.to.slice(sum, 0, 0, 2 * hidden_), c_.to.slice(wb, 0, 2 * hidden_, hidden_)}, 0);
        tensors["recurrent_bias"] = c_.to.slice(rb, 0, 2 * hidden_, hidden_).constant;
      }
      tensors["bias"] = reorder(*sum.constant, hidden_, order, "");
    }
    const Val x = c_.to.slice(c_.in(0), batch_first_ ? 0 : 1, sample, 1);
    std::vector<int> inputs{c_.to.as(x, {rows_, x.shape[2]})};
    const bool has_h = c_.has(5), has_c = lstm_ && c_.has(6);
    const auto add_state = [&](size_t input, bool there) {
      const Val zero = c_.to.known(
          make_constant({hidden_}, std::vector<float>(static_cast<size_t>(hidden_), 0.0f)));
      inputs.push_back(c_.to.as(there ? state(input, d, sample) : zero, {hidden_}));
    };
    if (has_h || has_c) {
      add_state(5, has_h);
      if (lstm_) add_state(6, has_c);
    }
    const bool reverse = backward_ || d == 1;
    Attributes attrs;
    if (reverse) attrs["reverse"] = true;
    const bool cells = lstm_ && c_.node.outputs.size() > 2 && !c_.node.outputs[2].empty();
    if (cells) attrs["cells"] = true;
    if (!reset_after_) attrs["reset_before"] = true;
    const int node = c_.to.add(lstm_ ? "lstm" : "gru", inputs, attrs, tensors);
    const Val all = c_.to.made(node, {rows_, cells ? 2 * hidden_ : hidden_});
    Ran ran;
    ran.rows = cells ? c_.to.slice(all, 1, 0, hidden_) : all;
    const Val last = c_.to.slice(all, 0, reverse ? 0 : rows_ - 1, 1);
    ran.h = cells ? c_.to.slice(last, 1, 0, hidden_) : last;
    if (lstm_) ran.c = cells ? c_.to.slice(last, 1, hidden_, hidden_) : ran.h;
    return ran;
  }

  const Call& c_;
  const bool lstm_;
  int64_t gates_ = 0, directions_ = 1, hidden_ = 0, rows_ = 0, batch_ = 1;
  bool backward_ = false, batch_first_ = false, reset_after_ = true;
};

Vals recurrent(const Call& c) { return Recurrent(c).run(); }

Vals branch(const Call& c) {
  const bool chosen = c.number(0, "cond") != 0;
  const auto* graph = c.find(chosen ? "then_branch" : "else_branch", AttributeSource::Kind::graph);
  if (!graph) c.refuse(Code::format, "a branch is missing");
  return c.run(*graph->graph);
}

}  // namespace

std::vector<OperatorEntry> sequence_operators() {
  return {{"LSTM", recurrent}, {"GRU", recurrent}, {"If", branch}};
}

}  // namespace sluice::bundle::onnx
