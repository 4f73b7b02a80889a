#include "sluice/lab/train/optimizer.h"

#include <torch/optim.h>  // sgd, adam, adamw
#include <sstream>

#include "sluice/base/error.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/brick.h"
#include "sluice/lab/train/muon.h"

namespace sluice::lab {
namespace {

enum class Kind { sgd, adam, adamw };

Kind kind_of(const OptimizerOptions& options) {
  if (options.kind == "sgd") return Kind::sgd;
  if (options.kind == "adam") return Kind::adam;
  if (options.kind == "adamw") return Kind::adamw;
  const std::string near = nearest_name(options.kind, {"sgd", "adam", "adamw", "muon"});
  fail(Code::config, "optimizer '{}': known are sgd, adam, adamw, muon{}", options.kind,
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

void check_options(const OptimizerOptions& options) {
  if (!(options.rate > 0)) fail(Code::config, "learning rate {}: must be > 0", options.rate);
  if (!(options.weight_decay >= 0))
    fail(Code::config, "weight decay {}: must be >= 0", options.weight_decay);
  if (!(options.momentum >= 0 && options.momentum < 1))
    fail(Code::config, "momentum {}: must be in [0, 1)", options.momentum);
  if (!(options.beta2 >= 0 && options.beta2 < 1))
    fail(Code::config, "beta2 {}: must be in [0, 1)", options.beta2);
}

template <class ParamState>
void save_adam(std::map<std::string, at::Tensor>& out, const std::string& name,
               const ParamState& state) {
  out[name + ".exp_avg"] = state.exp_avg();
  out[name + ".exp_avg_sq"] = state.exp_avg_sq();
  out[name + ".step"] = torch::tensor(state.step(), torch::kInt64);
}

}  // namespace

NamedParameters trainable_parameters(const Brick& root) {
  NamedParameters out;
  for (const auto& item : root.named_parameters())
    if (item.value().requires_grad()) out.emplace_back(item.key(), item.value());
  return out;
}

/// Global norm clipping without waiting for the device.
void clip_gradients(const NamedParameters& parameters, double limit) {
  std::vector<at::Tensor> norms;
  for (const auto& [name, p] : parameters)
    if (p.grad().defined()) norms.push_back(p.grad().detach().norm());
  if (norms.empty()) return;
  const auto factor = (limit / (torch::stack(norms).norm() + 1e-6)).clamp_max(1.0);
  for (const auto& [name, p] : parameters)
    if (p.grad().defined()) p.grad().mul_(factor);
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const OptimizerOptions& options,
                                                        const NamedParameters& parameters) {
  const Kind kind = kind_of(options);
  check_options(options);
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
      return build.operator()<torch::optim::Adam>(
          torch::optim::AdamOptions(options.rate).betas({0.9, options.beta2}));
    default:
      return build.operator()<torch::optim::AdamW>(
          torch::optim::AdamWOptions(options.rate).betas({0.9, options.beta2}));
  }
}

namespace {

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

/// LibTorch's own.
class Packaged : public Optimizer {
 public:
  Packaged(const OptimizerOptions& options, const NamedParameters& parameters)
      : options_(options),
        parameters_(parameters),
        optimizer_(make_optimizer(options, parameters)) {}
  void set_rate(double rate) override {
    for (auto& group : optimizer_->param_groups()) group.options().set_lr(rate);
  }
  void step() override { optimizer_->step(); }
  std::map<std::string, at::Tensor> state() const override {
    return optimizer_state(*optimizer_, options_, parameters_);
  }
  void load_state(const std::map<std::string, at::Tensor>& state,
                  const std::string& what) override {
    load_optimizer_state(*optimizer_, options_, parameters_, state, what);
  }

 private:
  OptimizerOptions options_;
  NamedParameters parameters_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

/// Muon for the hidden matrices, AdamW for the rest; one rate for both.
class MuonAndAdamW : public Optimizer {
 public:
  MuonAndAdamW(const OptimizerOptions& options, const NamedParameters& parameters) {
    check_options(options);
    NamedParameters hidden, rest;
    for (const auto& entry : parameters)
      (is_hidden_matrix(entry.first, entry.second) ? hidden : rest).push_back(entry);
    if (hidden.empty())
      fail(Code::config,
           "optimizer 'muon': the model has no hidden matrices (2-D weights apart from "
           "embeddings and the head); use adamw");
    for (const auto& [name, tensor] : hidden) hidden_names_.push_back(name);
    muon_ = std::make_unique<Muon>(
        hidden, MuonOptions{options.rate, options.momentum, options.weight_decay});
    if (!rest.empty()) {
      OptimizerOptions adamw = options;
      adamw.kind = "adamw";
      rest_ = std::make_unique<Packaged>(adamw, rest);
    }
  }
  void set_rate(double rate) override {
    muon_->set_rate(rate);
    if (rest_) rest_->set_rate(rate);
  }
  void step() override {
    muon_->step();
    if (rest_) rest_->step();
  }
  std::map<std::string, at::Tensor> state() const override {
    auto all = rest_ ? rest_->state() : std::map<std::string, at::Tensor>();
    all.merge(muon_->state());
    return all;
  }
  void load_state(const std::map<std::string, at::Tensor>& state,
                  const std::string& what) override {
    std::map<std::string, at::Tensor> mine, others = state;
    for (const std::string& name : hidden_names_) {
      const auto found = others.find(name + kMomentumSuffix);
      if (found != others.end()) mine.insert(others.extract(found));
    }
    muon_->load_state(mine, what);
    if (rest_) {
      rest_->load_state(others, what);
    } else if (!others.empty()) {
      fail(Code::format, "{}: optimizer tensor '{}' belongs to no parameter of the model", what,
           others.begin()->first);
    }
  }

 private:
  std::vector<std::string> hidden_names_;
  std::unique_ptr<Muon> muon_;
  std::unique_ptr<Packaged> rest_;
};

}  // namespace

std::unique_ptr<Optimizer> build_optimizer(const OptimizerOptions& options,
                                           const NamedParameters& parameters) {
  if (options.kind == "muon") return std::make_unique<MuonAndAdamW>(options, parameters);
  return std::make_unique<Packaged>(options, parameters);
}

}  // namespace sluice::lab
