// A feed-forward block whose rows leave, over the percentage that stays, and an image network whose
// samples do: time should follow. Compare with kept = 100.
#include <benchmark/benchmark.h>

#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"

namespace sluice::engine {
namespace {

/// Norm, up, gelu, down for the tokens that stay, added to the stream.
void token_drop(benchmark::State& state) {
  const int64_t tokens = 256, width = 256;
  testing::NetworkBuilder net(1);
  const auto input = net.input({tokens, width + 1});
  const auto x = net.node("slice", "x", {input}, {{"size", width}}),
             keep = net.node("slice", "keep", {input}, {{"start", width}});
  auto y = net.node("layer_norm", "norm", {net.node("compact_rows", "compact", {x, keep})});
  y = net.linear("down", net.activation("gelu", net.linear("up", y, 4 * width), "gelu"), width);
  const auto model =
      net.finish(net.node("scatter_rows", "add", {x, y, keep}, {{"mode", std::string("add")}}));
  Session session(Network(model.bundle), {.batch = 1, .threads = static_cast<int>(state.range(1))});
  auto values = net.normal(static_cast<size_t>(tokens * (width + 1)), 1.0);
  for (int64_t t = 0; t < tokens; ++t) {
    const bool stays = t * state.range(0) / 100 != (t + 1) * state.range(0) / 100;
    values[static_cast<size_t>(t * (width + 1) + width)] = stays ? 1.0f : -1.0f;
  }
  std::vector<float> out(static_cast<size_t>(tokens * width));
  for (auto _ : state) session.run(values, out);
}
BENCHMARK(token_drop)
    ->ArgNames({"kept", "threads"})
    ->ArgsProduct({{100, 75, 50, 33, 25, 10, 5, 0}, {1, 2}})
    ->MinTime(0.1)
    ->UseRealTime();

/// Three stages; samples leave after the first.
void sample_exit(benchmark::State& state) {
  const int64_t batch = 64;
  testing::NetworkBuilder net(1);
  const auto input = net.input({1, 28, 28});
  auto x = net.activation("relu0", net.conv("conv0", input, 16, 3));
  const auto first = net.linear("head0", net.node("global_avg_pool", "pool0", {x}), 10);
  // The corner pixel decides.
  const auto keep =
      net.node("slice", "keep", {net.node("flatten", "flat", {input})}, {{"size", int64_t{1}}});
  x = net.node("compact_rows", "exit", {x, keep});
  for (const char* name : {"a", "b", "c", "d"})
    x = net.activation(std::string("relu") + name, net.conv(name, x, 32, 3));
  const auto last = net.linear("head", net.node("global_avg_pool", "pool", {x}), 10);
  const auto model = net.finish(net.node("scatter_rows", "join", {first, last, keep}));
  Session session(Network(model.bundle),
                  {.batch = batch, .threads = static_cast<int>(state.range(1))});
  auto values = net.normal(static_cast<size_t>(batch * 784), 1.0);
  for (int64_t s = 0; s < batch; ++s) {
    const bool stays = s * state.range(0) / 100 != (s + 1) * state.range(0) / 100;
    values[static_cast<size_t>(s * 784)] = stays ? 1.0f : -1.0f;
  }
  std::vector<float> out(static_cast<size_t>(batch * 10));
  for (auto _ : state) session.run(values, out);
}
BENCHMARK(sample_exit)
    ->ArgNames({"kept", "threads"})
    ->ArgsProduct({{100, 50, 25, 10, 0}, {1}})
    ->MinTime(0.1)
    ->UseRealTime();

}  // namespace
}  // namespace sluice::engine
