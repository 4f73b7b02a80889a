// sluice run --prompt: a decoder continues texts.
#if SLUICE_HAS_ENGINE
#include <fmt/core.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <iterator>
#include <optional>

#include "cli/model_data.h"
#include "cli/output.h"
#include "cli/run_text.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/engine/text/generator.h"
#include "sluice/engine/text/text_model.h"

namespace sluice::cli {
namespace {

constexpr size_t kLongestInput = size_t{256} << 20;
constexpr size_t kTrialTokens = 16;  // of a prompt, to see what sizes cost

struct Prompt {
  std::string name, text;
};

/// What a model says must not steer the terminal.
std::string for_terminal(std::string_view text) {
  static const bool terminal = isatty(STDOUT_FILENO) == 1;
  if (!terminal) return std::string(text);
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const bool c1 =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7F) {
      out += fmt::format("\\x{:02x}", c);
    } else if (c1) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[++i]));
    } else {
      out += text[i];
    }
  }
  return out;
}

std::vector<Prompt> prompts_of(const GenerateOptions& options) {
  std::vector<Prompt> prompts;
  for (const std::string& text : options.prompts) {
    engine::require_utf8(text, "--prompt");
    prompts.push_back({fmt::format("prompt {}", prompts.size() + 1), text});
  }
  for (const std::string& file : options.files) prompts.push_back({file, read_text(file)});
  return prompts;
}

/// Ids of a prompt, without the end that some templates put behind a text.
std::vector<int32_t> ids_of(const text::Tokenizer& tokenizer, const std::string& text) {
  text::Encoding encoding = tokenizer.encode(text, text::EncodeOptions{});
  size_t count = encoding.size();
  while (count > 0 && encoding.special[count - 1] &&
         std::any_of(encoding.special.begin(), encoding.special.begin() + std::ptrdiff_t(count),
                     [](uint8_t special) { return special == 0; }))
    --count;
  encoding.ids.resize(count);
  return encoding.ids;
}

/// Most bytes of this process that were resident, mapped files included.
int64_t peak_memory() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss * int64_t{1024} : 0;
}

void report(const engine::GenerationStatistics& s) {
  const int64_t rows = s.prompt_tokens + s.decoded_tokens;
  if (s.proposed > 0)
    log_line(fmt::format("draft: {} of {} proposed tokens were accepted ({:.0f} %)", s.accepted,
                         s.proposed, 100.0 * double(s.accepted) / double(s.proposed)));
  log_line(fmt::format(
      "prompt: {} tokens, {:.1f} tokens/s; then {} tokens, {:.1f} tokens/s; {} MACs a token ran, "
      "{} behind the prompt",
      s.prompt_tokens, s.prompt_rate(), s.decoded_tokens, s.decode_rate(),
      format_macs(static_cast<double>(s.macs) / static_cast<double>(std::max<int64_t>(1, rows))),
      format_macs(static_cast<double>(s.decode_macs) /
                  static_cast<double>(std::max<int64_t>(1, s.decoded_tokens)))));
}

Json to_json(const Prompt& prompt, const engine::Generated& result) {
  return {{"prompt", prompt.text},
          {"text", result.text},
          {"tokens", result.tokens},
          {"prompt_tokens", result.prompt_tokens},
          {"generated_tokens", result.tokens.size()},
          {"finish", std::string(engine::finish_name(result.finish))}};
}

}  // namespace

std::string read_text(const std::string& path) {
  std::string text;
  if (path == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (text.size() > kLongestInput)
      fail(Code::limit, "standard input: {} bytes; at most {} are read", text.size(),
           kLongestInput);
  } else {
    text = read_text_file(path, kLongestInput);
  }
  engine::require_utf8(text, path == "-" ? "standard input" : path);
  return text;
}

