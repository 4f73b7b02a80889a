#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <map>
#include <numeric>

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

/// Whether runs continue each other.
bool keeps_state(const bundle::Bundle& bundle) {
  if (!bundle.graph().carries.empty()) return true;
  for (const bundle::Node& node : bundle.graph().nodes) {
    if ((node.op == "attention" || node.op == "spark_attention") &&
        bundle::attr_int(node.attrs, "cache", 0) > 0)
      return true;
    if (node.op == "linear_attention" && bundle::attr_bool(node.attrs, "carry", false)) return true;
  }
  return false;
}

}  // namespace

struct Session::State {
  /// One thread's memory and its calls, with every pointer in place.
  struct Lane {
    Buffer arena, scratch, state;
    std::vector<LiveRows> rows;  ///< by Plan::rows
    std::vector<int64_t> row_memory;
    std::vector<int64_t> counted;  ///< rows that ran, by Plan::rows
    std::vector<std::function<void()>> calls;
    std::vector<Work> work;               ///< by step; only metered kernels write theirs
    std::vector<float*> inputs, outputs;  ///< of `ports`
    std::vector<float*> carried_in, carried_out;
    std::exception_ptr error;
  };

  using Inputs = std::span<const std::span<const float>>;
  using Outputs = std::span<const std::span<float>>;

  Network network;
  int64_t batch, chunk;
  std::vector<int64_t> input_elements, output_elements;  ///< of Network::inputs() and outputs()
  int threads;
  Plan plan;
  std::vector<Lane> lanes;
  int64_t size = -1;  ///< of the run, read by the kernels
  const bool stateful, sequences;
  bool failed = false;            ///< in the middle: the states are out of step
  std::vector<int64_t> position;  ///< [batch], of sequences
  std::vector<int64_t> reached;   ///< [batch], the furthest positions since reset()
  /// [batch][Plan::optional_states]: how many of the sequence's first rows ran it.
  std::vector<std::vector<int64_t>> complete;
  std::vector<std::vector<bool>> runs_state;  ///< the same by size: whether it runs it
  std::vector<int64_t> whole;                 ///< [batch] tokens of run()
  std::vector<int64_t> wanted;                ///< [batch] last rows that run_tokens() gives
  const int64_t last_rows;                    ///< Options::last_rows; 0: all
  std::vector<size_t> meter_entries;
  std::vector<std::vector<float>> carried;  ///< by Graph::carries, [batch][elements]

