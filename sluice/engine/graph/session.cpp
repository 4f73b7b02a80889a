#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>

#include "sluice/base/error.h"
#include "sluice/base/machine.h"
#include "sluice/engine/graph/network_state.h"
#include "sluice/engine/graph/plan.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace {

// Activations of one chunk should stay in a core's second-level cache (1 MiB and more where AVX-512
// is).
constexpr int64_t kChunkBytes = 512 << 10;
constexpr int kMaxThreads = 1024;

int64_t largest_step_bytes(const bundle::Bundle& bundle) {
  const auto& shapes = bundle.info().shapes;
  int64_t largest = 1;
  for (const bundle::Node& node : bundle.graph().nodes) {
    int64_t elements = numel(shapes.at(node.output));
    for (const std::string& input : node.inputs) elements += numel(shapes.at(input));
    largest = std::max(largest, elements * static_cast<int64_t>(sizeof(float)));
  }
  return largest;
}

}  // namespace

struct Session::State {
  /// One thread's memory and its calls, with every pointer in place.
  struct Lane {
    Buffer arena, scratch;
    std::vector<std::function<void()>> calls;
    std::vector<Work> work;  ///< by step; only metered kernels write theirs
    float* input = nullptr;
    float* output = nullptr;
    std::exception_ptr error;
  };

  Network network;
  int64_t batch, chunk, input_elements, output_elements;
  int threads;
  Plan plan;
  std::vector<Lane> lanes;
  std::vector<size_t> meter_entries;

  State(const Network& n, const Options& options)
      : network(n),
        batch(options.batch),
        input_elements(numel(n.input_shape())),
        output_elements(numel(n.output_shape())),
        threads(options.threads) {
    if (batch < 1) fail(Code::usage, "session: batch {}; expected 1 or more", batch);
    if (threads < 0 || threads > kMaxThreads) {
      fail(Code::usage, "session: {} threads; expected 0 (all cores) to {}", threads, kMaxThreads);
    }
    if (threads == 0) threads = describe_machine().cores;
    // Whole chunks per thread need no synchronisation inside the network; only a batch smaller than
    // the number of threads is worth splitting inside its steps.
    const int64_t lane_count = batch >= threads ? threads : 1;
    const int64_t most = std::max<int64_t>(1, kChunkBytes / largest_step_bytes(n.bundle()));
    int64_t chunks = (batch + most - 1) / most;
    chunks = (chunks + lane_count - 1) / lane_count * lane_count;
    chunk = (batch + chunks - 1) / chunks;
    PlanOptions plan_options;
    plan_options.samples = chunk;
    plan_options.threads = lane_count > 1 ? 1 : threads;
    plan_options.fuse = options.fuse;
    plan_options.sparse = options.sparse == Sparse::automatic;
    plan = make_plan(n.bundle(), plan_options, n.state_->packed);
    lanes.resize(static_cast<size_t>(lane_count));
    for (Lane& lane : lanes) bind(lane);
    meter_entries.assign(plan.steps.size(), 0);
  }

  void bind(Lane& lane) {
    lane.arena = Buffer(plan.arena_bytes);
    lane.scratch = Buffer(plan.scratch_bytes);
    const auto at = [&](int value) {
      const size_t buffer = static_cast<size_t>(plan.values[static_cast<size_t>(value)].buffer);
      return reinterpret_cast<float*>(lane.arena.data() + plan.offsets[buffer]);
    };
    std::vector<float*> inputs;
    lane.work.resize(plan.steps.size());
    for (const Step& step : plan.steps) {
      inputs.clear();
      for (int value : step.inputs) inputs.push_back(at(value));
      Binding binding;
      binding.inputs = inputs;
      binding.output = at(step.output);
      binding.scratch = lane.scratch.data();
      if (step.kernel.metered) binding.work = &lane.work[lane.calls.size()];
      lane.calls.push_back(step.kernel.bind(binding));
    }
    lane.input = at(plan.input);
    lane.output = at(plan.output);
  }

  int64_t chunks_of(int64_t count) const { return (count + chunk - 1) / chunk; }

  void load(Lane& lane, std::span<const float> input, int64_t index, int64_t count) const {
    const int64_t first = index * chunk, samples = std::min(chunk, count - first);
    const size_t used = static_cast<size_t>(samples * input_elements);
    std::memcpy(lane.input, input.data() + first * input_elements, used * sizeof(float));
    std::memset(lane.input + used, 0,
                static_cast<size_t>((chunk - samples) * input_elements) * sizeof(float));
  }

  void store(const Lane& lane, std::span<float> output, int64_t index, int64_t count) const {
    const int64_t first = index * chunk, samples = std::min(chunk, count - first);
    std::memcpy(output.data() + first * output_elements, lane.output,
                static_cast<size_t>(samples * output_elements) * sizeof(float));
  }

