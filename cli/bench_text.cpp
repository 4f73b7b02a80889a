#if SLUICE_HAS_ENGINE
#include "cli/bench_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>

#include "cli/bench_json.h"
#include "cli/model_data.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/engine/graph/network.h"
#include "sluice/engine/text/text_model.h"

namespace sluice::cli {
namespace {

/// A decoder with ids to compute; which ones does not matter for the time of a dense network, but
/// routers and gates see varied rows.
class Decoder {
 public:
  Decoder(const engine::Network& network, int threads)
      : block_(network.input_shape()[0]),
        session_(network, {.batch = 1, .threads = threads, .sequences = true, .last_rows = 1}),
        logits_(static_cast<size_t>(network.output_shape().back())) {
    const int64_t vocabulary = engine::vocabulary_of(network);
    uint64_t state = 1;
    for (int64_t i = 0; i < 4096; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      ids_.push_back(static_cast<float>((state >> 33) % static_cast<uint64_t>(vocabulary)));
    }
  }

  /// `tokens` tokens in runs of at most `each`.
  void run(int64_t tokens, int64_t each, Meter* meter = nullptr) {
    session_.reset();
    for (int64_t first = 0; first < tokens; first += each) {
      const int64_t now = std::min(each, tokens - first);
      const int64_t last = first + now == tokens || each == 1 ? 1 : 0;
      input_.clear();
      for (int64_t i = first; i < first + now; ++i)
        input_.push_back(ids_[static_cast<size_t>(i) % ids_.size()]);
      session_.run_tokens(input_, logits_, {&now, 1}, {.meter = meter, .last = {&last, 1}});
    }
  }
  int64_t block() const { return block_; }
  const engine::Session& session() const { return session_; }

