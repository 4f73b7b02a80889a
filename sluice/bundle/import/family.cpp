#include "sluice/bundle/import/family.h"

#include <algorithm>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

constexpr int64_t kDefaultContext = 4096, kDefaultBlock = 128;

}  // namespace

Value Model::linear(const std::string& path, const Value& x, int64_t out, bool bias) {
  std::map<std::string, std::string> tensors{
      {"weight", weights.matrix(builder, path + ".weight", {out, x.shape.back()})}};
  if (bias) tensors["bias"] = weights.vector(builder, path + ".bias", {out});
  return builder.node("linear", path, {x}, {}, tensors);
}

Value Model::norm(const std::string& op, const std::string& path, const Value& x, double eps) {
  const Shape shape{x.shape.back()};
  std::map<std::string, std::string> tensors{
      {"weight", weights.vector(builder, path + ".weight", shape)}};
  if (op == "layer_norm") tensors["bias"] = weights.vector(builder, path + ".bias", shape);
  return builder.node(op, path, {x}, {{"eps", eps}}, tensors);
}

Value Model::activation(const std::string& path, const Value& x, const std::string& field,
                        const std::string& fallback) {
  const std::string name = config.text_or(field, fallback);
  std::string kind;
  if (name == "silu" || name == "swish") kind = "silu";
  if (name == "gelu") kind = "gelu";
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") kind = "gelu_tanh";
  if (name == "relu") kind = "relu";
  if (kind.empty())
    fail(Code::unsupported, "{}: expected silu, gelu, gelu_new or relu, found '{}'",
         config.field(field), printable(name, 60));
  return builder.node("activation", path, {x}, {{"kind", kind}});
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
