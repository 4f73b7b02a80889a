#include "sluice/bundle/import/family.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/import/bricks.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

constexpr int64_t kDefaultContext = 4096, kDefaultBlock = 128;

void refuse_unused(const Model& model, std::vector<std::string>& ignored) {
  for (const std::string& name : model.weights.unused()) {
    const bool known = std::ranges::any_of(model.ignorable, [&](const std::string& pattern) {
      return pattern[0] == '*' ? name.ends_with(std::string_view(pattern).substr(1))
                               : name == pattern;
    });
    if (!known)
      fail(Code::unsupported, "{}: tensor '{}' has no place in a {} as {} has it",
           model.weights.what(), printable(name), model.architecture, model.config.what());
    ignored.push_back(name);
  }
}

}  // namespace

ImportResult finish_import(Model& model, Texts texts, const std::string& output) {
  ImportResult result = std::move(model.result);
  result.architecture = model.architecture;
  refuse_unused(model, result.ignored);
  rename_to_brick_paths(model.builder);
  const Json bricks = describe_bricks(model.builder, result.context);
  if (!bricks.is_null()) model.builder.set_model_json(bricks.dump());
  Task task = std::move(model.task);
  task.kind = result.kind;
  task.stop_tokens = std::move(texts.stop_tokens);
  model.builder.set_task(task);
  result.tokenizer = !texts.tokenizer.empty();
  if (result.tokenizer) model.builder.set_tokenizer(std::move(texts.tokenizer));
  texts.step["architecture"] = result.architecture;
  texts.step["positions"] = result.positions;
  if (model.weights.any_f16()) texts.step["stored"] = "F16";
  model.builder.set_provenance_json(Json::array({texts.step}).dump());
  model.builder.write(output);
  return result;
}

Value Model::linear(const std::string& path, const Value& x, int64_t out, bool bias) {
  std::map<std::string, std::string> tensors{
      {"weight", weights.matrix(builder, path + ".weight", {out, x.shape.back()})}};
  if (biases_as_stored ? weights.has(path + ".bias") : bias)
    tensors["bias"] = weights.vector(builder, path + ".bias", {out});
  return builder.node("linear", path, {x}, rounding(tensors["weight"]), tensors);
}

Attributes Model::rounding(const std::string& weight) const {
  if (options.activations == "f32" || builder.graph().tensors.at(weight).format == "f32") return {};
  return {{"activations", options.activations}};
}

Value Model::norm(const std::string& op, const std::string& path, const Value& x, double eps) {
  const Shape shape{x.shape.back()};
  std::map<std::string, std::string> tensors{
      {"weight", weights.vector(builder, path + ".weight", shape)}};
  if (op == "layer_norm") tensors["bias"] = weights.vector(builder, path + ".bias", shape);
  return builder.node(op, path, {x}, {{"eps", eps}}, tensors);
}

std::string Model::activation_kind(const std::string& field, const std::string& fallback) const {
  const std::string name = config.text_or(field, fallback);
  std::string kind;
  if (name == "silu" || name == "swish") kind = "silu";
  if (name == "gelu") kind = "gelu";
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") kind = "gelu_tanh";
  if (name == "relu") kind = "relu";
  if (kind.empty())
    fail(Code::unsupported, "{}: expected silu, gelu, gelu_new or relu, found '{}'",
         config.field(field), printable(name, 60));
  return kind;
}

Value Model::activation(const std::string& path, const Value& x, const std::string& field,
                        const std::string& fallback) {
  return builder.node("activation", path, {x}, {{"kind", activation_kind(field, fallback)}});
}

Value Model::add(const std::string& path, const Value& a, const Value& b) {
  return builder.node("add", path, {a, b});
}

void Model::finish_embedding(const Value& x) {
  SLUICE_CHECK(pooling);
  Value y = builder.node("pool_rows", "pooling", {x}, {{"kind", pooling->kind}});
  if (pooling->normalize) y = builder.node("l2_normalize", "normalize", {y});
  builder.output(y);
  result.kind = "embed";
}

Model::Lengths Model::lengths(int64_t most) {
  if (options.context > most)
    fail(Code::usage, "--context {}: {} has at most {} positions", options.context, config.what(),
         most);
  Lengths lengths{};
  result.positions = most;
  if (pooling) {  // a text is one run
    const int64_t usual = pooling->max_tokens > 0 ? std::min(pooling->max_tokens, most)
                                                  : std::min(most, kDefaultContext);
    lengths.context = options.context > 0 ? options.context : usual;
    lengths.block = lengths.context;
  } else {
    lengths.context = options.context > 0 ? options.context : std::min(most, kDefaultContext);
    lengths.block = std::min(options.block > 0 ? options.block : kDefaultBlock, lengths.context);
  }
  result.context = lengths.context;
  return lengths;
}

}  // namespace sluice::bundle::hf
