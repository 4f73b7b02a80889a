#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/layers.h"
#include "sluice/lab/brick/spark.h"
#include "sluice/lab/brick/steps.h"
#include "sluice/lab/gate/selector.h"

namespace sluice::lab {

SparkFfn::SparkFfn(const SparkFfnOptions& options) : options_(options) {
  require_range(options.width, 2, kMaxChannels, "width", "spark_ffn");
  require_range(options.split, 1, options.width - 1, "split", "spark_ffn");
  require_range(options.neurons, 2, kMaxChannels, "neurons", "spark_ffn");
  require_range(options.keep, 1e-6, 1 - 1e-6, "keep", "spark_ffn");
  require_elements({options.neurons, options.width}, "down", "spark_ffn");
  const at::NoGradGuard no_grad;
  if (activate(options.activation, at::zeros({1})).item<float>() != 0) {
    fail(Code::config, "activation of spark_ffn: {} is not 0 at 0, where neurons sleep",
         options.activation);
  }
  const auto matrix = [&](const char* name, int64_t columns) {
    return register_parameter(name, initial_uniform({options.neurons, columns}, columns));
  };
  gate = matrix("gate", options.split);
  up = matrix("up", options.width - options.split);
  down = register_parameter("down",
                            initial_uniform({options.neurons, options.width}, options.neurons));
}

Json SparkFfn::attributes() const {
  return {{"width", options_.width},
          {"split", options_.split},
          {"neurons", options_.neurons},
          {"keep", options_.keep},
          {"activation", options_.activation}};
}

BrickPtr make_spark_ffn(const Json& attributes) {
  const AttributeReader read(attributes, "spark_ffn",
                             {"width", "split", "neurons", "keep", "activation"});
  SparkFfnOptions options;
  options.width = read.integer("width");
  options.split = read.integer("split");
  options.neurons = read.integer("neurons");
  options.keep = read.number("keep", options.keep);
  options.activation = read.text("activation", options.activation);
  return std::make_shared<SparkFfn>(options);
}

at::Tensor SparkFfn::awake(const at::Tensor& scores, Context&) const {
  return at::relu(scores - statistical_bound(scores, options_.keep));
}

at::Tensor SparkFfn::forward(const at::Tensor& x, Context& context) {
  const int64_t split = options_.split, rest = options_.width - split;
  const at::Tensor scores = at::linear(x.narrow(-1, 0, split), gate);
  const at::Tensor shifted = awake(scores, context);
  const at::Tensor h =
      activate(options_.activation, shifted) * at::linear(x.narrow(-1, split, rest), up);
  const at::Tensor y = at::matmul(h, down);
  if (context.meter != nullptr) {
    const at::Tensor kept = shifted > 0;
    const int64_t pairs = kept.sum().item<int64_t>();
    const int64_t read = kept.reshape({-1, options_.neurons}).any(0).sum().item<int64_t>();
    const int64_t rows = scores.numel() / options_.neurons;
    context.meter->add(
        context.path(), rows * options_.neurons * split + pairs * (rest + options_.width),
        tensor_bytes(x) + tensor_bytes(y) + tensor_bytes(gate) +
            read * (rest + options_.width) * static_cast<int64_t>(down.element_size()));
  }
  return y;
}

Shape SparkFfn::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != options_.width) {
    fail(Code::shape, "spark_ffn: expected [.., {}], found {}", options_.width, to_string(input));
  }
  return input;
}

Cost SparkFfn::cost(const Shape& input) const {
  const int64_t rows = numel(output_shape(input)) / options_.width;
  const int64_t params = 2 * options_.neurons * options_.width;
  return {checked_mul(rows, params, "MACs of spark_ffn"), params, 4 * params};
}

bundle::Value SparkFfn::lower(bundle::Builder& builder, const bundle::Value& x,
                              const std::string& path) const {
  std::map<std::string, std::string> tensors;
  for (const auto& [role, tensor] : {std::pair{"gate", gate}, {"up", up}, {"down", down}}) {
    tensors[role] = join_path(path, role);
    add_tensor(builder, tensors[role], tensor);
  }
  return builder.node("sparse_ffn", node_path_of(path, *this), {x},
                      {{"activation", options_.activation},
                       {"select", std::string("statistical")},
                       {"keep", options_.keep},
                       {"soft", true},
                       {"split", options_.split}},
                      std::move(tensors));
}

}  // namespace sluice::lab
