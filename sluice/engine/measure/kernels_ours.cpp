#include "sluice/engine/measure/kernels_ours.h"

#include <fmt/core.h>

#include <cstring>

#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine::measure {

BoundKernel::BoundKernel(const Kernel& kernel, const std::vector<std::span<const float>>& inputs,
                         int64_t outputs, int64_t size)
    : output_(outputs * static_cast<int64_t>(sizeof(float))),
      scratch_(kernel.scratch_bytes),
      size_(size) {
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
  binding.size = &size_;
  call_ = kernel.bind(binding);
}

std::span<const float> BoundKernel::output() const {
  return {output_.floats(), static_cast<size_t>(output_.bytes()) / sizeof(float)};
}

PackedSource::PackedSource(bundle::Format format_, std::span<const float> weight, int64_t rows_,
                           int64_t columns_)
    : format(format_),
      rows(rows_),
      columns(columns_),
      bytes(bundle::pack(format, weight, rows, columns)),
      values(weight.size()) {
  bundle::unpack(bundle::view_packed(format, rows, columns, bytes, "weights"), values);
}

Rotation<PackedCopy> copies_of(const PackedSource& source, int64_t cold) {
  const int64_t size = static_cast<int64_t>(source.bytes.size());
  const bundle::PackedMatrix checked =
      bundle::view_packed(source.format, source.rows, source.columns, source.bytes, "weights");
  return Rotation<PackedCopy>(cold, size, [&](int64_t) {
    PackedCopy copy{Buffer(size), checked};
    std::memcpy(copy.bytes.data(), source.bytes.data(), source.bytes.size());
    const auto moved = [&](const std::byte* at) {
      return at == nullptr ? nullptr : copy.bytes.data() + (at - source.bytes.data());
    };
    copy.matrix.codes = moved(checked.codes);
    copy.matrix.scales = moved(checked.scales);
    if (!checked.salient.empty()) {
      const auto* at = reinterpret_cast<const std::byte*>(checked.salient.data());
      copy.matrix.salient = {reinterpret_cast<const uint32_t*>(moved(at)), checked.salient.size()};
    }
    return copy;
  });
}

Contender packed_linear(const PackedSource& source, const LinearProblem& problem, Role role) {
  using bundle::Format;
  const bool whole = source.format == Format::f32 || source.format == Format::bf16;
  struct State {
    Rotation<PackedCopy> copies;
    DotKind kind;
    LinearProblem problem;
    std::vector<float> x, y;
    Buffer scratch;
  };
  const DotKind kind = whole ? DotKind::f32 : DotKind::i8;
  auto state = std::make_shared<State>(
      State{copies_of(source, problem.cold),
            kind,
            problem,
            {problem.x.begin(), problem.x.end()},
            std::vector<float>(static_cast<size_t>(problem.rows * problem.out)),
            Buffer(dot_scratch_bytes(source.format, kind, problem.in, problem.rows))});
  Contender contender;
  contender.name = role == Role::ours
                       ? "sluice"
                       : fmt::format("sluice dense {}", bundle::format_name(source.format));
  contender.role = role;
  contender.bytes = static_cast<double>(source.bytes.size());
  contender.operations = problem.operations();
  if (!whole) {
    contender.note = "low-bit weights meet int8 activations, quantized in the timed call";
  }
  contender.run = [state] {
    State& s = *state;
    const bundle::PackedMatrix& matrix = s.copies.next().matrix;
    const DotInput x =
        prepare_dot(matrix, s.kind, s.x.data(), s.problem.in, s.problem.rows, s.scratch.data());
    packed_dot(matrix, x, s.y.data(), s.problem.out, s.problem.threads);
  };
  contender.output = [state] { return std::span<const float>(state->y); };
  return contender;
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
