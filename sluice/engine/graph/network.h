// Loading and running a bundle. No LibTorch here.
//
//   auto network = engine::Network::open("model.safetensors");
//   engine::Session session(network, {.batch = 64, .threads = 2});
//   session.run(input, output);                      // input: batch x numel(input shape), f32,
//   row-major
//
// A Network is immutable and may be shared by threads. A Session owns the plan for one batch size:
// primitives, packed weights (shared through the network where the layout agrees), one arena per
// thread for all activations. A batch is run in chunks whose activations stay in the second-level
// cache; threads take whole chunks, or share one step when there are fewer samples than threads.
// run() does not allocate (what oneDNN does inside its own calls aside, see
// docs/decisions/engine-allocation.md). One session per running thread.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sluice/base/cost.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/bundle.h"

namespace sluice::engine {

class Network {
 public:
  struct Options {
    bool verify_checksums = false;
  };
  static Network open(const std::string& path) { return open(path, Options{}); }
  static Network open(const std::string& path, const Options& options);
  /// Throws Error{unsupported} when a node has no kernel, Error{numeric} when a weight is NaN or
  /// infinite.
  explicit Network(bundle::Bundle bundle);

  const bundle::Bundle& bundle() const;
  /// What a run is given and gives: the graph's inputs and outputs without those that a session
  /// carries (bundle::Carry).
  const std::vector<bundle::Value>& inputs() const;
  const std::vector<bundle::Value>& outputs() const;
  const Shape& input_shape() const;   ///< per sample, of the first
  const Shape& output_shape() const;  ///< per sample, of the first
  const Cost& cost() const;           ///< per sample, all nodes

 private:
  friend class Session;
  struct State;
  std::shared_ptr<const State> state_;
};

struct RunOptions {
  Meter* meter = nullptr;          ///< counts what really ran, when set
  const Budget* budget = nullptr;  ///< refuses with Error{limit} before computing, when exceeded
  /// Which size of a nested network runs (the lists of its prefix_linear nodes); -1: the last, or
  /// with a budget the last one that stays inside. Switching copies and plans nothing.
  int64_t size = -1;
  /// run_tokens() of a network that gives a row per token: how many of each sample's last rows are
  /// wanted, from 0 to its tokens and to Options::last_rows; `output` holds only those. Operators
  /// behind the last one that looks at several rows compute no others. Empty: all, or as many as
  /// Options::last_rows.
  std::span<const int64_t> last{};
};

/// One line of the plan, for `sluice bench --nodes` and docs.
struct PlanStep {
  std::string path, op, kernel;  ///< kernel: "onednn brgconv:avx512_core", "sluice global_avg_pool"
  Cost cost;
  std::vector<std::string> fused;  ///< paths of nodes folded into this step
};

class Session {
 public:
  /// What to do with linear layers whose weights are mostly zero.
  enum class Sparse : uint8_t { automatic, never };
  struct Options {
    int64_t batch = 1;
    int threads = 0;   ///< 0: all cores of the process
    bool fuse = true;  ///< activation, addition, batch norm into the producing node
    Sparse sparse = Sparse::automatic;  ///< compressed rows where that is faster; the meter then
                                        ///< counts non-zeros
    /// The first dimension T of the input is time: run_tokens() takes up to T rows of each sample,
    /// and computes no more. The network must take rows apart but for attention.
    bool sequences = false;
    /// With sequences: no run wants more than that many of a sample's last rows, and there is
    /// memory for those only (a decoder's logits are its largest value). 0: all T.
    int64_t last_rows = 0;
  };
  explicit Session(const Network& network) : Session(network, Options{}) {}
  Session(const Network& network, const Options& options);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  /// `count` <= batch samples are computed (rounded up to whole chunks; results of the rest are not
  /// written), with all T rows. Throws Error{shape} when the spans do not hold count samples.
  void run(std::span<const float> input, std::span<float> output, int64_t count,
           const RunOptions& options = {});
  void run(std::span<const float> input, std::span<float> output, const RunOptions& options = {}) {
    run(input, output, batch(), options);
  }
  /// The same for a network with several of them, in the order of Network::inputs() and outputs().
  void run(std::span<const std::span<const float>> inputs,
           std::span<const std::span<float>> outputs, int64_t count,
           const RunOptions& options = {});

  // Sequences. A network with an attention cache or a carried state continues where the last run
  // ended (so does one with values that are carried): each sample of the batch is a sequence, with
  // memory for it in the session. With Options::sequences a run may be of any length up to T, so
  // that a prompt in pieces and then one token at a time go through one session. Such sessions run
  // the batch as one chunk. Error{state} for a size whose state earlier rows left out: rewind().

  /// Computes tokens[s] <= T rows of sample s; `input` holds them one sample after another, without
  /// gaps. `output` likewise (the last rows that are wanted, see RunOptions::last), or one row per
  /// sample (tokens.size() of them) where the network pools. Throws Error{state} without
  /// Options::sequences, Error{limit} before anything is computed when a sequence gets longer than
  /// capacity().
  void run_tokens(std::span<const float> input, std::span<float> output,
                  std::span<const int64_t> tokens, const RunOptions& options = {});
  /// Rows that sample s has seen since it was reset; 0 in a network without state.
  int64_t position(int64_t sample) const;
  /// Rows that a sequence may have; the largest int64_t when nothing limits it.
  int64_t capacity() const;
  /// The sample's next row is the one at `position`: what came from there on is as if it had never
  /// run (proposed tokens that were refused). Throws Error{usage} for a position that it has not
  /// reached, Error{unsupported} where a state has no way back that far: of linear attention and
  /// carried values none, of a window's cache what it has room for.
  void rewind(int64_t sample, int64_t position);
  /// How far rewind() goes back from the furthest position reached; the largest int64_t: anywhere.
  int64_t rewind_limit() const;
  /// The next row of the sample (of all) is its first. Needed after a run that threw: until then
  /// further runs are refused with Error{state}.
  void reset(int64_t sample);
  void reset();
  int64_t state_bytes() const;  ///< caches and carried states

  int64_t sizes() const;  ///< that RunOptions::size chooses from; 1: nothing to choose
  int64_t batch() const;
  int threads() const;
  int64_t chunk() const;        ///< samples computed at once by one call of the plan
  int64_t arena_bytes() const;  ///< activations and scratch of all threads
  std::vector<PlanStep> plan() const;
  /// Seconds per step of one run, in plan order (instrumented, slower than run()). Resets
  /// sequences before and after.
  std::vector<double> time_steps(std::span<const float> input, std::span<float> output);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::engine
