#if SLUICE_HAS_ENGINE
#include "cli/eval_text.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "cli/model_data.h"
#include "cli/output.h"
#include "cli/run_text.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/machine.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/data/retrieval.h"
#include "sluice/engine/graph/evaluate.h"
#include "sluice/engine/text/embedder.h"
#include "sluice/engine/text/perplexity.h"
#include "sluice/engine/text/retrieval.h"

namespace sluice::cli {
namespace {

using engine::Network;

constexpr int kRounds = 5;
constexpr int64_t kTimedTokens = 8, kMostTimed = 48;

/// What all rows end with.
void add_cost(Json& row, const Network& network) {
  row["parameters"] = network.cost().params;
  row["weight_bytes"] = network.cost().weight_bytes;
  row["file_bytes"] = network.bundle().file_bytes();
}

std::string file_cell(const Network& network) {
  return format_bytes(static_cast<int64_t>(network.bundle().file_bytes()));
}

/// The cells of a row, or of the header, with the column of shares where there are sizes.
std::vector<std::string> with_cost(const std::vector<double>& shares,
                                   std::vector<std::string> header) {
  if (!shares.empty()) header.insert(header.begin() + 1, "cost");
  return header;
}
std::vector<std::string> with_cost(const std::vector<double>& shares, size_t index,
                                   std::vector<std::string> cells) {
  if (!shares.empty()) cells.insert(cells.begin() + 1, fmt::format("{:.3f}", shares[index]));
  return cells;
}

void show(const Globals& globals, Json head, const Json& rows, const Table& table,
          const std::string& before, const std::string& after) {
  if (globals.json) {
    head["models"] = rows;
    print_json(head);
  } else {
    print(before + "\n\n" + table.text() + "\n" + after + "\n");
  }
}

/// Median seconds of `tokens` tokens, one run each (a decoder) or one run in all, the networks
/// interleaved; of the given ids, or of the same id again and again.
std::vector<double> time_tokens(const std::vector<Subject>& subjects, int64_t tokens, bool decode,
                                int threads, const std::vector<std::vector<float>>& ids = {}) {
  std::vector<std::unique_ptr<engine::Session>> sessions;
  std::vector<std::vector<float>> inputs, outputs;
  std::vector<std::function<void()>> functions;
  for (const Subject& subject : subjects) {
    const Network& network = subject.network;
    sessions.push_back(std::make_unique<engine::Session>(
        network,
        engine::Session::Options{
            .batch = 1, .threads = threads, .sequences = true, .last_rows = decode ? 1 : 0}));
    inputs.emplace_back(static_cast<size_t>(tokens), 1.0f);
    if (!ids.empty()) inputs.back() = ids[inputs.size() - 1];
    outputs.emplace_back(static_cast<size_t>(numel(network.output_shape())));
  }
  for (size_t i = 0; i < subjects.size(); ++i) {
    functions.push_back([&, i, tokens, decode] {
      engine::Session& session = *sessions[i];
      session.reset();
      const int64_t each = decode ? 1 : tokens;
      for (int64_t t = 0; t < tokens; t += each) {
        if (decode && session.position(0) == session.capacity()) session.reset();
        session.run_tokens(
            std::span(inputs[i]).subspan(static_cast<size_t>(t), static_cast<size_t>(each)),
            outputs[i], {&each, 1}, {.size = subjects[i].size});
      }
    });
  }
  return time_interleaved(functions, kRounds);
}

int evaluate_perplexity(const std::vector<Subject>& subjects, const EvalTextOptions& options,
                        const Budget& budget, const Globals& globals) {
  const std::string text = read_text(options.text);
  std::vector<engine::Perplexity> found;
  for (size_t i = 0; i < subjects.size(); ++i) {
    std::unique_ptr<Progress> progress;
    found.push_back(engine::perplexity(subjects[i].network, text,
                                       {.window = options.window,
                                        .stride = options.stride,
                                        .max_tokens = options.max_tokens,
                                        .threads = globals.threads,
                                        .budget = &budget,
                                        .size = subjects[i].size,
                                        .progress = [&](int64_t done, int64_t total) {
                                          if (!progress)
                                            progress = std::make_unique<Progress>(
                                                "eval " + subjects[i].model, total, "tokens");
                                          progress->update(done);
                                        }}));
  }
  // The text's own tokens are decoded: what gates skip depends on them.
  std::vector<std::vector<float>> ids;
  std::vector<double> costs;
  const bool many = options.curve.wanted || std::ranges::any_of(subjects, [](const Subject& each) {
                      return tokens_decide(each.network);
                    });
  int64_t timed = many ? kMostTimed : kTimedTokens;
  for (const Subject& subject : subjects) {
    ids.push_back(first_ids(subject.network, text));
    costs.push_back(decode_macs(subject, ids.back(), globals.threads));
    timed = std::min(timed, std::ssize(ids.back()));
  }
  const auto seconds = time_tokens(subjects, timed, true, globals.threads, ids);
  const std::vector<double> shares = shares_of(subjects, costs);
  Json rows = Json::array();
  Table table(with_cost(shares, {"model", "perplexity", "bits/byte", "tokens", "MACs/token",
                                 "tokens/s", "decode", "file"}));
  for (size_t i = 0; i < subjects.size(); ++i) {
    const engine::Perplexity& p = found[i];
    const double decode = seconds[i] / static_cast<double>(timed),
                 rate = static_cast<double>(p.computed) / p.seconds;
    Json row = {{"model", subjects[i].model},
                {"perplexity", p.per_token()},
                {"perplexity_per_byte", p.per_byte()},
                {"bits_per_byte", p.bits_per_byte()},
                {"nats", p.nats},
                {"tokens", p.tokens},
                {"bytes", p.bytes},
                {"window", p.window},
                {"stride", p.stride},
                {"computed_tokens", p.computed},
                {"macs_per_token", p.macs_per_token()},
                {"tokens_per_second", rate},
                {"decode_seconds_per_token", decode},
                {"decode_macs_per_token", costs[i]}};
    add_cost(row, subjects[i].network);
    rows.push_back(std::move(row));
    table.row(with_cost(shares, i,
                        {label_of(subjects, i), fmt::format("{:.3f}", p.per_token()),
                         fmt::format("{:.4f}", p.bits_per_byte()), std::to_string(p.tokens),
                         format_macs(p.macs_per_token()), fmt::format("{:.0f}", rate),
                         format_seconds(decode), file_cell(subjects[i].network)}));
  }
  finish_curve(
      options.curve, subjects, shares,
      {"perplexity", {"perplexity"}, "decode_seconds_per_token", "token", std::ssize(ids.front())},
      rows);
  show(
      globals, {{"text", options.text}, {"bytes", text.size()}}, rows, table,
      fmt::format("{}, {}; windows of {} tokens, {} apart", options.text,
                  format_bytes(static_cast<int64_t>(text.size())), found[0].window,
                  found[0].stride),
      std::string(
          "Perplexity: per token of the model's own tokenizer; bits per byte compare between "
          "tokenizers.\nMACs: metered. Decode: the text's first tokens one at a time, median of "
          "interleaved rounds.") +
          (shares.empty() ? ""
                          : "\nCost: MACs of the text's first tokens, one at a time, over those of "
                            "the largest size."));
  return kSuccess;
}

engine::EmbeddedTexts embed(const Subject& subject, const std::string& what,
                            const std::vector<std::string>& texts, const EvalTextOptions& options,
                            const Budget& budget, const Globals& globals) {
  Progress progress(fmt::format("{} of {}", what, subject.model), std::ssize(texts), "texts");
  engine::EmbeddedTexts found =
      engine::embed_texts(subject.network, texts,
                          {.batch = options.batch,
                           .threads = globals.threads,
                           .budget = &budget,
                           .size = subject.size,
                           .progress = [&](int64_t done) { progress.update(done); }});
  progress.finish();
  return found;
}

std::vector<float> values_of(const engine::EmbeddedTexts& texts) {
  std::vector<float> values;
  for (const engine::Embedding& text : texts.texts)
    values.insert(values.end(), text.values.begin(), text.values.end());
  return values;
}

int64_t cut_of(const engine::EmbeddedTexts& texts) {
  return std::ranges::count_if(texts.texts, [](const auto& text) { return text.cut; });
}

/// Tokens of a usual text, for timing.
int64_t usual_length(const engine::EmbeddedTexts& texts, const Network& network) {
  return std::clamp<int64_t>(texts.tokens / std::max<int64_t>(1, std::ssize(texts.texts)), 1,
                             network.input_shape()[0]);
}

int evaluate_retrieval(const std::vector<Subject>& subjects, const EvalTextOptions& options,
                       const Budget& budget, const Globals& globals) {
  const data::RetrievalSet set = data::read_retrieval_set(options.retrieval);
  std::vector<engine::Relevance> judgements;
  for (const data::RetrievalJudgement& j : set.judgements)
    judgements.push_back({j.query, j.document, static_cast<double>(j.grade)});
  struct Row {
    engine::RetrievalScores scores;
    engine::EmbeddedTexts documents, queries;
  };
  std::vector<Row> found;
  int64_t length = 1;
  for (size_t i = 0; i < subjects.size(); ++i) {
    const auto& network = subjects[i].network;
    if (network.bundle().task().kind != "embed")
      fail(Code::unsupported, "{}: expected a model that embeds text, found one of kind '{}'",
           subjects[i].model, network.bundle().task().kind);
    Row row;
    row.documents = embed(subjects[i], "documents", set.documents, options, budget, globals);
    row.queries = embed(subjects[i], "queries", set.queries, options, budget, globals);
    row.scores = engine::score_retrieval(values_of(row.queries), values_of(row.documents),
                                         network.output_shape()[0], judgements);
    length =
        i == 0 ? usual_length(row.documents, network) : std::min(length, network.input_shape()[0]);
    found.push_back(std::move(row));
  }
  const auto seconds = time_tokens(subjects, length, false, globals.threads);
  const double all_texts = static_cast<double>(set.documents.size() + set.queries.size());
  std::vector<double> costs;
  for (const Row& row : found)
    costs.push_back(static_cast<double>(row.documents.macs + row.queries.macs) / all_texts);
  const std::vector<double> shares = shares_of(subjects, costs);
  Json rows = Json::array();
  Table table(with_cost(shares, {"model", "nDCG@10", "recall@1", "recall@10", "MRR@10", "MACs/text",
                                 "texts/s", "latency", "file"}));
  for (size_t i = 0; i < subjects.size(); ++i) {
    const auto& [scores, documents, queries] = found[i];
    const double macs = costs[i], rate = all_texts / (documents.seconds + queries.seconds);
    Json row = {{"model", subjects[i].model},
                {"ndcg_at_10", scores.ndcg_at_10},
                {"recall_at_1", scores.recall_at_1},
                {"recall_at_10", scores.recall_at_10},
                {"recall_at_100", scores.recall_at_100},
                {"mrr_at_10", scores.mrr_at_10},
                {"queries", scores.queries},
                {"documents", scores.documents},
                {"cut_texts", cut_of(documents) + cut_of(queries)},
                {"macs_per_text", macs},
                {"texts_per_second", rate},
                {"latency_tokens", length},
                {"latency_seconds", seconds[i]}};
    add_cost(row, subjects[i].network);
    rows.push_back(std::move(row));
    table.row(with_cost(
        shares, i,
        {label_of(subjects, i), fmt::format("{:.4f}", scores.ndcg_at_10),
         fmt::format("{:.4f}", scores.recall_at_1), fmt::format("{:.4f}", scores.recall_at_10),
         fmt::format("{:.4f}", scores.mrr_at_10), format_macs(macs), fmt::format("{:.0f}", rate),
         format_seconds(seconds[i]), file_cell(subjects[i].network)}));
  }
  finish_curve(options.curve, subjects, shares,
               {"ndcg_at_10",
                {"ndcg_at_10", "recall_at_1", "recall_at_10", "mrr_at_10"},
                "latency_seconds",
                "text",
                static_cast<int64_t>(all_texts)},
               rows);
  show(globals, {{"retrieval", options.retrieval}}, rows, table,
       fmt::format("{}: {} documents, {} queries with an answer", options.retrieval,
                   set.documents.size(), found[0].scores.queries),
       fmt::format("Ranked by cosine. MACs: metered. Latency: one text of {} tokens, median of "
                   "interleaved rounds.",
                   length));
  return kSuccess;
}

int evaluate_labels(const std::vector<Subject>& subjects, const EvalTextOptions& options,
                    const Budget& budget, const Globals& globals) {
  const data::LabelledTexts set = data::read_labelled_texts(options.labelled);
  struct Row {
    double accuracy, loss;
    engine::EmbeddedTexts texts;
  };
  std::vector<Row> found;
  int64_t length = 1;
  for (size_t i = 0; i < subjects.size(); ++i) {
    const Network& network = subjects[i].network;
    const std::vector<std::string>& labels = network.bundle().task().labels;
    if (network.bundle().task().kind != "classify" || labels.empty())
      fail(Code::unsupported, "{}: expected a model that classifies and names its classes",
           subjects[i].model);
    std::vector<int64_t> truth;
    for (const std::string& label : set.labels) {
      const auto it = std::find(labels.begin(), labels.end(), label);
      if (it == labels.end())
        fail(Code::usage, "{}: label '{}' of text {} is no class of {}", options.labelled, label,
             truth.size() + 1, subjects[i].model);
      truth.push_back(it - labels.begin());
    }
    Row row{0, 0, embed(subjects[i], "texts", set.texts, options, budget, globals)};
    for (size_t t = 0; t < truth.size(); ++t) {
      std::vector<float> logits = row.texts.texts[t].values;
      row.accuracy += std::max_element(logits.begin(), logits.end()) - logits.begin() == truth[t];
      row.loss += engine::cross_entropy(logits, truth[t]);
    }
    row.accuracy /= static_cast<double>(truth.size());
    row.loss /= static_cast<double>(truth.size());
    length = i == 0 ? usual_length(row.texts, network) : std::min(length, network.input_shape()[0]);
    found.push_back(std::move(row));
  }
  const auto seconds = time_tokens(subjects, length, false, globals.threads);
  const double count = static_cast<double>(set.texts.size());
  std::vector<double> costs;
  for (const Row& row : found) costs.push_back(static_cast<double>(row.texts.macs) / count);
  const std::vector<double> shares = shares_of(subjects, costs);
  Json rows = Json::array();
  Table table(
      with_cost(shares, {"model", "accuracy", "loss", "MACs/text", "texts/s", "latency", "file"}));
  for (size_t i = 0; i < subjects.size(); ++i) {
    const double macs = costs[i], rate = count / found[i].texts.seconds;
    Json row = {{"model", subjects[i].model},
                {"accuracy", found[i].accuracy},
                {"loss", found[i].loss},
                {"texts", set.texts.size()},
                {"cut_texts", cut_of(found[i].texts)},
                {"macs_per_text", macs},
                {"texts_per_second", rate},
                {"latency_tokens", length},
                {"latency_seconds", seconds[i]}};
    add_cost(row, subjects[i].network);
    rows.push_back(std::move(row));
    table.row(with_cost(
        shares, i,
        {label_of(subjects, i), fmt::format("{:.2f} %", 100 * found[i].accuracy),
         fmt::format("{:.4f}", found[i].loss), format_macs(macs), fmt::format("{:.0f}", rate),
         format_seconds(seconds[i]), file_cell(subjects[i].network)}));
  }
  finish_curve(options.curve, subjects, shares,
               {"accuracy", {"accuracy", "loss"}, "latency_seconds", "text", std::ssize(set.texts)},
               rows);
  show(globals, {{"labelled", options.labelled}}, rows, table,
       fmt::format("{}: {} texts", options.labelled, set.texts.size()),
       fmt::format("MACs: metered. Latency: one text of {} tokens, median of interleaved rounds.",
                   length));
  return kSuccess;
}

}  // namespace

void add_eval_text_options(CLI::App& app, EvalTextOptions& options) {
  app.add_option("--text", options.text,
                 "Perplexity of decoders on the text of a file (- is stdin)")
      ->type_name("FILE");
  app.add_option("--retrieval", options.retrieval,
                 "Search with models that embed: a folder with corpus.jsonl, queries.jsonl and "
                 "qrels.tsv")
      ->type_name("DIR");
  app.add_option("--labelled", options.labelled,
                 "Accuracy of classifiers of text: a file of {\"text\": .., \"label\": ..} lines")
      ->type_name("FILE");
  app.add_option("--window", options.window,
                 "Most tokens that a prediction sees; 0: 1024, or the context where that is less")
      ->type_name("N");
  app.add_option("--stride", options.stride, "Tokens from window to window; 0: half a window")
      ->type_name("N");
  app.add_option("--max-tokens", options.max_tokens, "First N tokens of the text only; 0: all")
      ->type_name("N");
}

int evaluate_texts(const std::vector<std::string>& models, const EvalTextOptions& options,
                   std::optional<int64_t> budget_macs, const Globals& globals) {
  if (!options.text.empty() + !options.retrieval.empty() + !options.labelled.empty() > 1)
    fail(Code::usage, "give one of --text, --retrieval and --labelled. See: sluice eval --help");
  Budget budget;
  budget.macs_per_sample = budget_macs;
  const std::vector<Subject> subjects = subjects_of(models, options.curve);
  const auto evaluate = !options.text.empty()        ? evaluate_perplexity
                        : !options.retrieval.empty() ? evaluate_retrieval
                                                     : evaluate_labels;
  return evaluate(subjects, options, budget, globals);
}

}  // namespace sluice::cli
#endif
