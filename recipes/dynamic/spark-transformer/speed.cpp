#include "recipes/dynamic/spark-transformer/speed.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "recipes/engine_model.h"
#include "recipes/engine_race.h"
#include "sluice/base/machine.h"
#include "sluice/base/random.h"
#include "sluice/bundle/bundle.h"
#include "sluice/lab/brick/init.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#include "sluice/engine/kernel/select.h"
#endif

namespace sluice::recipes::spark_transformer {

#if SLUICE_HAS_ENGINE
namespace {

void measure_selection(RecipeRun& run, const SpeedSizes& sizes, uint64_t seed) {
  const auto n = static_cast<size_t>(sizes.neurons);
  const auto k = static_cast<size_t>(std::lround(sizes.keep * double(n)));
  std::vector<std::vector<float>> rows;
  for (uint64_t i = 0; i < 16; ++i)
    rows.push_back(normal_floats(sizes.neurons, 1.0, derive_seed(seed, "scores", i)));
  std::vector<int32_t> index(n);
  std::vector<float> sorted(n);
  size_t turn = 0;
  const auto scores = [&] {
    return engine::Scores{rows[turn++ % rows.size()].data(), n, engine::Rank::value, nullptr};
  };
  const std::vector<double> seconds = time_interleaved(
      {[&] { engine::select_statistical(scores(), sizes.keep, index.data()); },
       [&] {
         const engine::Scores s = scores();
         std::copy_n(s.x, n, sorted.begin());
         std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(k),
                          sorted.end(), std::greater<>());
         engine::select_above(s, sorted[k], index.data());
       },
       [&] { engine::select_top_k(scores(), k, index.data()); }},
      11);
  run.report.add("spark-ffn", "system", "selection_us", 1e6 * seconds[0]);
  run.report.add("spark-ffn", "system", "selection_share", seconds[0] / seconds[1]);
  run.report.add("spark-ffn", "system", "selection_share_of_bisection", seconds[0] / seconds[2]);
}

void measure_layer(RecipeRun& run, const SpeedSizes& sizes, uint64_t seed) {
  const int64_t d = sizes.width, neurons = sizes.neurons, split = d / 2;
  const int64_t inner = 2 * neurons / 3;  // 3 d inner = 2 d neurons parameters
  const std::vector<float> weight = normal_floats(neurons * d, 0.02, derive_seed(seed, "layer"));
  const auto part = [&](int64_t count) {
    return std::vector<float>(weight.begin(), weight.begin() + static_cast<std::ptrdiff_t>(count));
  };
  const int64_t copies = NetworkCopies::count_for(8.0 * double(neurons) * double(d), 6);
  NetworkCopies dense(copies, [&](bundle::Builder& builder) {
    const bundle::Value x = builder.input("x", {d});
    builder.tensor("gate", {inner, d}, part(inner * d));
    builder.tensor("up", {inner, d}, part(inner * d));
    builder.tensor("down", {d, inner}, part(d * inner));
    const bundle::Value gate = builder.node(
        "activation", "act", {builder.node("linear", "gate", {x}, {}, {{"weight", "gate"}})},
        {{"kind", std::string("gelu")}});
    const bundle::Value up = builder.node("linear", "up", {x}, {}, {{"weight", "up"}});
    const bundle::Value h = builder.node("mul", "mul", {gate, up});
    builder.output(builder.node("linear", "down", {h}, {}, {{"weight", "down"}}));
  });
  NetworkCopies spark(copies, [&](bundle::Builder& builder) {
    const bundle::Value x = builder.input("x", {d});
    builder.tensor("gate", {neurons, split}, part(neurons * split));
    builder.tensor("up", {neurons, d - split}, part(neurons * (d - split)));
    builder.tensor("down", {neurons, d}, weight);
    builder.output(builder.node("sparse_ffn", "ffn", {x},
                                {{"activation", std::string("gelu")},
                                 {"select", std::string("statistical")},
                                 {"keep", sizes.keep},
                                 {"soft", true},
                                 {"split", split}},
                                {{"gate", "gate"}, {"up", "up"}, {"down", "down"}}));
  });
  std::vector<std::vector<float>> inputs;
  for (uint64_t i = 0; i < 7; ++i)
    inputs.push_back(normal_floats(d, 1.0, derive_seed(seed, "layer input", i)));
  std::vector<float> y(static_cast<size_t>(d));
  size_t a = 0, b = 0;
  const std::vector<double> seconds =
      time_interleaved({[&] { dense.run(inputs[a++ % inputs.size()], y); },
                        [&] { spark.run(inputs[b++ % inputs.size()], y); }},
                       11);
  run.report.add("dense", "baseline", "ffn_us", 1e6 * seconds[0]);
  run.report.add("spark", "system", "ffn_us", 1e6 * seconds[1]);
  run.report.add("spark", "system", "ffn_speedup", seconds[0] / seconds[1]);
  run.report.notes.push_back(
      fmt::format("ffn_us: one token through a feed-forward layer of width {}, one thread, weights "
                  "from memory; dense: gated, {} neurons, as many parameters as Spark's {}",
                  d, inner, neurons));
}

/// One token of attention behind `positions` others, from memory.
class CachedAttention {
 public:
  CachedAttention(const SpeedSizes& sizes, bool spark, uint64_t seed)
      : positions_(sizes.positions) {
    const int64_t width = sizes.heads * sizes.head_dim;
    bundle::Builder builder;
    const bundle::Value x = builder.input("x", {kBlock, 3 * width});
    const auto part = [&](const char* name, int64_t index) {
      return builder.node("slice", name, {x}, {{"start", index * width}, {"size", width}});
    };
    const std::vector<bundle::Value> inputs = {part("q", 0), part("k", 1), part("v", 2)};
    bundle::Attributes attributes{{"heads", sizes.heads}, {"cache", positions_ + 1}};
    if (spark) {
      attributes["split"] = sizes.head_dim / 2;
      attributes["tokens"] = sizes.attended;
    }
    builder.output(
        builder.node(spark ? "spark_attention" : "attention", "attention", inputs, attributes));
    const std::vector<std::byte> bytes = builder.bytes();
    const engine::Network network(bundle::Bundle::parse(bytes, "attention", {}));
    session_ = std::make_unique<engine::Session>(
        network, engine::Session::Options{.batch = 1, .threads = 1, .sequences = true});
    out_.resize(static_cast<size_t>(kBlock * width));
    std::vector<float> rows;
    for (int64_t at = 0; at < positions_; at += kBlock) {
      rows = normal_floats(kBlock * 3 * width, 1.0,
                           derive_seed(seed, "rows", static_cast<uint64_t>(at)));
      run(rows, kBlock, nullptr);
    }
    token_.assign(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(3 * width));
  }
  void step(Meter* meter = nullptr) {
    run(token_, 1, meter);
    session_->rewind(0, positions_);
  }

