// sluice bench for decoders: tokens per second in the terms of llama.cpp's llama-bench. ppN: a
// prompt of N tokens from an empty context, in blocks; tgN: N tokens one after another, each
// computed alone, from an empty context. Choosing tokens and tokenizing are not timed.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cli/verb.h"
#include "sluice/base/json_fwd.h"
#include "sluice/base/machine.h"

namespace sluice::cli {

struct DecoderBenchOptions {
  int64_t prompt = 512, generate = 128;  ///< tokens; 0: not measured
  std::vector<int> threads;
  int rounds = 7;
};

struct DecoderBenchRow {
  std::string model, path, test;  ///< "pp512"
  bool is_first = false;          ///< of the models: what ratios refer to
  int threads = 1;
  int64_t tokens = 0;
  std::vector<double> seconds;  ///< one a round
  double macs_per_token = 0;    ///< metered
  double bytes_per_token = 0;   ///< weights, cache and activations touched, metered
  int64_t parameters = 0, file_bytes = 0, state_bytes = 0, arena_bytes = 0;
  double rate() const;  ///< tokens per second, median
};

struct DecoderBench {
  Machine machine;
  std::string command;
  int rounds = 0;
  std::map<int, double> peak, bandwidth;  ///< by threads: f32 FLOP/s, bytes/s
  std::vector<DecoderBenchRow> rows;
};

/// Whether the model of that file continues texts.
bool is_decoder(const std::string& path);
/// All models in one interleaved run. Throws Error{limit} for a test longer than a context.
DecoderBench bench_decoders(const std::vector<std::string>& models,
                            const DecoderBenchOptions& options, const Globals& globals);
std::string decoder_bench_text(const DecoderBench& bench);
Json decoder_bench_json(const DecoderBench& bench);

}  // namespace sluice::cli