  State(const Network& n, const Options& options)
      : network(n),
        batch(options.batch),
        threads(options.threads),
        stateful(keeps_state(n.bundle())),
        sequences(options.sequences),
        last_rows(options.last_rows) {
    if (last_rows < 0 || (last_rows > 0 && !sequences)) {
      fail(Code::usage, "session: last_rows {}; expected 0 (all), or with sequences 1 or more",
           last_rows);
    }
    if (batch < 1) fail(Code::usage, "session: batch {}; expected 1 or more", batch);
    for (const bundle::Value& input : n.inputs()) input_elements.push_back(numel(input.shape));
    for (const bundle::Value& output : n.outputs()) output_elements.push_back(numel(output.shape));
    const bundle::Graph& graph = n.bundle().graph();
    if (sequences && (graph.inputs.size() != 1 || graph.outputs.size() != 1)) {
      fail(Code::unsupported,
           "{}: {} inputs and {} outputs; sequences of counted rows need one of each. Open the "
           "session without sequences",
           n.bundle().path(), graph.inputs.size(), graph.outputs.size());
    }
    for (const bundle::Carry& carry : graph.carries) {
      const int64_t each = numel(n.bundle().info().shapes.at(carry.input));
      carried.emplace_back(static_cast<size_t>(checked_mul(batch, each, "carried values")), 0.0f);
    }
    if (threads < 0 || threads > kMaxThreads) {
      fail(Code::usage, "session: {} threads; expected 0 (all cores) to {}", threads, kMaxThreads);
    }
    if (threads == 0) threads = describe_machine().cores;
    // Whole chunks per thread need no synchronisation inside the network; only a batch smaller than
    // the number of threads is worth splitting inside its steps.
    const bool one_chunk = stateful || sequences;
    const int64_t lane_count = batch >= threads && !one_chunk ? threads : 1;
    const int64_t most = std::max<int64_t>(1, kChunkBytes / largest_step_bytes(n.bundle()));
    int64_t chunks = (batch + most - 1) / most;
    chunks = one_chunk ? 1 : (chunks + lane_count - 1) / lane_count * lane_count;
    chunk = (batch + chunks - 1) / chunks;
    PlanOptions plan_options;
    plan_options.samples = chunk;
    plan_options.threads = lane_count > 1 ? 1 : threads;
    plan_options.fuse = options.fuse;
    plan_options.sparse = options.sparse == Sparse::automatic;
    plan_options.sequences = sequences;
    plan_options.last_rows = last_rows;
    plan_options.mapped = stateful && sequences;
    plan = make_plan(n.bundle(), plan_options, n.state_->packed);
    position.assign(static_cast<size_t>(one_chunk ? batch : 0), 0);
    reached = position;
    whole.assign(static_cast<size_t>(sequences ? batch : 0), n.input_shape()[0]);
    wanted.assign(whole.size(), 0);
    if (last_rows > 0 && plan.values[static_cast<size_t>(plan.outputs[0])].rows == 0) {
      fail(Code::usage, "{}: last_rows {}, but the network gives one row per sample",
           n.bundle().path(), last_rows);
    }
    for (const std::vector<size_t>& steps : plan.needed) {
      runs_state.emplace_back();
      for (const size_t step : plan.optional_states)
        runs_state.back().push_back(std::ranges::binary_search(steps, step));
    }
    complete.assign(position.size(), std::vector<int64_t>(plan.optional_states.size(), 0));
    lanes.resize(static_cast<size_t>(lane_count));
    for (Lane& lane : lanes) bind(lane);
    meter_entries.assign(plan.steps.size(), 0);
  }

  /// Row sets of a lane, with everything there.
  void bind_rows(Lane& lane) const {
    size_t memory = 0;
    for (const PlanRows& rows : plan.rows)
      memory += static_cast<size_t>(chunk * rows.per_sample + chunk + 1);
    lane.row_memory.assign(memory, 0);
    int64_t* next = lane.row_memory.data();
    for (const PlanRows& rows : plan.rows) {
      lane.rows.push_back({0, chunk, rows.per_sample, next, next + chunk + 1});
      next += chunk * rows.per_sample + chunk + 1;
    }
    lane.counted.assign(plan.rows.size(), 0);
    set_rows(lane.rows[0], {}, chunk);
  }

  /// The first `samples` samples are there, with their tokens or one row each.
  static void set_rows(LiveRows& rows, std::span<const int64_t> tokens, int64_t samples) {
    rows.count = 0;
    for (int64_t s = 0; s < rows.samples; ++s) {
      rows.start[s] = rows.count;
      if (s < samples) rows.count += tokens.empty() ? 1 : tokens[static_cast<size_t>(s)];
    }
    rows.start[rows.samples] = rows.count;
  }

  /// Those of each sample's rows that are wanted.
  void set_last(Lane& lane, std::span<const int64_t> last) const {
    if (plan.last == 0) return;
    const LiveRows& all = lane.rows[1];
    LiveRows& rows = lane.rows[static_cast<size_t>(plan.last)];
    rows.count = 0;
    for (int64_t s = 0; s < rows.samples; ++s) {
      rows.start[s] = rows.count;
      const int64_t end = all.start[s + 1], there = end - all.start[s];
      const int64_t keep = last.empty()           ? there
                           : s < std::ssize(last) ? std::min(there, last[static_cast<size_t>(s)])
                                                  : 0;
      for (int64_t r = end - keep; r < end; ++r) rows.source[rows.count++] = r;
    }
    rows.start[rows.samples] = rows.count;
  }