 private:
  static constexpr int64_t kBlock = 64;
  void run(const std::vector<float>& rows, int64_t count, Meter* meter) {
    session_->run_tokens(rows, out_, {&count, 1}, {.meter = meter});
  }
  int64_t positions_;
  std::unique_ptr<engine::Session> session_;
  std::vector<float> out_, token_;
};

void measure_attention(RecipeRun& run, const SpeedSizes& sizes, uint64_t seed) {
  CachedAttention dense(sizes, false, derive_seed(seed, "attention")),
      spark(sizes, true, derive_seed(seed, "attention"));
  Meter dense_meter, spark_meter;
  dense.step(&dense_meter);
  spark.step(&spark_meter);
  const std::vector<double> seconds =
      time_interleaved({[&] { dense.step(); }, [&] { spark.step(); }}, 11);
  run.report.add("dense", "baseline", "attention_us", 1e6 * seconds[0]);
  run.report.add("spark", "system", "attention_us", 1e6 * seconds[1]);
  run.report.add("spark", "system", "attention_speedup", seconds[0] / seconds[1]);
  run.report.add("spark", "system", "attention_share",
                 double(spark_meter.macs()) / double(dense_meter.macs()));
  run.report.notes.push_back(fmt::format(
      "attention_us: one token behind {} others, {} heads of {}, about {} of them attended, one "
      "thread, keys and values from the cache, projections left out",
      sizes.positions, sizes.heads, sizes.head_dim, sizes.attended));
}

}  // namespace

void compare_with_engine(RecipeRun& run, const lab::Model& model, const at::Tensor& ids) {
  lab::Model copy = lab::clone(model);
  copy.root->to(at::kCPU);
  const auto network = in_engine(copy, run.options.work_directory + "/spark.safetensors");
  const at::Tensor one = ids.narrow(0, 0, 1).cpu(), floats = one.to(at::kFloat).contiguous();
  const at::NoGradGuard no_grad;
  Meter lab_meter, meter;
  lab::Context context;
  context.meter = &lab_meter;
  const at::Tensor expected = copy.forward(one, context)[0];
  engine::Session session(network, {.batch = 1, .threads = 1, .sequences = true});
  at::Tensor found = at::empty_like(expected);
  const int64_t tokens = one.size(1), classes = expected.size(1), count = 1;
  for (int64_t t = 0; t < tokens; ++t)
    session.run_tokens({floats.data_ptr<float>() + t, 1},
                       {found.data_ptr<float>() + t * classes, static_cast<size_t>(classes)},
                       {&count, 1}, {.meter = &meter});
  run.report.add("spark", "system", "engine_error",
                 (found - expected).norm().item<double>() / expected.norm().item<double>());
  run.report.add("spark", "system", "engine_macs", double(meter.macs()) / double(lab_meter.macs()));
}

void race_decoders(RecipeRun& run, const lab::Model& dense, const lab::Model& spark,
                   const at::Tensor& ids) {
  const std::string& folder = run.options.work_directory;
  const auto whole = in_engine(dense, folder + "/dense.safetensors"),
             sparse = in_engine(spark, folder + "/spark.safetensors");
  // As far behind as a text gets: attention has most to leave out there.
  race_decoding(run,
                {{.arm = "dense", .role = "baseline", .network = &whole},
                 {.arm = "spark", .role = "system", .network = &sparse}},
                ids, {.decoded = ids.size(1)});
}

void measure_spark_speed(RecipeRun& run, const SpeedSizes& sizes, uint64_t seed) {
  measure_selection(run, sizes, seed);
  measure_layer(run, sizes, seed);
  measure_attention(run, sizes, seed);
}

#else

void compare_with_engine(RecipeRun&, const lab::Model&, const at::Tensor&) {}

void race_decoders(RecipeRun&, const lab::Model&, const lab::Model&, const at::Tensor&) {}

void measure_spark_speed(RecipeRun& run, const SpeedSizes&, uint64_t) {
  run.report.notes.push_back("built without the engine: no times");
}

#endif

}  // namespace sluice::recipes::spark_transformer
