// sluice run: classify pictures and texts, embed texts, continue them.
#if SLUICE_HAS_ENGINE
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "cli/classes.h"
#include "cli/model_data.h"
#include "cli/output.h"
#include "cli/run_read.h"
#include "cli/run_text.h"
#include "cli/size_budget.h"
#include "cli/verb.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/data/image.h"
#include "sluice/engine/graph/network.h"

namespace sluice::cli {
namespace run_verb {

struct Options {
  std::string model;
  std::vector<std::string> images, texts;
  std::vector<int64_t> samples;
  DataChoice data;
  int64_t top = 3;
  bool invert = false;
  std::optional<int64_t> budget_macs;
  GenerateOptions generate;
  SizeBudget size;
};

/// The size that was asked for, by name or by what it may cost or take; else the largest that
/// --budget-macs allows, or -1.
ChosenSize size_for(const Options& options, const bundle::Bundle& bundle, const SizeProbe& probe) {
  ChosenSize chosen = choose_size(bundle, options.size, probe, 1, "picture");
  const auto& sizes = bundle.sizes();
  for (size_t i = 0; i < sizes.size() && options.budget_macs && options.size.size.empty() &&
                     !options.size.wanted();
       ++i)
    if (sizes[i].macs <= *options.budget_macs &&
        (chosen.size < 0 || sizes[i].macs >= sizes[static_cast<size_t>(chosen.size)].macs)) {
      chosen.size = static_cast<int64_t>(i);
      chosen.name = sizes[i].name;
    }
  return chosen;
}

struct Picture {
  std::string name;
  std::vector<float> input;
  std::optional<int64_t> label;
};

struct ImageShape {
  int64_t channels, height, width;
};

ImageShape image_shape(const engine::Network& network) {
  const Shape& shape = network.input_shape();
  if (shape.size() != 3 || (shape[0] != 1 && shape[0] != 3)) {
    fail(Code::shape, "{} takes inputs of {}, not pictures of 1 or 3 channels",
         network.bundle().path(), to_string(shape));
  }
  return {shape[0], shape[1], shape[2]};
}

Picture from_file(const std::string& path, const ImageShape& shape, const bundle::Task& task,
                  bool invert) {
  data::Image image = data::read_image(path);
  if (invert) {
    for (uint8_t& pixel : image.pixels) {
      pixel = static_cast<uint8_t>(255 - pixel);
    }
  }
  return {path,
          data::to_input(image, shape.channels, shape.height, shape.width, task.mean, task.std),
          std::nullopt};
}

Picture from_sample(const LabelledData& data, int64_t index, const engine::Network& network,
                    const bundle::Task& task, bool invert) {
  if (index >= data.split.count()) {
    fail(Code::usage, "--sample {}: the {} split of {} has samples 0 to {}", index, data.split_name,
         data.name, data.split.count() - 1);
  }
  if (data.split.sample_shape != network.input_shape()) {
    fail(Code::shape, "{} takes {}, the samples of {} are {}; choose other --data",
         network.bundle().path(), to_string(network.input_shape()), data.name,
         to_string(data.split.sample_shape));
  }
  Picture picture{fmt::format("{} {} sample {}", data.name, data.split_name, index),
                  {},
                  data.split.labels[static_cast<size_t>(index)]};
  for (const uint8_t pixel : data.split.sample(index)) {
    const double value = invert ? 255 - pixel : pixel;
    picture.input.push_back(static_cast<float>((value / 255 - task.mean) / task.std));
  }
  return picture;
}

int run_text(const Options& options, const Globals& globals) {
  const bool pictures = !options.images.empty() || !options.samples.empty();
  if (pictures || (options.generate.wanted() && !options.texts.empty()))
    fail(Code::usage, "give texts, prompts or pictures, not several. See: sluice run --help");
  Budget budget;
  budget.macs_per_sample = options.budget_macs;
  const auto network = engine::Network::open(options.model);
  GenerateOptions generating = options.generate;
  generating.size = options.size;
  return generating.wanted()
             ? generate(network, generating, budget, globals)
             : run_texts(network, options.texts, options.top, budget, options.size, globals);
}

int classify(const Options& options, const Globals& globals) {
  if (options.images.empty() == options.samples.empty()) {
    fail(Code::usage, "{} See: sluice run --help",
         options.images.empty() ? "nothing to do: give picture files, --sample N, --text WORDS or "
                                  "--prompt WORDS."
                                : "give picture files or --sample, not both.");
  }
  const engine::Network network = engine::Network::open(options.model);
  const bundle::Task& task = network.bundle().task();
  if (task.kind == "embed" || task.kind == "generate")
    fail(Code::usage, "{} takes text: give --{} WORDS", options.model,
         task.kind == "embed" ? "text" : "prompt");
  if (task.kind == "read") {
    if (options.images.empty())
      fail(Code::usage, "{} reads lines of text: give picture files", options.model);
    if (options.invert || !options.size.size.empty() || options.size.wanted())
      fail(Code::usage, "{} reads lines of text: {} is for other models", options.model,
           options.invert ? "--invert" : "choosing a size");
    Budget budget;
    budget.macs_per_sample = options.budget_macs;
    return read_lines(network, options.images, budget, globals);
  }
  std::vector<Picture> pictures;
  if (!options.images.empty()) {
    const ImageShape shape = image_shape(network);
    for (const std::string& path : options.images) {
      pictures.push_back(from_file(path, shape, task, options.invert));
    }
  } else {
    const LabelledData data = load_data(data_name(options.data, network.bundle()), options.data);
    for (const int64_t index : options.samples) {
      pictures.push_back(from_sample(data, index, network, task, options.invert));
    }
  }

  Meter meter;
  Budget budget;
  budget.macs_per_sample = options.budget_macs;
  engine::Session session(network, {.batch = 1, .threads = globals.threads});
  const size_t classes = static_cast<size_t>(numel(network.output_shape()));
  std::vector<float> trial(classes);
  const ChosenSize chosen = size_for(options, network.bundle(), [&](int64_t size, Meter* counting) {
    session.run(pictures.front().input, trial, {.meter = counting, .size = size});
  });
  const int64_t size = chosen.size;
  Json results = Json::array();
  std::string text;
  for (const Picture& picture : pictures) {
    std::vector<float> output(classes);
    meter.reset();
    session.run(picture.input, output, {.meter = &meter, .budget = &budget, .size = size});
    for (const float value : output) {
      if (!std::isfinite(value)) {
        fail(Code::numeric, "{}: the output for {} is not finite", options.model, picture.name);
      }
    }
    const std::vector<Class> found = classes_of(network.bundle(), output, options.top);
    const std::string macs = format_macs(static_cast<double>(meter.macs()));
    Json result = {
        {"picture", picture.name}, {"classes", classes_json(found)}, {"macs", meter.macs()}};
    text += fmt::format("{}{}\n{}", text.empty() ? "" : "\n", picture.name, classes_text(found));
    if (picture.label) {
      const bool correct = *picture.label == found[0].index;
      result["true"] = {{"index", *picture.label},
                        {"label", class_name(task.labels, *picture.label)},
                        {"correct", correct}};
      text += fmt::format("truth: {} ({})\n", class_name(task.labels, *picture.label),
                          correct ? "correct" : "wrong");
    }
    if (!chosen.name.empty()) result["size"] = chosen.name;
    text += fmt::format("{} MACs ran{}\n", macs,
                        chosen.name.empty() ? "" : fmt::format(", {}", chosen.text()));
    results.push_back(std::move(result));
  }
  if (globals.json) {
    Json document = {{"model", options.model}, {"results", results}};
    if (options.size.wanted()) document["budget"] = chosen.json();
    print_json(document);
  } else {
    print(text);
  }
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("MODEL", options->model, "A bundle")->required();
  app.add_option("IMAGE", options->images,
                 "Pictures (PNG, PGM, PPM), converted and resized to the model's input");
  app.add_option("--sample", options->samples,
                 "A sample of a data set instead of a file; repeatable")
      ->check(CLI::NonNegativeNumber)
      ->allow_extra_args(false)
      ->type_name("N");
  app.add_option("--text", options->texts,
                 "A text for a model that embeds or classifies: prints its vector or classes; "
                 "repeatable")
      ->allow_extra_args(false)
      ->type_name("WORDS");
  app.add_option("--data", options->data.name,
                 "Data set of --sample; by default the one the model was trained on")
      ->type_name("NAME");
  app.add_option("--data-dir", options->data.directory, "Where its files are")->type_name("DIR");
  app.add_option("--split", options->data.split, "test or train")
      ->check(CLI::IsMember({"test", "train"}))
      ->type_name("SPLIT")
      ->capture_default_str();
  app.add_option("--top", options->top, "Classes shown")
      ->check(CLI::Range(1, 1000))
      ->type_name("K")
      ->capture_default_str();
  app.add_flag("--invert", options->invert, "Dark on light becomes light on dark");
  app.add_option("--budget-macs", options->budget_macs,
                 "Refuse a model that needs more MACs per picture or text; a nested network runs "
                 "the largest size that stays inside")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  add_generate_options(app, options->generate);
  add_size_options(app, options->size, "picture, text or token");
  return [options](const Globals& globals) {
    return options->texts.empty() && !options->generate.wanted() ? classify(*options, globals)
                                                                 : run_text(*options, globals);
  };
}

const bool registered =
    register_verb({"run", "Classify pictures, read lines of text in them, embed or continue texts",
                   "sluice run model.safetensors shoe.png --top 3\n"
                   "sluice run model.safetensors --sample 7\n"
                   "sluice run nested.safetensors --sample 7 --size w50-d4\n"
                   "sluice run sizes.safetensors --sample 7 --budget 0.5\n"
                   "sluice run minilm.safetensors --text 'Hello there' --json\n"
                   "sluice run qwen.safetensors --prompt 'Once upon a time' "
                   "--temperature 0.8 --top-p 0.95\n"
                   "sluice run large.safetensors --prompt 'Once upon a time' --draft "
                   "small.safetensors",
                   setup});

}  // namespace run_verb
}  // namespace sluice::cli
#endif