 private:
  int64_t block_;
  engine::Session session_;
  std::vector<float> ids_, input_, logits_;
};

struct Timed {
  std::function<void()> run;
  size_t row;
};

const DecoderBenchRow& reference_of(const DecoderBench& bench, const DecoderBenchRow& row) {
  return *std::ranges::find_if(bench.rows, [&](const DecoderBenchRow& other) {
    return other.is_first && other.test == row.test && other.threads == row.threads;
  });
}

std::vector<double> rates_of(const DecoderBenchRow& row) {
  std::vector<double> rates;
  for (const double s : row.seconds) rates.push_back(static_cast<double>(row.tokens) / s);
  return rates;
}

}  // namespace

double DecoderBenchRow::rate() const { return static_cast<double>(tokens) / median(seconds); }

bool is_decoder(const std::string& path) {
  return bundle::Bundle::open(path).task().kind == "generate";
}

DecoderBench bench_decoders(const std::vector<std::string>& models,
                            const DecoderBenchOptions& options, const Globals& globals) {
  DecoderBench bench;
  bench.machine = describe_machine();
  bench.command = globals.command;
  bench.rounds = options.rounds;
  std::vector<engine::Network> networks;
  for (const std::string& model : models) networks.push_back(engine::Network::open(model));
  std::vector<int> threads = options.threads;
  if (threads.empty()) threads = {globals.threads > 0 ? globals.threads : bench.machine.cores};
  Progress progress("bench", std::ssize(threads) * options.rounds, "rounds");
  int64_t done = 0;
  for (const int count : threads) {
    bench.peak[count] = measure_f32_peak(count);
    bench.bandwidth[count] = measure_read_bandwidth(count);
    std::vector<std::unique_ptr<Decoder>> decoders;
    std::vector<Timed> timed;
    for (size_t i = 0; i < networks.size(); ++i) {
      decoders.push_back(std::make_unique<Decoder>(networks[i], count));
      Decoder* decoder = decoders.back().get();
      for (const bool prompt : {true, false}) {
        const int64_t tokens = prompt ? options.prompt : options.generate;
        if (tokens == 0) continue;
        DecoderBenchRow row;
        row.test = fmt::format("{}{}", prompt ? "pp" : "tg", tokens);
        if (tokens > decoder->session().capacity()) {
          fail(Code::limit, "{}: the context is {} tokens; {} needs more. Choose a smaller --{}",
               models[i], decoder->session().capacity(), row.test, prompt ? "pp" : "tg");
        }
        row.model = short_name(models[i], models);
        row.path = models[i];
        row.is_first = i == 0;
        row.threads = count;
        row.tokens = tokens;
        row.parameters = networks[i].cost().params;
        row.file_bytes = static_cast<int64_t>(networks[i].bundle().file_bytes());
        row.state_bytes = decoder->session().state_bytes();
        row.arena_bytes = decoder->session().arena_bytes();
        const int64_t each = prompt ? decoder->block() : 1;
        Meter meter;
        decoder->run(tokens, each, &meter);  // warms up as well
        row.macs_per_token = static_cast<double>(meter.macs()) / static_cast<double>(tokens);
        row.bytes_per_token = static_cast<double>(meter.bytes()) / static_cast<double>(tokens);
        timed.push_back(
            {[decoder, tokens, each] { decoder->run(tokens, each); }, bench.rows.size()});
        bench.rows.push_back(std::move(row));
      }
    }
    for (int round = 0; round < options.rounds; ++round) {
      for (const Timed& t : timed) {
        const auto start = std::chrono::steady_clock::now();
        t.run();
        bench.rows[t.row].seconds.push_back(
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
      progress.update(++done, fmt::format("threads {}", count));
    }
  }
  progress.finish();
  return bench;
}

std::string decoder_bench_text(const DecoderBench& bench) {
  Table table({"model", "size", "params", "threads", "test", "tokens/s", "x first", "MACs/token",
               "bytes/token", "of bandwidth", "of peak"});
  for (const DecoderBenchRow& row : bench.rows) {
    const double rate = row.rate();
    table.row(
        {row.model, format_bytes(row.file_bytes), format_count(row.parameters),
         std::to_string(row.threads), row.test,
         fmt::format("{:.2f} ± {:.2f}", rate, stddev(rates_of(row))),
         fmt::format("{:.2f}", rate / reference_of(bench, row).rate()),
         format_macs(row.macs_per_token), format_bytes(std::llround(row.bytes_per_token)),
         fmt::format("{:.0f} %",
                     100 * rate * row.bytes_per_token / bench.bandwidth.at(row.threads)),
         fmt::format("{:.0f} %", 200 * rate * row.macs_per_token / bench.peak.at(row.threads))});
  }
  std::string text = table.text();
  text +=
      fmt::format("\n{}, {}, {} cores, {} memory; medians of {} interleaved rounds\n",
                  bench.machine.cpu.empty() ? "unknown CPU" : bench.machine.cpu, bench.machine.isa,
                  bench.machine.cores, format_bytes(bench.machine.memory_bytes), bench.rounds);
  for (const auto& [threads, peak] : bench.peak) {
    text += fmt::format("peak with {} thread{}: {:.0f} GFLOP/s f32, {:.1f} GB/s read (measured)\n",
                        threads, threads == 1 ? "" : "s", peak * 1e-9,
                        bench.bandwidth.at(threads) * 1e-9);
  }
  text +=
      "ppN: a prompt of N tokens; tgN: N tokens one by one; both from an empty context, as in "
      "llama-bench\n";
  return text;
}

Json decoder_bench_json(const DecoderBench& bench) {
  Json arms = Json::array();
  int most_threads = 1;
  for (const DecoderBenchRow& row : bench.rows) {
    most_threads = std::max(most_threads, row.threads);
    const double rate = row.rate();
    arms.push_back({{"name", fmt::format("{} {} threads {}", row.model, row.test, row.threads)},
                    {"role", row.is_first ? "baseline" : "system"},
                    {"model", row.path},
                    {"test", row.test},
                    {"threads", row.threads},
                    {"runtime", "sluice"},
                    {"metrics",
                     {{"tokens_per_second", samples_json(rates_of(row))},
                      {"seconds", samples_json(row.seconds)},
                      {"rate_ratio", value_json(rate / reference_of(bench, row).rate())},
                      {"macs_per_token", value_json(row.macs_per_token)},
                      {"bytes_per_token", value_json(row.bytes_per_token)},
                      {"share_of_bandwidth",
                       value_json(rate * row.bytes_per_token / bench.bandwidth.at(row.threads))},
                      {"share_of_peak",
                       value_json(2 * rate * row.macs_per_token / bench.peak.at(row.threads))},
                      {"parameters", value_json(static_cast<double>(row.parameters))},
                      {"file_bytes", value_json(static_cast<double>(row.file_bytes))},
                      {"cache_bytes", value_json(static_cast<double>(row.state_bytes))},
                      {"arena_bytes", value_json(static_cast<double>(row.arena_bytes))}}}});
  }
  return bench_report(
      "bench-decoders", bench.command, most_threads, std::move(arms),
      limits_json(bench.peak, bench.bandwidth),
      Json::array({fmt::format("medians of {} interleaved rounds; ppN, tgN as in llama-bench",
                               bench.rounds)}));
}

}  // namespace sluice::cli
#endif
