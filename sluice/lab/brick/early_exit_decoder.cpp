#include "sluice/lab/brick/early_exit_decoder.h"

#include <algorithm>
#include <set>

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/containers.h"

namespace sluice::lab {
namespace {

constexpr size_t kMostExits = 1024;

/// Nodes that `add` makes get `prefix` before their paths, so that bricks may be lowered again: the
/// tensors stay the same.
template <class Add>
bundle::Value lower_again(bundle::Builder& builder, const std::string& prefix, const Add& add) {
  const size_t before = builder.graph().nodes.size();
  const bundle::Value result = add();
  std::set<std::string> added;
  for (size_t i = before; i < builder.graph().nodes.size(); ++i)
    added.insert(builder.graph().nodes[i].path);
  builder.rename(
      [&](const std::string& path) {
        return added.contains(path) ? join_path(prefix, path) : path;
      },
      [](const std::string& name) { return name; });
  return result;
}

}  // namespace

EarlyExitDecoder::EarlyExitDecoder(int64_t context, std::vector<int64_t> layers,
                                   std::vector<ExitThresholds> sizes)
    : Decoder(context), layers_(std::move(layers)) {
  if (layers_.empty() || layers_.front() < 1 ||
      !std::ranges::is_sorted(layers_, std::less_equal<>()))
    fail(Code::config,
         "layers of early_exit_decoder: expected ascending numbers of layers from 1 on");
  sizes_ = std::move(sizes);
  gate_ = &add_slot("gate", nullptr);
  exits_ = &add_slot("exits", nullptr);
}

Json EarlyExitDecoder::attributes() const {
  Json json = {{"context", context_length()}, {"layers", layers_}};
  if (!sizes_.empty()) json["thresholds"] = exit_sizes_json(sizes_);
  return json;
}

BrickPtr make_early_exit_decoder(const Json& attributes) {
  const AttributeReader read(attributes, "early_exit_decoder", {"context", "layers", "thresholds"});
  return std::make_shared<EarlyExitDecoder>(read.integer("context"),
                                            read.integers("layers", kMostExits),
                                            read_exit_sizes(attributes, "early_exit_decoder"));
}

void EarlyExitDecoder::check_slots() const {
  TextRoot::check_slots();
  blocks_->as<Sequential>();
  if (layers_.back() >= depth())
    fail(Code::config,
         "layers of early_exit_decoder: an exit behind {} layers, of which there are {}; expected "
         "fewer",
         layers_.back(), depth());
  for (int64_t i = layers_.front(); i < depth(); ++i) layer(i).as<TransformerBlock>();
  if (gate_->empty() || gate_->as<ExitGate>().statistic().empty())
    fail(Code::config, "gate: expected an exit_gate with a statistic");
  if (!exits_->empty()) {
    const auto& heads = exits_->as<Sequential>();
    if (std::ssize(heads.slots()) != exit_count())
      fail(Code::config, "exits: expected a head for each of {} exits, found {}", exit_count(),
           heads.slots().size());
  }
  check_exit_sizes(sizes_);
}

int64_t EarlyExitDecoder::depth() const { return std::ssize((**blocks_).slots()); }

const Slot& EarlyExitDecoder::layer(int64_t index) const {
  return *(**blocks_).slots()[static_cast<size_t>(index)];
}

std::string EarlyExitDecoder::exit_name(int64_t index) const {
  return fmt::format("layer{}", layers_.at(static_cast<size_t>(index)));
}

at::Tensor EarlyExitDecoder::normed_logits(const at::Tensor& h, Context& context) const {
  return logits(norm_->empty() ? h : norm_->forward(h, context), context);
}

at::Tensor EarlyExitDecoder::exit_logits(size_t exit, const at::Tensor& h, Context& context) const {
  if (exits_->empty()) return normed_logits(h, context);
  const Context::Scope scope(context, exits_->name());
  return (**exits_).slots()[exit]->forward(h, context);
}

EarlyExitDecoder::Result EarlyExitDecoder::run(const at::Tensor& ids, Context& context) const {
  const ExitThresholds* thresholds = thresholds_for(context, kind());
  at::Tensor x = embedded(ids, context);
  const int64_t count = ids.size(0) * ids.size(1);
  const auto whole = ids.options().dtype(at::kLong);
  at::Tensor there = at::arange(count, whole), out;
  Result result{{}, at::zeros({count}, whole)};
  const auto put = [&](const at::Tensor& said) {
    out = out.defined() ? out.index_copy(0, there, said) : said;
  };
  size_t exit = 0;
  for (int64_t l = 0; l < depth(); ++l) {
    {
      const Context::Scope scope(context, blocks_->name());
      if (there.numel() == count) {
        x = layer(l).forward(x, context);
      } else {
        const Context::Scope inner(context, layer(l).name());
        x = layer(l).as<TransformerBlock>().forward_rows(x, there, context);
      }
    }
    result.layers.index_fill_(0, there, l + 1);
    // Only a meter still wants to know what keys and values of the rest cost.
    if (there.numel() == 0 && context.meter == nullptr) break;
    if (exit == layers_.size() || layers_[exit] != l + 1) continue;
    const std::optional<double> threshold = thresholds ? (*thresholds)[exit] : std::nullopt;
    const size_t index = exit++;
    if (!threshold || context.gates_forced_open || there.numel() == 0) continue;
    const at::Tensor said = exit_logits(index, x.flatten(0, 1).index_select(0, there), context);
    put(said);
    const at::Tensor score = gate_->forward(said, context).select(-1, 0);
    const at::Tensor stays = -score > static_cast<float>(-*threshold);
    there = there.index_select(0, stays.nonzero().select(-1, 0));
  }
  if (!out.defined()) {
    result.logits = normed_logits(x, context);
  } else {
    if (there.numel() > 0) put(normed_logits(x.flatten(0, 1).index_select(0, there), context));
    result.logits = out.view({ids.size(0), ids.size(1), -1});
  }
  result.layers = result.layers.view(ids.sizes());
  return result;
}

at::Tensor EarlyExitDecoder::forward(const at::Tensor& ids, Context& context) {
  return run(ids, context).logits;
}

DepthTable EarlyExitDecoder::exit_table(const at::Tensor& ids, Context& context) const {
  at::Tensor x = embedded(ids, context);
  std::vector<at::Tensor> scores, choices;
  for (int64_t l = 0; l < depth(); ++l) {
    {
      const Context::Scope scope(context, blocks_->name());
      x = layer(l).forward(x, context);
    }
    const size_t exit = scores.size();
    if (exit == layers_.size() || layers_[exit] != l + 1) continue;
    const at::Tensor said = exit_logits(exit, x.flatten(0, 1), context);
    scores.push_back(gate_->forward(said, context).select(-1, 0));
    choices.push_back(said.argmax(-1));
  }
  const at::Tensor last = normed_logits(x.flatten(0, 1), context);
  scores.push_back(at::zeros_like(scores.back()));
  choices.push_back(last.argmax(-1));
  return {at::stack(scores, 1), at::stack(choices, 1)};
}

Shape EarlyExitDecoder::output_shape(const Shape& input) const {
  const Shape output = Decoder::output_shape(input);
  for (size_t i = 0; !exits_->empty() && i < layers_.size(); ++i) {
    const Slot& head = *(**exits_).slots()[i];
    if (const Shape found = head.output_shape(rows_shape(input)); found != output)
      fail(Code::shape, "exits.{}: it gives {}, the last head {}", head.name(), to_string(found),
           to_string(output));
  }
  gate_->output_shape({output.back()});
  return output;
}

Cost EarlyExitDecoder::cost(const Shape& input) const {
  Cost total = Decoder::cost(input);
  const Shape rows = rows_shape(input);
  Cost last = total;  // of the head alone
  last.macs -= rows_cost(input).macs;
  int64_t most = 0;
  std::vector<ExitThresholds> sizes = sizes_;
  if (sizes.empty()) sizes.emplace_back(layers_.size());
  for (const ExitThresholds& size : sizes) {
    int64_t macs = 0;
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (!size[i]) continue;
      macs += exits_->empty() ? last.macs : (**exits_).slots()[i]->cost(rows).macs;
    }
    most = std::max(most, macs);
  }
  total.macs += most;
  for (size_t i = 0; !exits_->empty() && i < layers_.size(); ++i) {
    const Cost own = (**exits_).slots()[i]->cost(rows);
    total.params += own.params;
    total.weight_bytes += own.weight_bytes;
  }
  return total;
}

