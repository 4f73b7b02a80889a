#if SLUICE_HAS_ENGINE
#include "cli/run_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/classes.h"
#include "cli/model_data.h"
#include "cli/output.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/bundle/size_choice.h"
#include "sluice/engine/text/embedder.h"

namespace sluice::cli {
namespace {

std::string numbers(const std::vector<float>& values) {
  std::string line;
  for (size_t i = 0; i < values.size(); ++i)
    line += fmt::format("{}{:.6g}", i ? " " : "", values[i]);
  return line + "\n";
}

ChosenSize size_for_texts(const engine::Network& network, const std::string& text,
                          const SizeBudget& size, const Globals& globals) {
  if (!size.wanted()) return choose_size(network.bundle(), size, {}, 1, "text");
  bundle::require_sizes(network.bundle().sizes(), network.bundle().path());
  engine::Session session(network, {.batch = 1, .threads = globals.threads, .sequences = true});
  const auto ids = engine::text_ids(network, text);
  const std::vector<float> input(ids.begin(), ids.end());
  const int64_t tokens = std::ssize(input);
  std::vector<float> output(static_cast<size_t>(numel(network.output_shape())));
  return choose_size(
      network.bundle(), size,
      [&](int64_t chosen, Meter* meter) {
        session.reset();
        session.run_tokens(input, output, {&tokens, 1}, {.meter = meter, .size = chosen});
      },
      1, "text");
}

}  // namespace

int run_texts(const engine::Network& network, const std::vector<std::string>& texts, int64_t top,
              const Budget& budget, const SizeBudget& size, const Globals& globals) {
  const bundle::Bundle& model = network.bundle();
  const std::string& kind = model.task().kind;
  const bool classifies = kind == "classify" && network.input_shape().size() == 1;
  if (kind == "generate")
    fail(Code::usage, "{} continues texts: give --prompt WORDS", model.path());
  if (kind != "embed" && !(classifies && !model.tokenizer_json().empty()))
    fail(Code::unsupported,
         "{}: expected a model that embeds or classifies text, found one of kind '{}'{}",
         model.path(), kind, classifies ? " without a tokenizer" : "");
  const ChosenSize chosen = size_for_texts(network, texts.front(), size, globals);
  const engine::EmbeddedTexts found = engine::embed_texts(
      network, texts, {.threads = globals.threads, .budget = &budget, .size = chosen.size});
  Json results = Json::array();
  std::string lines;
  for (size_t i = 0; i < texts.size(); ++i) {
    const engine::Embedding& text = found.texts[i];
    if (text.cut)
      log_line(fmt::format("text {}: {} tokens, cut to the {} that the model takes", i + 1,
                           text.tokens, network.input_shape()[0]));
    Json result = {{"text", texts[i]}, {"tokens", text.tokens}, {"cut", text.cut}};
    if (classifies) {
      const std::vector<Class> classes = classes_of(model, text.values, top);
      result["classes"] = classes_json(classes);
      lines += fmt::format("{}text {}\n{}", i ? "\n" : "", i + 1, classes_text(classes));
    } else {
      result["vector"] = text.values;
      lines += numbers(text.values);
    }
    results.push_back(std::move(result));
  }
  if (globals.json) {
    Json document = {{"model", model.path()},
                     {"results", results},
                     {"tokens", found.tokens},
                     {"macs", found.macs},
                     {"seconds", found.seconds}};
    if (chosen.size >= 0) document["budget"] = chosen.json();
    print_json(document);
  } else {
    print(lines);
    if (chosen.size >= 0)
      log_line(fmt::format("{}; {} MACs ran", chosen.text(), format_macs(double(found.macs))));
  }
  return kSuccess;
}

}  // namespace sluice::cli
#endif