  void run_chunks(Lane& lane, std::span<const float> input, std::span<float> output, int64_t count,
                  int64_t first, int64_t stride) const {
    for (int64_t index = first; index < chunks_of(count); index += stride) {
      load(lane, input, index, count);
      for (const auto& call : lane.calls) call();
      store(lane, output, index, count);
    }
  }

  void check_spans(std::span<const float> input, std::span<float> output, int64_t count) const {
    if (count < 0 || count > batch) {
      fail(Code::shape, "session: {} samples; expected 0 to {}, the batch it was planned for",
           count, batch);
    }
    if (static_cast<int64_t>(input.size()) < count * input_elements) {
      fail(Code::shape, "session: input holds {} numbers; {} samples of {} need {}", input.size(),
           count, to_string(network.input_shape()), count * input_elements);
    }
    if (static_cast<int64_t>(output.size()) < count * output_elements) {
      fail(Code::shape, "session: output holds {} numbers; {} samples of {} need {}", output.size(),
           count, to_string(network.output_shape()), count * output_elements);
    }
  }

  void measure(Meter& meter, int64_t count) {
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      const Step& step = plan.steps[i];
      size_t& entry = meter_entries[i];
      if (entry >= meter.entries().size() || meter.entries()[entry].path != step.info.path) {
        entry = meter.entry(step.info.path);
      }
      if (step.kernel.metered) {
        Work total;
        for (const Lane& lane : lanes) {
          total.macs += lane.work[i].macs;
          total.bytes += lane.work[i].bytes;
        }
        meter.add(entry, total.macs, total.bytes);
        continue;
      }
      meter.add(entry, step.info.cost.macs * count,
                step.info.cost.weight_bytes * chunks_of(count) + step.activation_bytes * count);
    }
    meter.add_samples(count);
  }
};

Session::Session(const Network& network, const Options& options)
    : state_(std::make_unique<State>(network, options)) {}
Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

void Session::run(std::span<const float> input, std::span<float> output, int64_t count,
                  const RunOptions& options) {
  State& state = *state_;
  state.check_spans(input, output, count);
  if (options.budget) options.budget->require(state.plan.cost, state.network.bundle().path());
  if (options.meter) {
    for (State::Lane& lane : state.lanes) std::fill(lane.work.begin(), lane.work.end(), Work{});
  }
  const ThreadScope scope(state.threads);
  const int64_t used =
      std::min<int64_t>(static_cast<int64_t>(state.lanes.size()), state.chunks_of(count));
  if (used <= 1) {
    state.run_chunks(state.lanes[0], input, output, count, 0, 1);
  } else {
#pragma omp parallel num_threads(static_cast <int>(used))
    {
      // An enclosing parallel region may grant fewer threads than asked for.
      const int64_t stride = omp_get_num_threads(), first = omp_get_thread_num();
      State::Lane& lane = state.lanes[static_cast<size_t>(first)];
      try {
        state.run_chunks(lane, input, output, count, first, stride);
      } catch (...) {
        lane.error = std::current_exception();
      }
    }
    for (State::Lane& lane : state.lanes) {
      if (lane.error) std::rethrow_exception(std::exchange(lane.error, nullptr));
    }
  }
  if (options.meter) state.measure(*options.meter, count);
}

int64_t Session::batch() const { return state_->batch; }
int Session::threads() const { return state_->threads; }
int64_t Session::chunk() const { return state_->chunk; }
int64_t Session::arena_bytes() const {
  return static_cast<int64_t>(state_->lanes.size()) *
         (state_->plan.arena_bytes + state_->plan.scratch_bytes);
}

std::vector<PlanStep> Session::plan() const {
  std::vector<PlanStep> steps;
  for (const Step& step : state_->plan.steps) steps.push_back(step.info);
  return steps;
}

std::vector<double> Session::time_steps(std::span<const float> input, std::span<float> output) {
  using Clock = std::chrono::steady_clock;
  State& state = *state_;
  state.check_spans(input, output, state.batch);
  const ThreadScope scope(state.lanes.size() > 1 ? 1 : state.threads);
  std::vector<double> seconds(state.plan.steps.size(), 0.0);
  State::Lane& lane = state.lanes[0];
  for (int64_t index = 0; index < state.chunks_of(state.batch); ++index) {
    state.load(lane, input, index, state.batch);
    for (size_t i = 0; i < lane.calls.size(); ++i) {
      const auto start = Clock::now();
      lane.calls[i]();
      seconds[i] += std::chrono::duration<double>(Clock::now() - start).count();
    }
    state.store(lane, output, index, state.batch);
  }
  // Lanes work side by side: a run takes their share.
  for (double& s : seconds) s /= static_cast<double>(state.lanes.size());
  return seconds;
}

}  // namespace sluice::engine