  void bind(Lane& lane) {
    lane.arena = Buffer(plan.arena_bytes);
    lane.scratch = Buffer(plan.scratch_bytes);
    lane.state = Buffer(plan.state_bytes, false);
    bind_rows(lane);
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
      binding.size = &size;
      binding.rows = &lane.rows[static_cast<size_t>(step.rows)];
      binding.other = &lane.rows[static_cast<size_t>(step.other)];
      if (step.kernel.state_bytes > 0) binding.state = lane.state.data() + step.state_offset;
      if (!position.empty()) binding.position = position.data();
      if (step.kernel.metered) binding.work = &lane.work[lane.calls.size()];
      lane.calls.push_back(step.kernel.bind(binding));
    }
    bind_ports(lane, at);
  }

  template <class At>
  void bind_ports(Lane& lane, At at) const {
    const bundle::Graph& graph = network.bundle().graph();
    std::map<std::string, float*> places;
    for (size_t i = 0; i < graph.inputs.size(); ++i)
      places[graph.inputs[i].name] = at(plan.inputs[i]);
    for (size_t i = 0; i < graph.outputs.size(); ++i)
      places[graph.outputs[i]] = at(plan.outputs[i]);
    for (const bundle::Value& input : network.inputs()) lane.inputs.push_back(places[input.name]);
    for (const bundle::Value& output : network.outputs())
      lane.outputs.push_back(places[output.name]);
    for (const bundle::Carry& carry : graph.carries) {
      lane.carried_in.push_back(places[carry.input]);
      lane.carried_out.push_back(places[carry.output]);
    }
  }

  int64_t chunks_of(int64_t count) const { return (count + chunk - 1) / chunk; }

  void load(Lane& lane, Inputs inputs, int64_t index, int64_t count) const {
    const int64_t first = index * chunk, samples = std::min(chunk, count - first);
    set_rows(lane.rows[0], {}, samples);
    if (sequences) set_rows(lane.rows[1], whole, samples);
    set_last(lane, {});
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int64_t each = input_elements[i];
      const size_t used = static_cast<size_t>(samples * each);
      std::memcpy(lane.inputs[i], inputs[i].data() + first * each, used * sizeof(float));
      std::memset(lane.inputs[i] + used, 0,
                  static_cast<size_t>((chunk - samples) * each) * sizeof(float));
    }
    // One chunk: a network that carries values runs its batch at once.
    for (size_t i = 0; i < carried.size(); ++i)
      std::memcpy(lane.carried_in[i], carried[i].data(), carried[i].size() * sizeof(float));
  }

  void store(const Lane& lane, Outputs outputs, int64_t index, int64_t count) {
    const int64_t first = index * chunk, samples = std::min(chunk, count - first);
    for (size_t i = 0; i < outputs.size(); ++i) {
      const int64_t each = output_elements[i];
      std::memcpy(outputs[i].data() + first * each, lane.outputs[i],
                  static_cast<size_t>(samples * each) * sizeof(float));
    }
    for (size_t i = 0; i < carried.size(); ++i) {
      const size_t each = carried[i].size() / static_cast<size_t>(batch);
      std::memcpy(carried[i].data(), lane.carried_out[i],
                  static_cast<size_t>(samples) * each * sizeof(float));
    }
  }

  /// Nothing of the sequence has run.
  void restart(size_t s) {
    position[s] = reached[s] = 0;
    std::ranges::fill(complete[s], 0);
  }

  void forget(int64_t sample) {
    for (std::vector<float>& values : carried) {
      const size_t each = values.size() / static_cast<size_t>(batch);
      std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(sample) * each),
                  each, 0.0f);
    }
  }

  void run_chunks(Lane& lane, Inputs inputs, Outputs outputs, int64_t count, int64_t first,
                  int64_t stride) {
    for (int64_t index = first; index < chunks_of(count); index += stride) {
      load(lane, inputs, index, count);
      compute(lane);
      store(lane, outputs, index, count);
    }
  }

  /// Indices of the steps of this run.
  const std::vector<size_t>& needed() const { return plan.needed[static_cast<size_t>(size)]; }

  void compute(Lane& lane) const {
    for (const size_t step : needed()) lane.calls[step]();
    for (size_t i = 0; i < lane.rows.size(); ++i) lane.counted[i] += lane.rows[i].count;
  }

  void run_rows(std::span<const float> input, std::span<float> output,
                std::span<const int64_t> tokens) {
    Lane& lane = lanes[0];
    const int64_t samples = static_cast<int64_t>(tokens.size());
    set_rows(lane.rows[0], {}, samples);
    set_rows(lane.rows[1], tokens, samples);
    set_last(lane, std::span(wanted).first(tokens.size()));
    if (const size_t bytes = rows_bytes(lane, plan.inputs[0]); bytes > 0)
      std::memcpy(lane.inputs[0], input.data(), bytes);
    compute(lane);
    if (plan.values[static_cast<size_t>(plan.outputs[0])].rows != 1) {
      if (const size_t bytes = rows_bytes(lane, plan.outputs[0]); bytes > 0)
        std::memcpy(output.data(), lane.outputs[0], bytes);
      return;
    }
    // The last operator looks at several rows: all were computed.
    const int64_t width = numel(plan.values[static_cast<size_t>(plan.outputs[0])].row_shape);
    float* to = output.data();
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t count = wanted[static_cast<size_t>(s)] * width;
      if (count == 0) continue;  // `output` may be empty
      std::memcpy(to, lane.outputs[0] + lane.rows[1].start[s + 1] * width - count,
                  static_cast<size_t>(count) * sizeof(float));
      to += count;
    }
  }

  /// Of a value's rows that are there.
  size_t rows_bytes(const Lane& lane, int value) const {
    const PlanValue& v = plan.values[static_cast<size_t>(value)];
    return static_cast<size_t>(lane.rows[static_cast<size_t>(v.rows)].count * numel(v.row_shape)) *
           sizeof(float);
  }

  /// Before a run: nobody's sequence outgrows its memory.
  void check_state(std::span<const int64_t> tokens, int64_t samples) const {
    if (failed) {
      fail(Code::state, "{}: an earlier run failed half-way; reset() the session first",
           network.bundle().path());
    }
    if (!stateful) return;
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t more =
          tokens.empty() ? network.input_shape()[0] : tokens[static_cast<size_t>(s)];
      if (position[static_cast<size_t>(s)] > plan.capacity - more) {
        fail(Code::limit,
             "{}: sequence {} is at position {}; {} more rows do not fit the cache of {}. reset() "
             "it "
             "or export the network with a larger cache",
             network.bundle().path(), s, position[static_cast<size_t>(s)], more, plan.capacity);
      }
    }
  }

  /// No sequence runs what earlier rows of it left out.
  void check_complete(std::span<const int64_t> tokens, int64_t samples) const {
    const std::vector<bool>& runs = runs_state[static_cast<size_t>(size)];
    for (size_t s = 0; s < static_cast<size_t>(samples) && !runs.empty(); ++s) {
      if (!tokens.empty() && tokens[s] == 0) continue;
      for (size_t k = 0; k < runs.size(); ++k) {
        if (!runs[k] || complete[s][k] >= position[s]) continue;
        fail(Code::state,
             "{}: size {} runs '{}', which another size left out for earlier rows of sequence {}: "
             "its memory of them is missing. rewind() the sequence to where that size began, "
             "reset() "
             "it, or stay with sizes that end before it",
             network.bundle().path(), size, plan.steps[plan.optional_states[k]].info.path, s);
      }
    }
  }

  void advance(std::span<const int64_t> tokens, int64_t samples) {
    if (!stateful) return;
    const std::vector<bool>& runs = runs_state[static_cast<size_t>(size)];
    for (size_t s = 0; s < static_cast<size_t>(samples); ++s) {
      const int64_t more = tokens.empty() ? network.input_shape()[0] : tokens[s];
      position[s] += more;
      for (size_t k = 0; k < runs.size() && more > 0; ++k)
        if (runs[k]) complete[s][k] = position[s];
      reached[s] = std::max(reached[s], position[s]);
    }
  }

  /// Fills `wanted`.
  void choose_rows(std::span<const int64_t> tokens, std::span<const int64_t> last) {
    if (!last.empty() && plan.values[static_cast<size_t>(plan.outputs[0])].rows == 0) {
      fail(Code::usage, "{}: the network gives one row per sample, there are no last rows",
           network.bundle().path());
    }
    if (!last.empty() && last.size() != tokens.size()) {
      fail(Code::shape, "session: last rows of {} samples; expected {}, as of tokens", last.size(),
           tokens.size());
    }
    for (size_t s = 0; s < tokens.size(); ++s) {
      const int64_t most = last_rows > 0 ? std::min(tokens[s], last_rows) : tokens[s];
      wanted[s] = last.empty() ? most : last[s];
      if (wanted[s] < 0 || wanted[s] > most) {
        fail(Code::shape, "session: the last {} rows of sample {}; expected 0 to {}", wanted[s], s,
             most);
      }
    }
  }

  void check_tokens(std::span<const float> input, std::span<float> output,
                    std::span<const int64_t> tokens, std::span<const int64_t> last) {
    if (!sequences) {
      fail(Code::state, "{}: the session was opened without sequences; set Options::sequences",
           network.bundle().path());
    }
    if (static_cast<int64_t>(tokens.size()) > batch) {
      fail(Code::shape,
           "session: tokens of {} samples; expected at most {}, the batch it was "
           "planned for",
           tokens.size(), batch);
    }
    const int64_t most = network.input_shape()[0];
    int64_t rows = 0;
    for (size_t s = 0; s < tokens.size(); ++s) {
      if (tokens[s] < 0 || tokens[s] > most) {
        fail(Code::shape,
             "session: {} tokens of sample {}; expected 0 to {}, the rows of the "
             "network's input",
             tokens[s], s, most);
      }
      rows += tokens[s];
    }
    choose_rows(tokens, last);
    const int64_t asked =
        std::accumulate(wanted.begin(), wanted.begin() + std::ssize(tokens), int64_t{0});
    const auto check = [&](const char* what, size_t found, int value) {
      const PlanValue& v = plan.values[static_cast<size_t>(value)];
      const int64_t count = v.rows == 0                ? static_cast<int64_t>(tokens.size())
                            : value == plan.outputs[0] ? asked
                                                       : rows;
      if (static_cast<int64_t>(found) < count * numel(v.row_shape)) {
        fail(Code::shape, "session: {} holds {} numbers; {} rows of {} need {}", what, found, count,
             to_string(v.row_shape), count * numel(v.row_shape));
      }
    };
    check("input", input.size(), plan.inputs[0]);
    check("output", output.size(), plan.outputs[0]);
  }

  void check_spans(Inputs inputs, Outputs outputs, int64_t count) const {
    if (last_rows > 0) {
      fail(Code::state, "{}: the session was opened for the last rows only; use run_tokens()",
           network.bundle().path());
    }
    if (count < 0 || count > batch) {
      fail(Code::shape, "session: {} samples; expected 0 to {}, the batch it was planned for",
           count, batch);
    }
    const auto check = [&](const char* what, const auto& given,
                           const std::vector<bundle::Value>& expected,
                           const std::vector<int64_t>& elements) {
      if (given.size() != expected.size()) {
        fail(Code::shape, "session: {} {}s; {} has {}", given.size(), what, network.bundle().path(),
             expected.size());
      }
      for (size_t i = 0; i < elements.size(); ++i) {
        if (static_cast<int64_t>(given[i].size()) >= count * elements[i]) continue;
        const std::string name = elements.size() > 1 ? " '" + expected[i].name + "'" : "";
        fail(Code::shape, "session: {}{} holds {} numbers; {} samples of {} need {}", what, name,
             given[i].size(), count, to_string(expected[i].shape), count * elements[i]);
      }
    };
    check("input", inputs, network.inputs(), input_elements);
    check("output", outputs, network.outputs(), output_elements);
  }

  void check_sample(int64_t sample) const {
    if (sample < 0 || sample >= batch)
      fail(Code::usage, "session: sample {}; expected 0 to {}", sample, batch - 1);
  }

  int64_t sizes() const { return std::max<int64_t>(1, std::ssize(plan.size_savings)); }

  Cost cost_of(int64_t chosen) const {
    Cost cost = plan.cost;
    if (!plan.size_savings.empty()) cost.macs -= plan.size_savings[static_cast<size_t>(chosen)];
    return cost;
  }

  int64_t choose_size(const RunOptions& options) const {
    const int64_t last = sizes() - 1;
    if (options.size < -1 || options.size > last)
      fail(Code::usage, "session: size {}; expected 0 to {}, or -1", options.size, last);
    if (options.size >= 0 || !options.budget) return options.size >= 0 ? options.size : last;
    for (int64_t chosen = last; chosen > 0; --chosen) {
      const auto& most = options.budget->macs_per_sample;
      if (!most || cost_of(chosen).macs <= *most) return chosen;
    }
    return 0;
  }

  void start(const RunOptions& options) {
    size = choose_size(options);
    if (options.budget) options.budget->require(cost_of(size), network.bundle().path());
    for (Lane& lane : lanes) {
      std::fill(lane.counted.begin(), lane.counted.end(), 0);
      if (options.meter) std::fill(lane.work.begin(), lane.work.end(), Work{});
    }
  }

  void measure(Meter& meter, int64_t count) {
    for (const size_t i : needed()) {
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
      // Samples' worth of the rows that ran.
      double share = static_cast<double>(count);
      if (step.metered_rows > 0) {
        const size_t rows = static_cast<size_t>(step.metered_rows);
        int64_t ran = 0;
        for (const Lane& lane : lanes) ran += lane.counted[rows];
        share = static_cast<double>(ran) / static_cast<double>(plan.rows[rows].per_sample);
      }
      meter.add(entry, std::llround(static_cast<double>(step.info.cost.macs) * share),
                step.info.cost.weight_bytes * (share > 0 ? chunks_of(count) : 0) +
                    std::llround(static_cast<double>(step.activation_bytes) * share));
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
  run(State::Inputs(&input, 1), State::Outputs(&output, 1), count, options);
}

void Session::run(std::span<const std::span<const float>> inputs,
                  std::span<const std::span<float>> outputs, int64_t count,
                  const RunOptions& options) {
  State& state = *state_;
  state.check_spans(inputs, outputs, count);
  state.check_state({}, count);
  state.start(options);
  state.check_complete({}, state.stateful ? count : 0);
  state.failed = state.stateful;
  const ThreadScope scope(state.threads);
  const int64_t used =
      std::min<int64_t>(static_cast<int64_t>(state.lanes.size()), state.chunks_of(count));
  if (used <= 1) {
    state.run_chunks(state.lanes[0], inputs, outputs, count, 0, 1);
  } else {
#pragma omp parallel num_threads(static_cast <int>(used))
    {
      // An enclosing parallel region may grant fewer threads than asked for.
      const int64_t stride = omp_get_num_threads(), first = omp_get_thread_num();
      State::Lane& lane = state.lanes[static_cast<size_t>(first)];
      try {
        state.run_chunks(lane, inputs, outputs, count, first, stride);
      } catch (...) {
        lane.error = std::current_exception();
      }
    }
    for (State::Lane& lane : state.lanes) {
      if (lane.error) std::rethrow_exception(std::exchange(lane.error, nullptr));
    }
  }
  state.failed = false;
  state.advance({}, count);
  if (options.meter) state.measure(*options.meter, count);
}

void Session::run_tokens(std::span<const float> input, std::span<float> output,
                         std::span<const int64_t> tokens, const RunOptions& options) {
  State& state = *state_;
  const int64_t samples = static_cast<int64_t>(tokens.size());
  state.check_tokens(input, output, tokens, options.last);
  state.check_state(tokens, samples);
  state.start(options);
  state.check_complete(tokens, state.stateful ? samples : 0);
  state.failed = state.stateful;
  const ThreadScope scope(state.threads);
  state.run_rows(input, output, tokens);
  state.failed = false;
  state.advance(tokens, samples);
  if (options.meter) state.measure(*options.meter, samples);
}

int64_t Session::position(int64_t sample) const {
  state_->check_sample(sample);
  return state_->stateful ? state_->position[static_cast<size_t>(sample)] : 0;
}

int64_t Session::capacity() const { return state_->plan.capacity; }

int64_t Session::rewind_limit() const {
  return state_->carried.empty() && state_->stateful ? state_->plan.rewind : 0;
}

void Session::rewind(int64_t sample, int64_t position) {
  State& state = *state_;
  state.check_sample(sample);
  if (state.failed)
    fail(Code::state, "session: an earlier run failed half-way; reset() all samples");
  const size_t s = static_cast<size_t>(sample);
  const int64_t now = this->position(sample);
  if (position < 0 || position > now)
    fail(Code::usage, "session: rewind of sequence {} to position {}; expected 0 to {}", sample,
         position, now);
  if (position == now) return;
  if (position == 0) return reset(sample);
  if (state.reached[s] - position > rewind_limit())
    fail(
        Code::unsupported,
        "{}: sequence {} reached position {} and cannot go back to {}: its states keep the last {} "
        "rows apart, no more. reset() it and run the rows again",
        state.network.bundle().path(), sample, state.reached[s], position, rewind_limit());
  state.position[s] = position;
  for (int64_t& rows : state.complete[s]) rows = std::min(rows, position);
}

void Session::reset(int64_t sample) {
  state_->check_sample(sample);
  if (state_->failed) {
    fail(Code::state, "session: an earlier run failed half-way; reset() all samples");
  }
  if (state_->stateful) state_->restart(static_cast<size_t>(sample));
  state_->forget(sample);
}

void Session::reset() {
  for (size_t s = 0; s < state_->position.size(); ++s) state_->restart(s);
  for (int64_t s = 0; s < state_->batch; ++s) state_->forget(s);
  state_->failed = false;
}

int64_t Session::state_bytes() const {
  int64_t bytes = static_cast<int64_t>(state_->lanes.size()) * state_->plan.state_bytes;
  for (const std::vector<float>& values : state_->carried)
    bytes += static_cast<int64_t>(values.size() * sizeof(float));
  return bytes;
}

int64_t Session::sizes() const { return state_->sizes(); }
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
  const State::Inputs inputs(&input, 1);
  const State::Outputs outputs(&output, 1);
  state.check_spans(inputs, outputs, state.batch);
  reset();
  state.size = state.sizes() - 1;
  const ThreadScope scope(state.lanes.size() > 1 ? 1 : state.threads);
  std::vector<double> seconds(state.plan.steps.size(), 0.0);
  State::Lane& lane = state.lanes[0];
  for (int64_t index = 0; index < state.chunks_of(state.batch); ++index) {
    state.load(lane, inputs, index, state.batch);
    for (const size_t i : state.needed()) {
      const auto start = Clock::now();
      lane.calls[i]();
      seconds[i] += std::chrono::duration<double>(Clock::now() - start).count();
    }
    state.store(lane, outputs, index, state.batch);
  }
  reset();
  // Lanes work side by side: a run takes their share.
  for (double& s : seconds) s /= static_cast<double>(state.lanes.size());
  return seconds;
}

}  // namespace sluice::engine
