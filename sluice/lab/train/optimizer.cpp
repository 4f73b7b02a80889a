#include "sluice/lab/train/optimizer.h"

#include <torch/torch.h>
#include <sstream>

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"

namespace sluice::lab {
namespace {

enum class Kind { sgd, adam, adamw };

Kind kind_of(const OptimizerOptions& options) {
  if (options.kind == "sgd") return Kind::sgd;
  if (options.kind == "adam") return Kind::adam;
  if (options.kind == "adamw") return Kind::adamw;
  const std::string near = nearest_name(options.kind, {"sgd", "adam", "adamw"});
  fail(Code::config, "optimizer '{}': known are sgd, adam, adamw{}", options.kind,
       near.empty() ? "" : "; did you mean " + near + "?");
}

using State = std::remove_reference_t<decltype(std::declval<torch::optim::Optimizer>().state())>;

/// LibTorch 1.13 keys the state by the tensor's address as text, 2.x by the address.
template <class Key>
Key key_of(const at::Tensor& parameter) {
  if constexpr (std::is_same_v<Key, std::string>) {
    std::ostringstream text;
    text << parameter.unsafeGetTensorImpl();
    return text.str();
  } else {
    return static_cast<Key>(parameter.unsafeGetTensorImpl());
  }
}
State::key_type key(const at::Tensor& parameter) { return key_of<State::key_type>(parameter); }

template <class ParamState, class Map, class Key>
ParamState* find_state(Map& state, const Key& key) {
  const auto found = state.find(key);
  return found == state.end() ? nullptr : static_cast<ParamState*>(found->second.get());
}

template <class ParamState>
void save_adam(std::map<std::string, at::Tensor>& out, const std::string& name,
               const ParamState& state) {
  out[name + ".exp_avg"] = state.exp_avg();
  out[name + ".exp_avg_sq"] = state.exp_avg_sq();
  out[name + ".step"] = torch::tensor(state.step(), torch::kInt64);
}

}  // namespace

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const OptimizerOptions& options,
                                                        const NamedParameters& parameters) {
  const Kind kind = kind_of(options);
  if (!(options.rate > 0)) fail(Code::config, "learning rate {}: must be > 0", options.rate);
  if (!(options.weight_decay >= 0))
    fail(Code::config, "weight decay {}: must be >= 0", options.weight_decay);
  if (!(options.momentum >= 0 && options.momentum < 1))
    fail(Code::config, "momentum {}: must be in [0, 1)", options.momentum);
  std::vector<at::Tensor> decayed, plain;
  for (const auto& [name, tensor] : parameters)
    (tensor.dim() >= 2 || options.decay_all ? decayed : plain).push_back(tensor);
  if (parameters.empty()) fail(Code::config, "the model has no parameters to train");

  auto build = [&]<class Optimizer, class Options>(Options defaults) {
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (auto* part : {&decayed, &plain}) {
      if (part->empty()) continue;
      auto own = std::make_unique<Options>(defaults);
      own->weight_decay(part == &decayed ? options.weight_decay : 0);
      groups.emplace_back(*part, std::move(own));
    }
    return std::unique_ptr<torch::optim::Optimizer>(new Optimizer(std::move(groups), defaults));
  };
  switch (kind) {
    case Kind::sgd:
      return build.operator()<torch::optim::SGD>(torch::optim::SGDOptions(options.rate)
                                                     .momentum(options.momentum)
                                                     .nesterov(options.momentum > 0));
    case Kind::adam:
      return build.operator()<torch::optim::Adam>(torch::optim::AdamOptions(options.rate));
    default:
      return build.operator()<torch::optim::AdamW>(torch::optim::AdamWOptions(options.rate));
  }
}

void set_rate(torch::optim::Optimizer& optimizer, double rate) {
  for (auto& group : optimizer.param_groups()) group.options().set_lr(rate);
}

std::map<std::string, at::Tensor> optimizer_state(const torch::optim::Optimizer& optimizer,
                                                  const OptimizerOptions& options,
                                                  const NamedParameters& parameters) {
  std::map<std::string, at::Tensor> out;
  for (const auto& [name, parameter] : parameters) {
    const auto& state = optimizer.state();
    switch (kind_of(options)) {
      case Kind::sgd:
        if (auto* s = find_state<torch::optim::SGDParamState>(state, key(parameter));
            s != nullptr && s->momentum_buffer().defined())
          out[name + ".momentum_buffer"] = s->momentum_buffer();
        break;
      case Kind::adam:
        if (auto* s = find_state<torch::optim::AdamParamState>(state, key(parameter)))
          save_adam(out, name, *s);
        break;
      case Kind::adamw:
        if (auto* s = find_state<torch::optim::AdamWParamState>(state, key(parameter)))
          save_adam(out, name, *s);
        break;
    }
  }
  return out;
}

void load_optimizer_state(torch::optim::Optimizer& optimizer, const OptimizerOptions& options,
                          const NamedParameters& parameters,
                          const std::map<std::string, at::Tensor>& state, const std::string& what) {
  size_t used = 0;
  auto find = [&](const std::string& name, at::IntArrayRef shape,
                  const at::Tensor& like) -> at::Tensor {
    const auto found = state.find(name);
    if (found == state.end()) return {};
    if (found->second.sizes() != shape)
      fail(Code::format, "{}: tensor 'optimizer.{}' has shape {}, the parameter needs {}", what,
           name, to_string(found->second.sizes().vec()), to_string(shape.vec()));
    ++used;
    return found->second.to(like.options().requires_grad(false), false, true);
  };
  auto load_adam = [&]<class ParamState>(const std::string& name, const at::Tensor& parameter) {
    auto average = find(name + ".exp_avg", parameter.sizes(), parameter);
    auto square = find(name + ".exp_avg_sq", parameter.sizes(), parameter);
    auto step = find(name + ".step", {}, torch::empty({}, torch::kInt64));
    if (!average.defined() && !square.defined() && !step.defined()) return;
    if (!average.defined() || !square.defined() || !step.defined())
      fail(Code::format, "{}: optimizer state of '{}' is incomplete", what, name);
    auto own = std::make_unique<ParamState>();
    own->exp_avg(average);
    own->exp_avg_sq(square);
    own->step(step.template item<int64_t>());
    optimizer.state()[key(parameter)] = std::move(own);
  };
  optimizer.state().clear();
  for (const auto& [name, parameter] : parameters) {
    switch (kind_of(options)) {
      case Kind::sgd:
        if (auto buffer = find(name + ".momentum_buffer", parameter.sizes(), parameter);
            buffer.defined()) {
          auto own = std::make_unique<torch::optim::SGDParamState>();
          own->momentum_buffer(buffer);
          optimizer.state()[key(parameter)] = std::move(own);
        }
        break;
      case Kind::adam:
        load_adam.operator()<torch::optim::AdamParamState>(name, parameter);
        break;
      case Kind::adamw:
        load_adam.operator()<torch::optim::AdamWParamState>(name, parameter);
        break;
    }
  }
  if (used != state.size())
    fail(Code::format, "{}: {} of {} optimizer tensors belong to no parameter of the model", what,
         state.size() - used, state.size());
}

}  // namespace sluice::lab
