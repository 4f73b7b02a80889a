// The depth sizes in the engine: one file, whose shallow sizes propose what the whole one checks.
#include <torch/types.h>

#include <cmath>
#include <set>

#include "recipes/elastic/sorted-llama/study.h"
#include "recipes/engine_model.h"
#include "sluice/base/error.h"
#include "sluice/base/machine.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/graph/network.h"
#include "sluice/engine/text/generator.h"
#endif

namespace sluice::recipes::sorted_llama {

#if SLUICE_HAS_ENGINE
namespace {

constexpr int64_t kMostTokens = 30;  // of an answer

std::vector<engine::GenerationRequest> requests_of(const Words& words, int64_t count) {
  std::vector<engine::GenerationRequest> requests;
  for (int64_t i = 0; i < std::min(count, std::ssize(words)); ++i) {
    engine::GenerationRequest request;
    request.prompt = prompt_of(words[static_cast<size_t>(i)]);
    request.max_tokens = kMostTokens;
    request.stop_tokens = {static_cast<int32_t>(kEnd)};
    requests.push_back(std::move(request));
  }
  return requests;
}

std::vector<std::vector<int32_t>> spoken(engine::Generator& generator,
                                         const std::vector<engine::GenerationRequest>& requests) {
  std::vector<std::vector<int32_t>> answers;
  for (engine::Generated& each : generator.run(requests)) answers.push_back(std::move(each.tokens));
  return answers;
}

/// Percent of the words whose decoded answer is the dictionary's.
double exact_match(const Words& words, const std::vector<std::vector<int32_t>>& answers) {
  double right = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    auto expected = answer_of(words[i]);
    expected.pop_back();  // the end is no part of what is generated
    right += answers[i] == expected ? 1 : 0;
  }
  return 100 * right / double(answers.size());
}

/// Sizes of the whole network in lab and engine: largest relative difference of logits, and of
/// metered MACs.
void measure_parity(RecipeRun& run, const lab::Model& soft, const engine::Network& network,
                    const Words& words) {
  const at::NoGradGuard no_grad;
  lab::Model model = lab::clone(soft);
  model.root->to(c10::kCPU);
  const int64_t tokens = network.input_shape()[0];
  std::vector<float> ids;
  for (const data::Pronunciation& word : words) {
    for (const int32_t id : prompt_of(word)) ids.push_back(static_cast<float>(id));
    if (std::ssize(ids) >= tokens) break;
  }
  ids.resize(static_cast<size_t>(tokens), 0.0f);
  const at::Tensor x = torch::tensor(ids).unsqueeze(0);
  engine::Session session(network, {.batch = 1, .threads = 1});
  double largest = 0, macs = 0;
  for (size_t i = 0; i < model.sizes.size(); ++i) {
    Meter in_lab, in_engine;
    lab::Context context;
    context.size = static_cast<int64_t>(i);
    context.meter = &in_lab;
    const at::Tensor expected = model.forward(x.to(at::kLong), context).contiguous();
    at::Tensor found = at::empty_like(expected);
    session.reset();
    session.run(ids, {found.data_ptr<float>(), static_cast<size_t>(found.numel())},
                {.meter = &in_engine, .size = context.size});
    largest = std::max(largest, ((found - expected).norm() / expected.norm()).item<double>());
    macs = std::max(macs, std::abs(double(in_lab.macs() - in_engine.macs())));
  }
  run.report.add("soft", "system", "engine_difference", largest);
  run.report.add("soft", "system", "meter_difference", macs);
}

engine::Generator::Options draft_options(const engine::Network& network, int64_t size,
                                         int64_t tokens) {
  return {.batch = 1, .threads = 1, .draft = &network, .draft_size = size, .draft_tokens = tokens};
}

/// Depth and number of proposals that are fastest on validation words.
std::pair<int64_t, int64_t> choose_draft(const Plan& plan, const engine::Network& network,
                                         const Words& words) {
  const auto requests = requests_of(words, std::min<int64_t>(plan.spoken_words, 64));
  std::vector<engine::Generator> generators;
  std::vector<std::pair<int64_t, int64_t>> choices;
  for (int64_t size = 0; size + 1 < std::ssize(plan.depths); ++size) {
    for (const int64_t tokens : plan.draft_tokens) {
      generators.emplace_back(network, nullptr, draft_options(network, size, tokens));
      choices.emplace_back(size, tokens);
    }
  }
  std::vector<std::function<void()>> calls;
  for (engine::Generator& generator : generators) calls.push_back([&] { generator.run(requests); });
  const auto seconds = time_interleaved(calls, 3);
  return choices[static_cast<size_t>(std::min_element(seconds.begin(), seconds.end()) -
                                     seconds.begin())];
}

void measure_drafts(RecipeRun& run, const Plan& plan, const engine::Network& network,
                    const Splits& words, bool timed) {
  const auto requests = requests_of(words.test, plan.spoken_words);
  const auto [size, tokens] = timed ? choose_draft(plan, network, words.validation)
                                    : std::pair(int64_t{0}, plan.draft_tokens.front());
  engine::Generator plain(network, nullptr, {.batch = 1, .threads = 1}),
      drafted(network, nullptr, draft_options(network, size, tokens));
  const auto expected = spoken(plain, requests), found = spoken(drafted, requests);
  double same = 0, spoken_tokens = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    same += found[i] == expected[i] ? 1 : 0;
    spoken_tokens += double(expected[i].size()) + 1;  // and the end
  }
  run.report.add("soft", "system", "draft_identical", same / double(found.size()));
  const engine::GenerationStatistics& s = drafted.statistics();
  run.report.add("soft", "system", "accepted_length",
                 double(s.accepted) / std::max<double>(1, double(s.decoded_tokens - s.accepted)));
  run.report.add("soft", "system", "draft_depth", double(plan.depths[static_cast<size_t>(size)]));
  run.report.add("soft", "system", "draft_tokens", double(tokens));
  if (!timed) return;
  const auto seconds =
      time_interleaved({[&] { plain.run(requests); }, [&] { drafted.run(requests); }}, 9);
  run.report.add("soft", "system", "greedy_tokens_per_second", spoken_tokens / seconds[0]);
  run.report.add("soft", "system", "draft_tokens_per_second", spoken_tokens / seconds[1]);
  run.report.add("soft", "system", "draft_speedup", seconds[0] / seconds[1]);
}

