#include "sluice/lab/brick/transformer.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attention.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/embedding.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/gate/gate.h"

namespace sluice::lab {

at::Tensor through(const Slot& slot, const at::Tensor& x, Context& context) {
  return slot.empty() ? x : slot.forward(x, context);
}

namespace {

constexpr int64_t kMaxContext = int64_t{1} << 24;

Shape shape_through(const Slot& slot, const Shape& input) {
  return slot.empty() ? input : slot.output_shape(input);
}

Cost cost_through(const Slot& slot, const Shape& input) {
  return slot.empty() ? Cost{} : slot.cost(input);
}

bundle::Value lower_through(const Slot& slot, bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) {
  return slot.empty() ? x : slot.lower(builder, x, path);
}

// The same of slots that need not be there.
at::Tensor through(const Slot* slot, const at::Tensor& x, Context& context) {
  return slot == nullptr ? x : through(*slot, x, context);
}
Shape shape_through(const Slot* slot, const Shape& input) {
  return slot == nullptr ? input : shape_through(*slot, input);
}
Cost cost_through(const Slot* slot, const Shape& input) {
  return slot == nullptr ? Cost{} : cost_through(*slot, input);
}
bundle::Value lower_through(const Slot* slot, bundle::Builder& builder, const bundle::Value& x,
                            const std::string& path) {
  return slot == nullptr ? x : lower_through(*slot, builder, x, path);
}

}  // namespace

const Slot* branch_gate(const Brick& body) {
  for (const char* name : {"neuron_gate", "head_gate"}) {
    if (body.has_slot(name) && decides_by_input(body.slot(name))) return &body.slot(name);
  }
  return nullptr;
}

// ---- TransformerBlock ----

TransformerBlock::TransformerBlock(bool post_norm) : post_norm_(post_norm) {
  const auto branch = [this](const char* norm, const char* body, const char* add) {
    Slot* first = &add_slot(norm, nullptr);
    return Branch{first, &add_slot(body, nullptr), nullptr, add};
  };
  branches_[0] = branch("attn_norm", "attn", "add_attn");
  branches_[1] = branch("ffn_norm", "ffn", "add_ffn");
}

Slot& TransformerBlock::turn(const std::string& branch) {
  for (Branch& each : branches_) {
    if (each.body->name() != branch) continue;
    if (each.turn == nullptr) each.turn = &add_slot(branch + "_turn", nullptr);
    return *each.turn;
  }
  fail(Code::usage, "transformer_block: no branch '{}'; there are attn and ffn",
       branch.substr(0, 60));
}

Slot& TransformerBlock::token_gate() {
  if (token_gate_ == nullptr) token_gate_ = &add_slot("token_gate", nullptr);
  return *token_gate_;
}

void TransformerBlock::adopt(const std::string& name, BrickPtr child) {
  if (name == "token_gate") token_gate();
  for (const char* branch : {"attn", "ffn"}) {
    if (name == std::string(branch) + "_turn") turn(branch);
  }
  Brick::adopt(name, std::move(child));
}

void TransformerBlock::check_slots() const {
  for (const Branch& branch : branches_) {
    if (post_norm_ && branch.turn != nullptr && !branch.turn->empty()) {
      fail(Code::config, "{}: a block with its norms behind the branches cannot turn its stream",
           branch.turn->name());
    }
  }
  if (!gated()) return;
  if (const int64_t units = token_gate_->as<GateBrick>().units(); units != 1) {
    fail(Code::config, "token_gate: expected 1 unit, found {}", units);
  }
  if (decides_by_input(*token_gate_)) require_rows();
}

Json TransformerBlock::attributes() const { return {{"norm", post_norm_ ? "post" : "pre"}}; }

BrickPtr make_transformer_block(const Json& attributes) {
  const AttributeReader read(attributes, "transformer_block", {"norm"});
  const std::string norm = read.text("norm", "pre");
  if (norm != "pre" && norm != "post") {
    fail(Code::config, "norm of transformer_block: expected pre or post, found '{}'",
         norm.substr(0, 60));
  }
  return std::make_shared<TransformerBlock>(norm == "post");
}

at::Tensor TransformerBlock::forward(const at::Tensor& x, Context& context) {
  return gated() ? forward_gated(x, context) : forward_all(x, {}, context);
}

at::Tensor TransformerBlock::forward_all(const at::Tensor& x, const at::Tensor& in,
                                         Context& context) const {
  at::Tensor y = x;
  for (const Branch& branch : branches_) {
    if (post_norm_) {
      if (!branch.body->empty()) y = y + branch.body->forward(y, context);
      y = through(*branch.norm, y, context);
    } else {
      const at::Tensor beside = through(branch.turn, y, context);
      if (branch.body->empty()) {
        y = beside;
        continue;
      }
      const bool known = in.defined() && &branch == &branches_[0];
      y = beside + branch.body->forward(known ? in : through(*branch.norm, y, context), context);
    }
  }
  return y;
}

Shape TransformerBlock::output_shape(const Shape& input) const {
  for (const Branch& branch : branches_) {
    shape_through(*branch.norm, input);
    if (shape_through(branch.turn, input) != input) {
      fail(Code::shape, "transformer_block: {} makes {} of {}; expected the same",
           branch.turn->name(), to_string(branch.turn->output_shape(input)), to_string(input));
    }
    if (branch.body->empty()) continue;
    const Shape output = branch.body->output_shape(input);
    if (output != input) {
      fail(Code::shape, "transformer_block: {} makes {} of {}; they are added", branch.body->name(),
           to_string(output), to_string(input));
    }
  }
  return input;
}

Cost TransformerBlock::cost(const Shape& input) const {
  Cost total;
  for (const Branch& branch : branches_) {
    total += cost_through(*branch.body, input) + cost_through(branch.turn, input);
    if (post_norm_ || !branch.body->empty()) total += cost_through(*branch.norm, input);
  }
  return total + cost_through(token_gate_, input);
}

bundle::Value TransformerBlock::lower(bundle::Builder& builder, const bundle::Value& x,
                                      const std::string& path) const {
  if (!gated()) return lower_all(builder, x, path);
  if (const auto* mask = dynamic_cast<const ConstantMask*>(token_gate_->get().get())) {
    if (mask->mask.item<float>() != 0) return lower_all(builder, x, path);
    return x;
  }
  const bundle::Value in = post_norm_ ? x : lower_through(*branches_[0].norm, builder, x, path);
  const bundle::Value keep = token_gate_->lower(builder, in, path);
  const bool turns = branches_[0].body->as<Attention>().options().rope.dims > 0;
  const bundle::Value positions =
      turns ? builder.node("positions", join_path(path, "positions"), {x}) : x;
  return lower_kept(builder, x, in, keep, positions, path).all;
}

bundle::Value TransformerBlock::lower_all(bundle::Builder& builder, const bundle::Value& x,
                                          const std::string& path) const {
  bundle::Value y = x;
  for (const Branch& branch : branches_) {
    const bundle::Value beside = lower_through(branch.turn, builder, y, path);
    if (!branch.body->empty()) {
      const bundle::Value in = post_norm_ ? y : lower_through(*branch.norm, builder, y, path);
      y = builder.node("add", join_path(path, branch.add),
                       {beside, branch.body->lower(builder, in, path)});
    } else {
      y = beside;
    }
    if (post_norm_) y = lower_through(*branch.norm, builder, y, path);
  }
  return y;
}

std::vector<NormReaders> TransformerBlock::norm_readers() const {
  if (post_norm_) return {};  // what comes out goes on along the stream, too
  std::vector<NormReaders> result;
  for (const Branch& branch : branches_) {
    if (branch.norm->empty() || branch.body->empty() || branch_gate(**branch.body) != nullptr)
      continue;  // a gate reads it, too, and is no layer to fold into
    if (&branch == &branches_[0] && gated() && decides_by_input(*token_gate_)) continue;
    NormReaders entry{branch.norm->name(), {}};
    for (const char* name : {"q", "k", "v", "gate", "up"}) {
      const Brick& body = **branch.body;
      if (body.has_slot(name) && !body.slot(name).empty()) {
        entry.readers.push_back(join_path(branch.body->name(), name));
      }
    }
    const std::string kind = (**branch.body).kind();
    if (kind == "attention" || kind == "ffn") result.push_back(std::move(entry));
  }
  return result;
}

// ---- TextRoot ----

TextRoot::TextRoot(int64_t context)
    : context_(require_range(context, 1, kMaxContext, "context", "text model")) {
  embed_ = &add_slot("embed", nullptr);
  positions_ = &add_slot("positions", nullptr);
  embed_norm_ = &add_slot("embed_norm", nullptr);
  blocks_ = &add_slot("blocks", nullptr);
  norm_ = &add_slot("norm", nullptr);
}

int64_t TextRoot::vocabulary() const { return embed_->as<TokenTable>().rows(); }

void TextRoot::check_slots() const {
  if (embed_->empty()) fail(Code::config, "embed: must be filled");
  if (blocks_->empty()) fail(Code::config, "blocks: must be filled");
  embed_->as<TokenTable>();
  if (!positions_->empty() && positions_->as<TokenTable>().rows() < context_) {
    fail(Code::config, "positions: expected a row for each of {} positions, found {}", context_,
         positions_->as<TokenTable>().rows());
  }
}

at::Tensor TextRoot::embedded(const at::Tensor& ids, Context& context) const {
  if (ids.dim() != 2) {
    fail(Code::shape, "{}: expected token ids [batch, T], found {}", kind(),
         to_string(ids.sizes()));
  }
  if (ids.size(1) > context_) {
    fail(Code::limit, "{}: {} tokens; its context is {}", kind(), ids.size(1), context_);
  }
  at::Tensor x = embed_->forward(ids, context);
  if (!positions_->empty()) {
    x = x + positions_->forward(
                at::arange(ids.size(1), ids.options().dtype(at::kLong)).unsqueeze(0), context);
  }
  return through(*embed_norm_, x, context);
}

at::Tensor TextRoot::rows(const at::Tensor& ids, Context& context) const {
  return through(*norm_, blocks_->forward(embedded(ids, context), context), context);
}

Shape TextRoot::embedded_shape(const Shape& input) const {
  const Shape x = embed_->output_shape(input);
  if (input[0] > context_) {
    fail(Code::shape, "{}: runs of {} tokens in a context of {}", kind(), input[0], context_);
  }
  if (!positions_->empty() && positions_->output_shape(input) != x) {
    fail(Code::shape, "{}: positions give {}, embed {}", kind(),
         to_string(positions_->output_shape(input)), to_string(x));
  }
  return shape_through(*embed_norm_, x);
}

Shape TextRoot::rows_shape(const Shape& input) const {
  return shape_through(*norm_, blocks_->output_shape(embedded_shape(input)));
}

Cost TextRoot::embedded_cost(const Shape& input) const {
  return embed_->cost(input) + cost_through(*positions_, input) +
         cost_through(*embed_norm_, embed_->output_shape(input));
}

Cost TextRoot::rows_cost(const Shape& input) const {
  const Shape x = embedded_shape(input);
  return embedded_cost(input) + blocks_->cost(x) + cost_through(*norm_, blocks_->output_shape(x));
}

at::Tensor TextRoot::finish(const at::Tensor& x, Context& context) const {
  return through(*norm_, x, context);
}
Shape TextRoot::finish_shape(const Shape& x) const { return shape_through(*norm_, x); }
Cost TextRoot::finish_cost(const Shape& x) const { return cost_through(*norm_, x); }
bundle::Value TextRoot::lower_finish(bundle::Builder& builder, const bundle::Value& x,
                                     const std::string& path) const {
  return lower_through(*norm_, builder, x, path);
}

at::Tensor TextRoot::forward(const at::Tensor& ids, Context& context) {
  return finish(blocks_->forward(embedded(ids, context), context), context);
}

Shape TextRoot::output_shape(const Shape& input) const {
  return finish_shape(blocks_->output_shape(embedded_shape(input)));
}

Cost TextRoot::cost(const Shape& input) const {
  const Shape x = embedded_shape(input);
  return embedded_cost(input) + blocks_->cost(x) + finish_cost(blocks_->output_shape(x));
}

bundle::Value TextRoot::lower(bundle::Builder& builder, const bundle::Value& ids,
                              const std::string& path) const {
  return lower_finish(builder, blocks_->lower(builder, lower_embedded(builder, ids, path), path),
                      path);
}

bundle::Value TextRoot::lower_embedded(bundle::Builder& builder, const bundle::Value& ids,
                                       const std::string& path) const {
  bundle::Value x = embed_->lower(builder, ids, path);
  if (!positions_->empty()) {
    const bundle::Value at = builder.node("positions", join_path(path, "positions.index"), {ids});
    x = builder.node("add", join_path(path, "add_positions"),
                     {x, positions_->lower(builder, at, path)});
  }
  return lower_through(*embed_norm_, builder, x, path);
}

// ---- Decoder ----

Decoder::Decoder(int64_t context) : TextRoot(context) { head_ = &add_slot("head", nullptr); }

Json Decoder::attributes() const { return {{"context", context_length()}}; }

BrickPtr make_decoder(const Json& attributes) {
  const AttributeReader read(attributes, "decoder", {"context"});
  return std::make_shared<Decoder>(read.integer("context"));
}

at::Tensor Decoder::finish(const at::Tensor& x, Context& context) const {
  return logits(TextRoot::finish(x, context), context);
}

at::Tensor Decoder::logits(const at::Tensor& rows, Context& context) const {
  if (!head_->empty()) return head_->forward(rows, context);
  const auto& table = embed_->as<TokenTable>();
  at::Tensor y = at::linear(rows, table.values());
  if (context.meter != nullptr) {
    context.meter->add(join_path(context.path(), "head"), y.numel() * table.width(),
                       tensor_bytes(rows) + table.weight_bytes() + tensor_bytes(y));
  }
  return y;
}

Shape Decoder::finish_shape(const Shape& x) const {
  const Shape rows = TextRoot::finish_shape(x);
  if (!head_->empty()) return head_->output_shape(rows);
  const auto& table = embed_->as<TokenTable>();
  if (rows.back() != table.width()) {
    fail(Code::shape, "decoder: a tied head of width {} on rows of {}", table.width(), rows.back());
  }
  return {rows[0], table.rows()};
}

Cost Decoder::finish_cost(const Shape& x) const {
  Cost total = TextRoot::finish_cost(x);
  if (!head_->empty()) return total + head_->cost(TextRoot::finish_shape(x));
  const auto& table = embed_->as<TokenTable>();
  total.macs +=
      checked_mul(x[0], checked_mul(table.rows(), table.width(), "MACs of head"), "MACs of head");
  return total;
}

std::vector<NormReaders> Decoder::norm_readers() const {
  if (tied() || norm_->empty()) return {};  // embeddings are read without the norm
  return {{norm_->name(), {head_->name()}}};
}

bundle::Value Decoder::lower_finish(bundle::Builder& builder, const bundle::Value& x,
                                    const std::string& path) const {
  return lower_logits(builder, TextRoot::lower_finish(builder, x, path), path);
}

bundle::Value Decoder::lower_logits(bundle::Builder& builder, const bundle::Value& rows,
                                    const std::string& path) const {
  if (!head_->empty()) return head_->lower(builder, rows, path);
  const std::string weight =
      embed_->as<TokenTable>().add_weight(builder, join_path(path, embed_->name()));
  return builder.node("linear", join_path(path, "head"), {rows}, {}, {{"weight", weight}});
}

// ---- TextEncoder ----

TextEncoder::TextEncoder(int64_t context, const std::string& pooling, bool normalize)
    : TextRoot(context), pooling_(pooling), normalize_(normalize) {
  if (pooling != "mean" && pooling != "first" && pooling != "last") {
    fail(Code::config, "pooling of text_encoder: expected mean, first or last, found '{}'",
         pooling.substr(0, 60));
  }
}

Json TextEncoder::attributes() const {
  return {{"context", context_length()}, {"pooling", pooling_}, {"normalize", normalize_}};
}

BrickPtr make_text_encoder(const Json& attributes) {
  const AttributeReader read(attributes, "text_encoder", {"context", "pooling", "normalize"});
  return std::make_shared<TextEncoder>(read.integer("context"), read.text("pooling"),
                                       read.boolean("normalize", false));
}

at::Tensor TextEncoder::finish(const at::Tensor& given, Context& context) const {
  const at::Tensor x = TextRoot::finish(given, context);
  const int64_t tokens = x.size(1);
  at::Tensor y;
  if (pooling_ == "first") {
    y = x.select(1, 0);
  } else if (!context.lengths.defined()) {
    y = pooling_ == "mean" ? x.mean(1) : x.select(1, tokens - 1);
  } else {
    const at::Tensor lengths = context.lengths.to(x.device());
    const at::Tensor index = at::arange(tokens, lengths.options()).unsqueeze(0);
    const at::Tensor taken =
        pooling_ == "mean" ? index < lengths.unsqueeze(1) : index == lengths.unsqueeze(1) - 1;
    const at::Tensor weights = taken.to(x.scalar_type()).unsqueeze(-1);
    y = (x * weights).sum(1) / weights.sum(1).clamp_min(1);
  }
  if (!normalize_) return y;
  return y / y.norm(2, -1, /*keepdim=*/true).clamp_min(1e-12);
}

Shape TextEncoder::finish_shape(const Shape& x) const { return {TextRoot::finish_shape(x).back()}; }

bundle::Value TextEncoder::lower_finish(bundle::Builder& builder, const bundle::Value& x,
                                        const std::string& path) const {
  bundle::Value y = builder.node("pool_rows", join_path(path, "pooling"),
                                 {TextRoot::lower_finish(builder, x, path)}, {{"kind", pooling_}});
  if (normalize_) y = builder.node("l2_normalize", join_path(path, "normalize"), {y});
  return y;
}

}  // namespace sluice::lab