std::vector<double> EarlyExitDecoder::exit_costs(const Shape& input,
                                                 const std::vector<bool>& open) const {
  const Shape rows = rows_shape(input);
  // Keys and values of tokens that left, layer by layer; from there to the end.
  std::vector<double> behind(static_cast<size_t>(depth()) + 1, 0.0);
  for (int64_t l = depth(); l-- > layers_.front();) {
    const Slot& attention = layer(l)->slot("attn");
    double own = 0;
    for (const char* name : {"k", "v"})
      own += static_cast<double>(attention->slot(name).cost(rows).macs);
    behind[static_cast<size_t>(l)] = behind[static_cast<size_t>(l) + 1] + own;
  }
  const double head = static_cast<double>(Decoder::cost(input).macs - rows_cost(input).macs);
  double so_far = static_cast<double>(rows_cost(input).macs - blocks_->cost(rows).macs);
  std::vector<double> result;
  for (int64_t l = 0; l < depth(); ++l) {
    so_far += static_cast<double>(layer(l).cost(rows).macs);
    const size_t exit = result.size();
    if (exit == layers_.size() || layers_[exit] != l + 1) continue;
    if (open.at(exit))
      so_far +=
          exits_->empty() ? head : static_cast<double>((**exits_).slots()[exit]->cost(rows).macs);
    result.push_back(so_far + behind[static_cast<size_t>(l) + 1]);
  }
  result.push_back(so_far + head);
  for (double& each : result) each /= static_cast<double>(input[0]);
  return result;
}