void add_generate_options(CLI::App& app, GenerateOptions& options) {
  app.add_option("--prompt", options.prompts,
                 "A text for a model that generates: prints how it goes on; repeatable")
      ->allow_extra_args(false)
      ->type_name("WORDS");
  app.add_option("--prompt-file", options.files, "A prompt in a file, - is stdin; repeatable")
      ->allow_extra_args(false)
      ->type_name("FILE");
  app.add_option("--max-tokens", options.max_tokens, "Most tokens behind a prompt")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--temperature", options.sampling.temperature,
                 "0 takes the most probable token, more spreads the choice")
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--top-k", options.sampling.top_k, "Choose among the K most probable; 0: all")
      ->type_name("K")
      ->capture_default_str();
  app.add_option("--top-p", options.sampling.top_p,
                 "Choose among the most probable that together reach P")
      ->type_name("P")
      ->capture_default_str();
  app.add_option("--min-p", options.sampling.min_p,
                 "Choose among those at least P times as probable as the best")
      ->type_name("P")
      ->capture_default_str();
  app.add_option("--repeat-penalty", options.sampling.repetition_penalty,
                 "Above 1 makes tokens that were there less probable")
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--seed", options.sampling.seed, "Of the random choices")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--stop", options.stop, "A text that ends generation; repeatable")
      ->allow_extra_args(false)
      ->type_name("WORDS");
  app.add_option("--draft", options.draft,
                 "A smaller bundle with the same tokenizer that proposes tokens, which the model "
                 "checks together: the same text in fewer runs")
      ->type_name("MODEL");
  app.add_option("--draft-size", options.draft_size,
                 "Propose with that size of a nested network: of --draft, or of the model itself")
      ->type_name("NAME");
  app.add_option("--draft-tokens", options.draft_tokens, "Most tokens proposed at a time")
      ->check(CLI::Range(1, 64))
      ->type_name("N")
      ->capture_default_str();
  app.add_flag("--draft-fixed", options.draft_fixed,
               "Always propose that many, instead of as many as pay by what was accepted so far");
  app.add_option("--prompt-size", options.prompt_size,
                 "Size that prompts are read with, where tokens behind them take another: exits "
                 "save a token at a time, so read prompts with the last size, dense")
      ->type_name("NAME");
  app.add_option("--batch", options.batch, "Most prompts computed together")
      ->check(CLI::Range(1, 1024))
      ->type_name("N")
      ->capture_default_str();
}

namespace {

/// -1 where none is asked for.
int64_t size_of(const engine::Network& network, const std::string& name) {
  const bundle::Bundle& model = network.bundle();
  return name.empty() ? -1 : bundle::find_size(model.sizes(), name, model.path());
}

/// The size for a budget, tried on the beginning of the first prompt, a token at a time.
ChosenSize size_for_prompt(const engine::Network& network, std::span<const int32_t> prompt,
                           const SizeBudget& budget, const Globals& globals) {
  if (!budget.wanted()) return choose_size(network.bundle(), budget, {}, 1, "token");
  bundle::require_sizes(network.bundle().sizes(), network.bundle().path());
  engine::Session session(
      network, {.batch = 1, .threads = globals.threads, .sequences = true, .last_rows = 1});
  const auto count = std::min<size_t>(
      {prompt.size(), kTrialTokens,
       static_cast<size_t>(std::min<int64_t>(session.capacity(), int64_t{1} << 20))});
  const std::vector<float> ids(prompt.begin(), prompt.begin() + std::ptrdiff_t(count));
  std::vector<float> logits(static_cast<size_t>(network.output_shape().back()));
  const int64_t one = 1;
  return choose_size(
      network.bundle(), budget,
      [&](int64_t size, Meter* meter) {
        session.reset();
        for (const float& id : ids)
          session.run_tokens({&id, 1}, logits, {&one, 1}, {.meter = meter, .size = size});
      },
      static_cast<double>(count), "token");
}

/// The network that proposes, if any.
std::optional<engine::Network> open_draft(const engine::Network& network,
                                          const GenerateOptions& options) {
  if (options.draft.empty())
    return options.draft_size.empty() ? std::nullopt : std::optional(network);
  auto draft = engine::Network::open(options.draft);
  if (draft.bundle().tokenizer_json() != network.bundle().tokenizer_json())
    fail(Code::usage, "--draft {}: its tokenizer is not that of {}; ids would mean other texts",
         options.draft, network.bundle().path());
  return draft;
}

}  // namespace

