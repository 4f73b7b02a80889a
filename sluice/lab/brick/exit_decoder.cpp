#include "sluice/lab/brick/exit_decoder.h"

#include <algorithm>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/containers.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/nested.h"

namespace sluice::lab {
namespace {

constexpr int64_t kDecisionMacs = 10;  // 3 x 2 and 2 x 2, behind the controller
constexpr float kStopLogit = 30;       // of the stop token; all others 0

}  // namespace

ExitDecoder::ExitDecoder(int64_t context, const ExitDecoderOptions& chosen)
    : TextRoot(context), options(chosen) {
  require_range(chosen.stop_threshold, 0.5, 1.0, "stop_threshold", "exit_decoder");
  require_range(chosen.exit_threshold, 0.5, 1.0, "exit_threshold", "exit_decoder");
  require_range(chosen.stop_token, 0, kMaxElements, "stop_token", "exit_decoder");
  head_ = &add_slot("head", nullptr);
  controller_ = &add_slot("controller", nullptr);
  exits_ = &add_slot("exits", nullptr);
}

Json ExitDecoder::attributes() const {
  return {{"context", context_length()},
          {"stop_threshold", options.stop_threshold},
          {"exit_threshold", options.exit_threshold},
          {"stop_token", options.stop_token}};
}

BrickPtr make_exit_decoder(const Json& attributes) {
  const AttributeReader read(attributes, "exit_decoder",
                             {"context", "stop_threshold", "exit_threshold", "stop_token"});
  ExitDecoderOptions options;
  options.stop_threshold = read.number("stop_threshold", 1);
  options.exit_threshold = read.number("exit_threshold", 1);
  options.stop_token = read.integer("stop_token", 0);
  return std::make_shared<ExitDecoder>(read.integer("context"), options);
}

void ExitDecoder::check_slots() const {
  TextRoot::check_slots();
  for (const Slot* slot : {norm_, head_, controller_, exits_}) {
    if (slot->empty()) fail(Code::config, "{}: must be filled", slot->name());
  }
  blocks_->as<Sequential>();
  controller_->as<Linear>();
  const int64_t heads = std::ssize(exits_->as<Sequential>().slots());
  if (layers() < 2 || heads != layers() - 1) {
    fail(Code::config, "exits: expected a head for each of {} layers but the last, found {}",
         layers(), heads);
  }
  for (int64_t i = 0; i < layers(); ++i) block(i);
  if (options.stop_token >= vocabulary()) {
    fail(Code::config, "stop_token of exit_decoder: {} of {} tokens", options.stop_token,
         vocabulary());
  }
}

int64_t ExitDecoder::layers() const { return std::ssize((**blocks_).slots()); }

const TransformerBlock& ExitDecoder::block(int64_t layer) const {
  return (**blocks_).slots()[static_cast<size_t>(layer)]->as<TransformerBlock>();
}

at::Tensor ExitDecoder::logits(int64_t layer, const at::Tensor& h, Context& context) const {
  if (layer == layers() - 1) return head_->forward(norm_->forward(h, context), context);
  const Context::Scope scope(context, exits_->name());
  return (**exits_).slots()[static_cast<size_t>(layer)]->forward(h, context);
}

at::Tensor ExitDecoder::stop_logits(const at::Tensor& like) const {
  at::Tensor row = at::zeros({vocabulary()}, like.options());
  row[options.stop_token] = kStopLogit;
  return row;
}

std::vector<at::Tensor> ExitDecoder::states(const at::Tensor& ids, Context& context) const {
  std::vector<at::Tensor> result;
  at::Tensor x = embedded(ids, context);
  const Context::Scope scope(context, blocks_->name());
  for (const auto& slot : (**blocks_).slots()) {
    x = slot->forward(x, context);
    result.push_back(x);
  }
  return result;
}

ExitDecoder::Decide ExitDecoder::by_controller(Context& context) const {
  return [this, &context](int64_t, const at::Tensor& h, const at::Tensor&) {
    const at::Tensor p = at::softmax(controller_->forward(h, context), -1);
    if (context.meter != nullptr) {
      context.meter->add(join_path(context.path(), "decision"), h.size(0) * kDecisionMacs, 0);
    }
    const auto above = [&](ExitAction action, double threshold) {
      return p.select(-1, static_cast<int64_t>(action)) > static_cast<float>(threshold);
    };
    at::Tensor actions = at::full({h.size(0)}, static_cast<int64_t>(ExitAction::go_on),
                                  h.options().dtype(at::kLong).requires_grad(false));
    actions.masked_fill_(above(ExitAction::exit, options.exit_threshold),
                         static_cast<int64_t>(ExitAction::exit));
    actions.masked_fill_(above(ExitAction::stop, options.stop_threshold),
                         static_cast<int64_t>(ExitAction::stop));
    return actions;
  };
}

ExitDecoder::Result ExitDecoder::run(const at::Tensor& ids, int64_t first, const Decide& decide,
                                     Context& context, bool propagate) const {
  at::Tensor x = embedded(ids, context);
  const int64_t batch = ids.size(0), tokens = ids.size(1), count = batch * tokens;
  const auto whole = ids.options().dtype(at::kLong);
  at::Tensor there = at::arange(count, whole);
  at::Tensor out = stop_logits(x).unsqueeze(0).expand({count, -1}).contiguous();
  Result result{{}, at::zeros({count}, whole), at::zeros({count}, whole.dtype(at::kBool))};
  const auto picked = [](const at::Tensor& rows, const at::Tensor& mask) {
    return rows.index_select(0, mask.nonzero().select(-1, 0));
  };
  for (int64_t layer = 0; layer < layers(); ++layer) {
    {
      const Slot& slot = *(**blocks_).slots()[static_cast<size_t>(layer)];
      const Context::Scope scope(context, blocks_->name());
      if (layer == 0) {
        x = slot.forward(x, context);
      } else {
        const Context::Scope inner(context, slot.name());
        x = block(layer).forward_rows(x, there, context);
      }
    }
    result.layers.index_fill_(0, there, layer + 1);
    const auto rows_of = [&](const at::Tensor& rows) {
      return x.flatten(0, 1).index_select(0, rows);
    };
    if (layer + 1 == layers()) {
      out = out.index_copy(0, there, logits(layer, rows_of(there), context));
      break;
    }
    const at::Tensor late = at::remainder(there, tokens) >= first;
    const at::Tensor asked = picked(there, late);
    if (asked.numel() == 0) continue;
    const at::Tensor h = rows_of(asked);
    const at::Tensor actions = decide(layer, h.detach(), asked);
    const at::Tensor exits = actions == static_cast<int64_t>(ExitAction::exit),
                     stops = actions == static_cast<int64_t>(ExitAction::stop);
    const at::Tensor leaving = picked(asked, exits);
    if (leaving.numel() > 0) {
      out = out.index_copy(0, leaving, logits(layer, rows_of(leaving), context));
    }
    result.stopped.index_fill_(0, picked(asked, stops), true);
    at::Tensor stays = late.logical_not();
    stays.index_put_({late.nonzero().select(-1, 0)}, exits.logical_or(stops).logical_not());
    // The norm of zeros is zeros, and so are its projections.
    if (!propagate)
      x = x.flatten(0, 1).index_fill(0, picked(there, stays.logical_not()), 0.0).view(x.sizes());
    there = picked(there, stays);
    if (there.numel() == 0 && context.meter == nullptr) break;
  }
  result.logits = out.view({batch, tokens, -1});
  result.layers = result.layers.view({batch, tokens});
  result.stopped = result.stopped.view({batch, tokens});
  return result;
}

at::Tensor ExitDecoder::forward(const at::Tensor& ids, Context& context) {
  const bool exits = chosen_size(context, 2, "exit_decoder") == 0;
  return run(ids, exits ? 0 : ids.size(1), by_controller(context), context).logits;
}

Shape ExitDecoder::output_shape(const Shape& input) const {
  const Shape rows = rows_shape(input), output = head_->output_shape(rows);
  for (const auto& slot : (**exits_).slots()) {
    if (slot->output_shape(rows) != output) {
      fail(Code::shape, "exits.{}: it gives {}, the last head {}", slot->name(),
           to_string(slot->output_shape(rows)), to_string(output));
    }
  }
  if (controller_->output_shape(rows) != Shape{rows[0], kExitActions}) {
    fail(Code::shape, "controller: expected {} numbers for each token, found {}", kExitActions,
         to_string(controller_->output_shape(rows)));
  }
  return output;
}

Cost ExitDecoder::cost(const Shape& input) const {
  const Shape rows = rows_shape(input);
  Cost total = rows_cost(input) + head_->cost(rows);
  const Cost controller = controller_->cost(rows);
  for (const auto& slot : (**exits_).slots()) {
    total += slot->cost(rows);
    total.macs += controller.macs + input[0] * kDecisionMacs;
  }
  total.params += controller.params;
  total.weight_bytes += controller.weight_bytes;
  return total;
}

// [N, 2] of rows h: whether the token goes on, and whether it exits here.
bundle::Value ExitDecoder::lower_decision(bundle::Builder& builder, const bundle::Value& h,
                                          int64_t layer, const std::string& path) const {
  const std::string at = join_path(path, fmt::format("decision{}", layer));
  const auto tensor = [&](const char* name, Shape shape, const std::vector<float>& values) {
    const std::string full = join_path(path, fmt::format("decision.{}", name));
    builder.tensor(full, std::move(shape), values);
    return full;
  };
  const std::string picks = tensor("picks", {2, 3}, {1, 0, 0, 0, 1, 0}),
                    thresholds = tensor("thresholds", {2},
                                        {-static_cast<float>(options.stop_threshold),
                                         -static_cast<float>(options.exit_threshold)}),
                    actions = tensor("actions", {2, 2}, {-1, -1, 0, 1}),
                    go_on = tensor("go_on", {2}, {1, 0});
  // One matrix for all layers.
  const auto& controller = controller_->as<Linear>();
  std::map<std::string, std::string> tensors = {{"weight", join_path(path, "controller.weight")}};
  add_tensor(builder, tensors["weight"], controller.weight);
  if (controller.bias.defined()) {
    tensors["bias"] = join_path(path, "controller.bias");
    add_tensor(builder, tensors["bias"], controller.bias);
  }
  const bundle::Value z =
      builder.node("linear", join_path(at, "controller"), {h}, {}, std::move(tensors));
  const bundle::Value p = builder.node("softmax", join_path(at, "softmax"), {z});
  const bundle::Value over = builder.node("linear", join_path(at, "over"), {p}, {},
                                          {{"weight", picks}, {"bias", thresholds}});
  return builder.node("linear", join_path(at, "actions"),
                      {builder.node("threshold", join_path(at, "above"), {over})}, {},
                      {{"weight", actions}, {"bias", go_on}});
}

bundle::Value ExitDecoder::lower(bundle::Builder& builder, const bundle::Value& ids,
                                 const std::string& path) const {
  const auto named = [&](const std::string& name) { return join_path(path, name); };
  const auto table = [&](const char* name, const std::vector<float>& row) {
    // The same row for every token: ids above the vocabulary are 1, and there are none.
    const std::string full = named(fmt::format("{}.row", name));
    builder.tensor(full, {1, static_cast<int64_t>(row.size())}, row);
    return full;
  };
  const bundle::Value none = builder.node("threshold", named("no_ids"), {ids},
                                          {{"value", static_cast<double>(vocabulary())}});
  const auto rows_like = [&](const char* name, const std::vector<float>& row) {
    return builder.node("embedding", named(name), {none}, {}, {{"weight", table(name, row)}});
  };
  const bundle::Value positions = builder.node("positions", named("row_positions"), {ids});
  const bundle::Value nothing = rows_like("nothing", {0, 0}),
                      everything = rows_like("whole", {1, 0});
  std::vector<float> stop(static_cast<size_t>(vocabulary()), 0.0f);
  stop[static_cast<size_t>(options.stop_token)] = kStopLogit;
  bundle::Value out = rows_like("stop", stop);

  const std::string blocks = named(blocks_->name());
  bundle::Value x = lower_embedded(builder, ids, path);
  x = (**blocks_).slots()[0]->lower(builder, x, blocks);
  bundle::Value kept = x, keep;
  for (int64_t layer = 0; layer + 1 < layers(); ++layer) {
    const std::string name = fmt::format("exit{}", layer);
    const auto node = [&](const char* op, const char* what, const std::vector<bundle::Value>& in,
                          bundle::Attributes attributes = {}) {
      return builder.node(op, named(join_path(name, what)), in, std::move(attributes));
    };
    bundle::Value decision = lower_decision(builder, kept, layer, path);
    if (layer > 0) decision = node("scatter_rows", "all", {nothing, decision, keep});
    decision = node("size_switch", "switch", {decision, everything},
                    {{"choice", std::vector<int64_t>{0, 1}}});
    const auto column = [&](const char* what, int64_t at) {
      return node("slice", what, {decision}, {{"start", at}, {"size", int64_t{1}}});
    };
    keep = column("stay", 0);
    const bundle::Value leave = column("leave", 1);
    const bundle::Value leaving = node("compact_rows", "leaving", {x, leave});
    const bundle::Value said = (**exits_).slots()[static_cast<size_t>(layer)]->lower(
        builder, leaving, named(exits_->name()));
    out = node("scatter_rows", "out", {out, said, leave});
    const Slot& slot = *(**blocks_).slots()[static_cast<size_t>(layer + 1)];
    const auto next =
        block(layer + 1).lower_rows(builder, x, keep, positions, join_path(blocks, slot.name()));
    x = next.all;
    kept = next.kept;
  }
  const bundle::Value last = head_->lower(builder, norm_->lower(builder, kept, path), path);
  return builder.node("scatter_rows", named("out"), {out, last, keep});
}

}  // namespace sluice::lab