/// Answers of every depth size, and their speed.
void measure_sizes(RecipeRun& run, const Plan& plan, const engine::Network& network,
                   const Words& words, const Evaluation& soft, bool timed) {
  const auto requests = requests_of(words, std::ssize(words));
  double mismatch = 0;
  for (size_t i = 0; i < plan.depths.size(); ++i) {
    engine::Generator generator(network, nullptr, {.batch = 16, .size = static_cast<int64_t>(i)});
    const double decoded = exact_match(words, spoken(generator, requests));
    const double forced = soft.exact_match(soft.table.choice.select(1, static_cast<int64_t>(i)));
    mismatch = std::max(mismatch, std::abs(decoded - forced));
  }
  run.report.add("soft", "system", "decoding_mismatch", mismatch);
  if (!timed) return;
  const auto few = requests_of(words, std::min<int64_t>(plan.spoken_words, 64));
  std::vector<engine::Generator> generators;
  std::vector<std::function<void()>> calls;
  for (size_t i = 0; i < plan.depths.size(); ++i)
    generators.emplace_back(
        network, nullptr,
        engine::Generator::Options{.batch = 1, .threads = 1, .size = static_cast<int64_t>(i)});
  for (engine::Generator& generator : generators) calls.push_back([&] { generator.run(few); });
  const auto seconds = time_interleaved(calls, 5);
  for (size_t i = 0; i < plan.depths.size(); ++i) {
    const engine::GenerationStatistics& s = generators[i].statistics();
    run.report.add("soft", "system", fmt::format("tokens_per_second_d{}", plan.depths[i]),
                   double(s.decoded_tokens + std::ssize(few)) / seconds[i]);
  }
}

}  // namespace

void measure_engine(RecipeRun& run, const Plan& plan, Study& study, const Evaluation& soft,
                    bool timed) {
  const engine::Network network =
      in_engine(study.soft, run.options.work_directory + "/soft.safetensors");
  measure_parity(run, study.soft, network, study.words.test);
  measure_sizes(run, plan, network, study.words.test, soft, timed);
  measure_drafts(run, plan, network, study.words, timed);
}

#else

void measure_engine(RecipeRun& run, const Plan&, Study&, const Evaluation&, bool) {
  run.report.notes.push_back("built without the engine: no drafts, no times");
}

#endif

}  // namespace sluice::recipes::sorted_llama