int generate(const engine::Network& network, const GenerateOptions& options, const Budget& budget,
             const Globals& globals) {
  const bundle::Bundle& model = network.bundle();
  if (model.task().kind != "generate")
    fail(Code::unsupported, "{}: expected a model that generates text, found one of kind '{}'",
         model.path(), model.task().kind);
  const text::Tokenizer tokenizer = engine::tokenizer_of(network);
  const std::vector<Prompt> prompts = prompts_of(options);
  std::vector<engine::GenerationRequest> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    requests.push_back({.prompt = ids_of(tokenizer, prompts[i].text),
                        .max_tokens = options.max_tokens,
                        .sampling = options.sampling,
                        .stop_tokens = {},
                        .stop = options.stop});
    requests.back().sampling.seed += i;
  }
  const std::optional<engine::Network> draft = open_draft(network, options);
  const ChosenSize chosen =
      size_for_prompt(network, requests.front().prompt, options.size, globals);
  const std::optional<int64_t> prompt_size =
      options.prompt_size.empty() ? std::nullopt
                                  : std::optional(size_of(network, options.prompt_size));
  engine::Generator generator(network, &tokenizer,
                              {.batch = std::min<int64_t>(options.batch, std::ssize(prompts)),
                               .threads = globals.threads,
                               .budget = budget,
                               .size = chosen.size,
                               .prompt_size = prompt_size,
                               .draft = draft ? &*draft : nullptr,
                               .draft_size = draft ? size_of(*draft, options.draft_size) : -1,
                               .draft_tokens = options.draft_tokens,
                               .adapt = !options.draft_fixed});
  // One text is shown as it comes; several would mix.
  const bool streams = prompts.size() == 1 && !globals.json;
  const auto results = generator.run(requests, [&](const engine::GeneratedPiece& piece) {
    if (streams && !piece.text.empty()) print(for_terminal(piece.text));
    return true;
  });
  const engine::GenerationStatistics& s = generator.statistics();
  if (globals.json) {
    Json texts = Json::array();
    for (size_t i = 0; i < results.size(); ++i) texts.push_back(to_json(prompts[i], results[i]));
    const int64_t rows = s.prompt_tokens + s.decoded_tokens;
    Json report = {
        {"model", model.path()},
        {"results", texts},
        {"prompt_tokens", s.prompt_tokens},
        {"prompt_tokens_per_second", s.prompt_rate()},
        {"decoded_tokens", s.decoded_tokens},
        {"decoded_tokens_per_second", s.decode_rate()},
        {"macs", s.macs},
        {"decode_macs_per_token", s.decoded_tokens > 0 ? s.decode_macs / s.decoded_tokens : 0},
        {"macs_per_token", rows > 0 ? s.macs / rows : 0},
        {"cache_bytes", generator.session().state_bytes()},
        {"arena_bytes", generator.session().arena_bytes()},
        {"peak_memory_bytes", peak_memory()}};
    if (chosen.size >= 0) report["budget"] = chosen.json();
    if (prompt_size) report["prompt_size"] = model.sizes()[static_cast<size_t>(*prompt_size)].name;
    if (draft) {
      report["draft"] = draft->bundle().path();
      report["proposed_tokens"] = s.proposed;
      report["accepted_tokens"] = s.accepted;
    }
    print_json(report);
    return kSuccess;
  }
  if (streams) {
    print("\n");
  } else {
    for (size_t i = 0; i < results.size(); ++i)
      print(fmt::format("{}{}:\n{}\n", i ? "\n" : "", prompts[i].name,
                        for_terminal(results[i].text)));
  }
  if (chosen.size >= 0) log_line(chosen.text());
  report(s);
  return kSuccess;
}

}  // namespace sluice::cli
#endif