bundle::Value EarlyExitDecoder::lower_exit(bundle::Builder& builder, const bundle::Value& h,
                                           int64_t exit, const std::string& path) const {
  if (!exits_->empty())
    return (**exits_).slots()[static_cast<size_t>(exit)]->lower(builder, h,
                                                                join_path(path, exits_->name()));
  return lower_again(builder, exit_name(exit), [&] {
    return lower_logits(builder, norm_->empty() ? h : norm_->lower(builder, h, path), path);
  });
}

bundle::Value EarlyExitDecoder::lower(bundle::Builder& builder, const bundle::Value& ids,
                                      const std::string& path) const {
  if (sizes_.empty()) return Decoder::lower(builder, ids, path);
  const auto named = [&](const std::string& name) { return join_path(path, name); };
  // The same row for every token, whatever it is: ids above the vocabulary are 1, and there are
  // none.
  const bundle::Value none = builder.node("threshold", named("no_ids"), {ids},
                                          {{"value", static_cast<double>(vocabulary())}});
  const auto rows_like = [&](const char* name, const std::vector<float>& row) {
    const std::string full = named(fmt::format("{}.row", name));
    builder.tensor(full, {1, std::ssize(row)}, row);
    return builder.node("embedding", named(name), {none}, {}, {{"weight", full}});
  };
  const std::string minus = named("gate.minus");
  builder.tensor(minus, {1}, std::vector<float>{-1.0f});
  const bundle::Value positions = builder.node("positions", named("row_positions"), {ids}),
                      leaves = rows_like("leaves", {0}), stays = rows_like("stays", {1});
  bundle::Value out = rows_like("no_logits", std::vector<float>(static_cast<size_t>(vocabulary()))),
                keep;

  const std::string blocks = named(blocks_->name());
  bundle::Value x = lower_embedded(builder, ids, path), kept = x;
  size_t exit = 0;
  for (int64_t l = 0; l < depth(); ++l) {
    if (exit == 0) {
      kept = x = layer(l).lower(builder, x, blocks);
    } else {
      const auto next = layer(l).as<TransformerBlock>().lower_rows(
          builder, x, keep, positions, join_path(blocks, layer(l).name()));
      x = next.all;
      kept = next.kept;
    }
    if (exit == layers_.size() || layers_[exit] != l + 1) continue;
    const std::string name = exit_name(static_cast<int64_t>(exit));
    const auto node = [&](const char* op, const char* what, const std::vector<bundle::Value>& in,
                          bundle::Attributes attributes = {},
                          std::map<std::string, std::string> tensors = {}) {
      return builder.node(op, named(join_path(name, what)), in, std::move(attributes),
                          std::move(tensors));
    };
    const auto unless_closed = [&](const char* what, const bundle::Value& value,
                                   const bundle::Value& otherwise) {
      return node("size_switch", what, {value, otherwise}, {{"choice", closed_list(exit)}});
    };
    const bundle::Value said = lower_exit(builder, kept, static_cast<int64_t>(exit), path);
    const bundle::Value score = node("prediction_score", "score", {said},
                                     {{"statistic", gate_->as<ExitGate>().statistic()}});
    const bundle::Value doubt = node("scale", "doubt", {score}, {}, {{"scale", minus}});
    bundle::Value goes_on =
        node("threshold", "goes_on", {doubt}, {{"value", threshold_list(exit)}});
    if (exit > 0) goes_on = node("scatter_rows", "goes_on_of_all", {leaves, goes_on, keep});
    const bundle::Value before = exit > 0 ? keep : stays;
    // Of all rows: those that an earlier exit let go leave here, too.
    const bundle::Value said_of_all =
        exit > 0 ? node("scatter_rows", "logits", {out, said, keep}) : said;
    out = unless_closed("out", said_of_all, out);
    keep = unless_closed("keep", goes_on, before);
    ++exit;
  }
  // Where exits are open the last head runs for the tokens that are left; in the last size it is
  // behind everything that looks at several rows, so that runs which want the last row compute no
  // other.
  const bundle::Value left = lower_again(builder, "left", [&] {
    return lower_logits(builder, norm_->empty() ? kept : norm_->lower(builder, kept, path), path);
  });
  out = builder.node("scatter_rows", named("left.logits"), {out, left, keep});
  const bundle::Value last =
      lower_logits(builder, norm_->empty() ? x : norm_->lower(builder, x, path), path);
  std::vector<int64_t> choice;
  for (const ExitThresholds& size : sizes_)
    choice.push_back(std::ranges::none_of(size, [](const auto& t) { return t.has_value(); }) ? 1
                                                                                             : 0);
  return builder.node("size_switch", named("out"), {out, last}, {{"choice", choice}});
}

}  // namespace sluice::lab
