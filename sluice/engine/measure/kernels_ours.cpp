#include "sluice/engine/measure/kernels_ours.h"

#include <cstring>

namespace sluice::engine::measure {

BoundKernel::BoundKernel(const Kernel& kernel, const std::vector<std::span<const float>>& inputs,
                         int64_t outputs)
    : output_(outputs * static_cast<int64_t>(sizeof(float))), scratch_(kernel.scratch_bytes) {
  for (const std::span<const float> input : inputs) {
    inputs_.emplace_back(static_cast<int64_t>(input.size_bytes()));
    std::memcpy(inputs_.back().data(), input.data(), input.size_bytes());
    pointers_.push_back(inputs_.back().floats());
  }
  Binding binding;
  binding.inputs = pointers_;
  binding.output = output_.floats();
  binding.scratch = scratch_.data();
  binding.work = kernel.metered ? &work_ : nullptr;
  call_ = kernel.bind(binding);
}

std::span<const float> BoundKernel::output() const {
  return {output_.floats(), static_cast<size_t>(output_.bytes()) / sizeof(float)};
}

Contender dense_linear(const LinearProblem& p, Role role) {
  struct State {
    onednn::PackCache cache;
    std::optional<Rotation<std::unique_ptr<BoundKernel>>> copies;
    BoundKernel* latest = nullptr;
  };
  auto state = std::make_shared<State>();
  state->copies.emplace(p.cold, static_cast<int64_t>(p.weight.size_bytes()), [&](int64_t i) {
    const Kernel kernel = onednn::make_linear(p.rows, p.in, p.out, {}, p.weight, {}, p.threads,
                                              state->cache, std::to_string(i));
    return std::make_unique<BoundKernel>(kernel, std::vector{p.x}, p.rows * p.out);
  });
  Contender contender;
  contender.name = role == Role::ours ? "sluice" : "sluice dense f32";
  contender.role = role;
  contender.bytes = static_cast<double>(p.weight.size_bytes());
  contender.operations = p.operations();
  contender.run = [state] {
    state->latest = state->copies->next().get();
    state->latest->run();
  };
  contender.output = [state] { return state->latest->output(); };
  return contender;
}

}  // namespace sluice::engine::measure
