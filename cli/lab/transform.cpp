// sluice transform: passes over a model, one after another, with what each changed.
#include <CLI/CLI.hpp>

#include "cli/lab/lab_verb.h"
#include "cli/lab/text_samples.h"
#include "cli/output.h"
#include "sluice/base/config.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/progress.h"
#include "sluice/base/table.h"
#include "sluice/lab/model/graph_model.h"
#include "sluice/lab/pass/pass.h"
#include "sluice/lab/train/feed.h"

namespace sluice::cli {
namespace transform_verb {

constexpr int64_t kCalibrationSamples = 1000;
constexpr int64_t kProbeSamples = 64, kProbeTexts = 4;
constexpr int64_t kCalibrationTexts = 64;  // of the most tokens of one run

struct Options {
  std::string input, output, calibrate, format, layers;
  std::vector<std::string> passes;
  bool list = false;
};

struct PassCall {
  std::string name;
  Json options = Json::object();
};

/// "prune:rate=0.5,slots=stage0.**": commas inside brackets belong to the value.
PassCall parse_pass(const std::string& text) {
  PassCall call;
  const size_t colon = text.find(':');
  call.name = text.substr(0, colon);
  lab::find_pass(call.name);
  if (colon == std::string::npos) {
    return call;
  }
  int depth = 0;
  bool quoted = false;
  std::string part;
  const auto take = [&] {
    if (part.find('=') == std::string::npos) {
      fail(Code::usage, "--pass {}: '{}' is not key=value; see: sluice transform --list", text,
           part);
    }
    set_by_path(call.options, part);
    part.clear();
  };
  for (const char c : text.substr(colon + 1)) {
    quoted ^= c == '"';
    depth += quoted ? 0 : (c == '[' || c == '{') - (c == ']' || c == '}');
    if (c == ',' && depth == 0 && !quoted) {
      take();
    } else {
      part += c;
    }
  }
  take();
  return call;
}

/// --format and --layers: options of every pass in the list that has them and was not given others.
void add_option(std::vector<PassCall>& calls, const std::string& flag, const std::string& key,
                const std::string& value) {
  if (value.empty()) return;
  bool taken = false;
  for (PassCall& call : calls) {
    const std::string known = "\n" + lab::find_pass(call.name).info.options;
    if (known.find("\n" + key + "=") == std::string::npos) continue;
    taken = true;
    if (!call.options.contains(key)) call.options[key] = value;
  }
  if (!taken) {
    fail(Code::usage, "{} {}: none of the passes has the option '{}'; see: sluice transform --list",
         flag, value, key);
  }
}

struct Calibration {
  std::string data;  ///< "": what the model was trained on
  int64_t samples = 0;
};

/// DATASET, DATASET:SAMPLES or SAMPLES of the model's own.
Calibration parse_calibration(const std::string& text) {
  const auto is_count = [](const std::string& word) {
    return !word.empty() && word.size() < 10 &&
           word.find_first_not_of("0123456789") == std::string::npos;
  };
  const size_t colon = text.find(':');
  const bool bare = is_count(text);
  Calibration calibration;
  calibration.data = bare ? "" : text.substr(0, colon);
  if (bare || colon != std::string::npos) {
    const std::string count = bare ? text : text.substr(colon + 1);
    calibration.samples = is_count(count) ? std::stoll(count) : 0;
    if (calibration.samples == 0) {
      fail(Code::usage, "--calibrate {}: expected DATASET, DATASET:SAMPLES or SAMPLES", text);
    }
  }
  return calibration;
}

at::Tensor load_inputs(const Calibration& calibration, const lab::Model& model) {
  if (model.root->vocabulary() > 0) {
    return load_runs(calibration.data, model, calibration.samples, model.input_shape[0],
                     "--calibrate")
        .ids;
  }
  data::LoadOptions load;
  load.train_limit = calibration.samples;
  load.test_limit = 1;
  const data::ImageSet set = data::load_image_set(calibration.data, load);
  if (set.train.sample_shape != model.input_shape) {
    fail(Code::shape, "--calibrate {}: its samples are {}, the model takes {}", calibration.data,
         to_string(set.train.sample_shape), to_string(model.input_shape));
  }
  const lab::Feed feed(set.train, model.task.mean, model.task.std, c10::Device(c10::kCPU));
  return feed.range(0, feed.count()).inputs;
}

/// Inputs on which outputs are compared before and after a pass.
at::Tensor probe_inputs(const lab::Model& model, const at::Tensor& calibration) {
  if (calibration.defined()) {
    return calibration.narrow(0, 0, std::min<int64_t>(kProbeSamples, calibration.size(0)));
  }
  const bool text = model.root->vocabulary() > 0;
  return lab::probe_input(model, text ? kProbeTexts : kProbeSamples, 1);
}

at::Tensor outputs(lab::Model& model, const at::Tensor& inputs) {
  const torch::NoGradGuard no_grad;
  model.root->eval();
  lab::Context context;
  return model.forward(inputs, context);
}

std::string change(int64_t before, int64_t after, std::string (*format)(int64_t)) {
  if (before == after) {
    return format(after);
  }
  return fmt::format("{} -> {}", format(before), format(after));
}

/// What a pass says of each layer, {path: {key: number, ...}, ...}, and of those it left alone.
std::string layer_table(const Json& report) {
  std::string text;
  const Json left = report.value("left", Json::object());
  for (const auto& [path, reason] : left.items()) {
    text += fmt::format("{} stays as it is: {}\n", path, reason.get<std::string>());
  }
  const auto layers = report.find("layers");
  if (layers == report.end() || !layers->is_object() || layers->empty() ||
      !layers->front().is_object()) {
    return text;
  }
  std::vector<std::string> header = {"layer"};
  for (const auto& [key, value] : layers->front().items()) header.push_back(key);
  Table table(header);
  for (const auto& [path, facts] : layers->items()) {
    std::vector<std::string> row = {path};
    for (const auto& [key, value] : facts.items()) {
      row.push_back(value.is_number_float() ? fmt::format("{:.4f}", value.get<double>())
                                            : value.dump());
    }
    table.row(std::move(row));
  }
  return text + table.text();
}

std::string list_text() {
  Table table({"pass", "outputs", "calibration", "what it does"});
  std::string text;
  for (const lab::PassEntry* pass : lab::all_passes()) {
    table.row({pass->info.name, pass->info.keeps_function ? "kept" : "changed",
               pass->info.needs_calibration ? "needed" : "-", pass->info.summary});
  }
  text = table.text() + "\nOptions, as in --pass NAME:key=value,key=value\n";
  for (const lab::PassEntry* pass : lab::all_passes()) {
    text += fmt::format("\n{}\n", pass->info.name);
    size_t begin = 0;
    const std::string& lines = pass->info.options;
    if (lines.empty()) {
      text += "  (none)\n";
    }
    while (begin < lines.size()) {
      const size_t end = std::min(lines.find('\n', begin), lines.size());
      text += "  " + lines.substr(begin, end - begin) + "\n";
      begin = end + 1;
    }
  }
  return text;
}

int list(const Globals& globals) {
  if (!globals.json) {
    print(list_text());
    return kSuccess;
  }
  Json passes = Json::array();
  for (const lab::PassEntry* pass : lab::all_passes()) {
    passes.push_back({{"name", pass->info.name},
                      {"summary", pass->info.summary},
                      {"options", pass->info.options},
                      {"needs_calibration", pass->info.needs_calibration},
                      {"keeps_function", pass->info.keeps_function}});
  }
  print_json({{"passes", passes}});
  return kSuccess;
}

int transform(const Options& options, const Globals& globals) {
  if (options.list) {
    return list(globals);
  }
  if (options.input.empty() || options.output.empty() || options.passes.empty()) {
    fail(Code::usage,
         "{} is missing: sluice transform IN -o OUT --pass NAME. See: sluice transform --help",
         options.input.empty()    ? "the model (IN)"
         : options.output.empty() ? "the file to write (-o OUT)"
                                  : "what to do (--pass NAME)");
  }
  std::vector<PassCall> calls;
  bool needs_calibration = false;
  for (const std::string& text : options.passes) {
    calls.push_back(parse_pass(text));
    needs_calibration |= lab::find_pass(calls.back().name).info.needs_calibration;
  }
  add_option(calls, "--format", "format", options.format);
  add_option(calls, "--layers", "slots", options.layers);
  std::optional<Calibration> calibration;
  if (!options.calibrate.empty()) {
    calibration = parse_calibration(options.calibrate);
  }
  lab::Model model = lab::load_any_model(options.input);
  const bool of_text = model.root->vocabulary() > 0;
  if (calibration && calibration->samples == 0) {
    calibration->samples = of_text ? kCalibrationTexts : kCalibrationSamples;
  }
  prepare_output(options.output);
  if (calibration && calibration->data.empty()) {
    calibration->data = model.task.data;
    if (calibration->data.empty()) {
      fail(Code::usage, "--calibrate {}: {} does not say what it was trained on; name a data set",
           options.calibrate, options.input);
    }
  }
  if (!calibration && needs_calibration && !of_text && !model.task.data.empty()) {
    calibration = Calibration{model.task.data, of_text ? kCalibrationTexts : kCalibrationSamples};
    log_line(
        fmt::format("calibrating on {} training pictures of {}, which the model was trained "
                    "on; choose others with --calibrate",
                    calibration->samples, calibration->data));
  }
  lab::PassInput input;
  if (calibration) {
    input.calibration = load_inputs(*calibration, model);
  }
  const at::Tensor probe = probe_inputs(model, input.calibration);
  at::Tensor before = outputs(model, probe);

  Json rows = Json::array();
  Table table({"pass", "params", "MACs", "weights", "largest output change"});
  std::string notes;
  for (const PassCall& call : calls) {
    const Cost old = model.cost();
    input.options = call.options;
    model = lab::run_pass(model, call.name, input);
    const Cost now = model.cost();
    const at::Tensor after = outputs(model, probe);
    const double difference = (after - before).abs().max().item<double>();
    before = after;
    const Json report = model.provenance.empty()
                            ? Json::object()
                            : model.provenance.back().value("report", Json::object());
    table.row({call.name, change(old.params, now.params, format_count),
               change(old.macs, now.macs, format_count),
               change(old.weight_bytes, now.weight_bytes, format_bytes),
               fmt::format("{:.2g}", difference)});
    if (const std::string line = one_line(report); !line.empty()) {
      notes += fmt::format("{}: {}\n", call.name, line);
    }
    notes += layer_table(report);
    rows.push_back({{"pass", call.name},
                    {"options", call.options},
                    {"parameters", {{"before", old.params}, {"after", now.params}}},
                    {"macs", {{"before", old.macs}, {"after", now.macs}}},
                    {"weight_bytes", {{"before", old.weight_bytes}, {"after", now.weight_bytes}}},
                    {"largest_output_change", difference},
                    {"report", report}});
  }
  lab::save_bundle(model, options.output);
  if (globals.json) {
    print_json({{"input", options.input}, {"output", options.output}, {"passes", rows}});
    return kSuccess;
  }
  print(fmt::format("{}{}{}\nwrote {}\n", table.text(), notes.empty() ? "" : "\n", notes,
                    options.output));
  return kSuccess;
}

Action setup(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("IN", options->input, "A bundle written by sluice train, import or transform");
  app.add_option("-o,--output", options->output, "Bundle to write")->type_name("FILE");
  app.add_option("--pass", options->passes, "What to do; repeatable, in order")
      ->allow_extra_args(false)
      ->type_name("NAME[:key=value,...]");
  app.add_option("--calibrate", options->calibrate,
                 "Training pictures for passes that look at activations; a number alone: of the "
                 "data set that the model was trained on. For models of text: a text file, and how "
                 "many runs of it")
      ->type_name("DATASET[:N]|FILE[:N]|N");
  app.add_option("--format", options->format, "Weight format for quantize: i8, i4-32, binary, ...")
      ->type_name("FORMAT");
  app.add_option("--layers", options->layers, "Layers that the passes act on (their slots=)")
      ->type_name("PATTERN");
  app.add_flag("--list", options->list, "Show the passes and their options");
  return [options](const Globals& globals) {
    return with_libtorch(globals, [&] { return transform(*options, globals); });
  };
}

const bool registered = register_verb(
    {"transform", "Change a network, trained here or imported: prune, slice, fold, gate, quantize",
     "sluice transform model.safetensors -o small.safetensors --pass slice-channels "
     "--pass fold-norm\n"
     "sluice transform model.safetensors -o half.safetensors --pass "
     "prune:rate=0.5,granularity=channel\n"
     "sluice transform model.safetensors -o packed.safetensors --pass quantize "
     "--format i4-32 --layers 'fc*'\n"
     "sluice transform --list",
     setup});

}  // namespace transform_verb
}  // namespace sluice::cli
