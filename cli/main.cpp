// sluice <verb>: parses, runs the verb, turns every failure into one line and an exit code (0 ok, 1
// failed, 2 usage).
#include <signal.h>

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "cli/output.h"
#include "cli/verb.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/base/progress.h"

namespace sluice::cli {
namespace {

using Arguments = std::vector<std::string>;

int report(Code code, std::string_view message, bool json) {
  if (json) {
    const Json document = {
        {"error", {{"code", code_name(code)}, {"message", std::string(message)}}}};
    try {
      print_json(document);
    } catch (const std::exception&) {
      // stdout itself is what failed: the line below says so
      std::fprintf(stderr, "sluice: error [%s]: %.*s\n", std::string(code_name(code)).c_str(),
                   static_cast<int>(message.size()), message.data());
    }
  } else {
    std::fprintf(stderr, "sluice: error [%s]: %.*s\n", std::string(code_name(code)).c_str(),
                 static_cast<int>(message.size()), message.data());
  }
  return code == Code::usage ? kUsage : kFailure;
}

/// LibTorch's exceptions carry a backtrace; people get the sentence before it.
std::string first_part(std::string_view what) {
  const size_t cut = std::min(what.find("Exception raised from"), what.find("\nframe #"));
  std::string text(what.substr(0, cut));
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (!text.empty() && text.back() == ' ') {
    text.pop_back();
  }
  return text;
}

bool has_flag(const Arguments& arguments, std::string_view flag) {
  const auto end = std::find(arguments.begin(), arguments.end(), "--");
  return std::find(arguments.begin(), end, flag) != end;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

std::string did_you_mean(const std::string& typed, const std::vector<std::string>& known) {
  const std::string nearest = nearest_name(typed, known);
  return nearest.empty() ? "" : fmt::format(" Did you mean '{}'?", nearest);
}

/// The first word that is not an option of sluice itself; "" when there is none.
std::string find_verb(const Arguments& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--threads") {
      ++i;
    } else if (!arguments[i].starts_with("-")) {
      return arguments[i];
    }
  }
  return "";
}

void require_known_verb(const std::string& name) {
  std::vector<std::string> names;
  for (const Verb* verb : verbs()) {
    if (verb->name == name) {
      return;
    }
    names.push_back(verb->name);
  }
  for (const AbsentVerb& absent : absent_verbs()) {
    if (absent.name == name) {
      fail(
          Code::unsupported,
          "this build has no {}, which '{}' belongs to; configure with {} (cmake --preset release)",
          absent.group, name, absent.option);
    }
  }
  fail(Code::usage, "unknown verb '{}'.{} Verbs: {}", name, did_you_mean(name, names), join(names));
}

/// CLI11 would say only that an argument was not expected.
void require_known_options(const CLI::App& verb, const Arguments& arguments) {
  std::vector<const CLI::App*> pages{&verb};
  for (const CLI::App* part : verb.get_subcommands(nullptr)) {
    if (std::find(arguments.begin(), arguments.end(), part->get_name()) != arguments.end()) {
      pages.push_back(part);
    }
  }
  std::vector<std::string> names;
  for (const CLI::App* page : pages) {
    for (const CLI::Option* option : page->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        names.push_back("--" + name);
      }
    }
  }
  const std::string page =
      pages.size() > 1 ? verb.get_name() + " " + pages.back()->get_name() : verb.get_name();
  for (const std::string& argument : arguments) {
    if (argument == "--") {
      return;
    }
    if (!argument.starts_with("--")) {
      continue;
    }
    const std::string name = argument.substr(0, argument.find('='));
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      fail(Code::usage, "unknown option '{}' of {}.{} See: sluice {} --help", name, page,
           did_you_mean(name, names), page);
    }
  }
}

std::string as_typed(const Arguments& arguments) {
  std::string text = "sluice";
  for (const std::string& argument : arguments) {
    const bool plain = !argument.empty() &&
                       argument.find_first_of(" \t\n\"'\\$`*?[]{}()<>|&;#~!") == std::string::npos;
    if (plain) {
      text += " " + argument;
      continue;
    }
    text += " '";
    for (const char c : argument) {
      text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    }
    text += "'";
  }
  return text;
}

void add_globals(CLI::App& app, Globals& globals, bool threads) {
  app.add_flag("--json", globals.json, "Print one JSON document instead of tables");
  app.add_flag("-q,--quiet", globals.quiet, "No progress on stderr");
  if (threads) {
    app.add_option("--threads", globals.threads, "Threads; 0: all cores of this process")
        ->check(CLI::Range(0, 1024))
        ->type_name("N");
  }
}

/// CLI11 prints the checks of a value into its name: "N:INT in [0 - 1024]". The name is enough.
class PageFormatter final : public CLI::Formatter {
 public:
  PageFormatter() { column_width(30); }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) {
      return "";  // a flag
    }
    const std::string type = option->get_type_name();
    size_t colon = type.find(':');
    while (colon != std::string::npos && colon > 0 && type[colon - 1] == '[') {
      colon = type.find(':', colon + 1);  // "NAME[:key=value]" means itself
    }
    const std::string name = type.substr(0, colon);
    std::string text;
    if (!option->get_positional()) {
      text += " " + name;
    }
    std::string fallback = option->get_default_str();
    if (fallback.starts_with('[') && fallback.ends_with(']')) {
      fallback = fallback.substr(1, fallback.size() - 2);
    }
    if (!fallback.empty()) {
      text += " [" + fallback + "]";
    }
    return text;
  }
};

std::string footer(const Verb& verb) {
  std::string text = "Example:\n";
  size_t begin = 0;
  while (begin < verb.examples.size()) {
    const size_t end = std::min(verb.examples.find('\n', begin), verb.examples.size());
    text += "  " + verb.examples.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  text.pop_back();
  return text;
}

int run(const Arguments& arguments) {
  Globals globals;
  globals.command = as_typed(arguments);
  CLI::App app("Sluice: neural networks that compute only what each input needs.", "sluice");
  app.set_help_flag("-h,--help", "Print this help");
  app.formatter(std::make_shared<PageFormatter>());
  app.get_formatter()->label("SUBCOMMAND", "VERB");
  add_globals(app, globals, true);
  bool version = false;
  app.add_flag("--version", version, "Print the version");
  app.require_subcommand(0, 1);
  app.footer(
      "Example:\n  sluice inspect model.safetensors\n\n"
      "Every verb has its own page: sluice VERB --help");

  const std::string name = find_verb(arguments);
  if (!name.empty()) {
    require_known_verb(name);
  }
  Action action;
  for (const Verb* verb : verbs()) {
    CLI::App* page = app.add_subcommand(verb->name, verb->summary)->group("Verbs");
    if (verb->name != name) {
      continue;
    }
    page->footer(footer(*verb));
    action = verb->setup(*page);
    add_globals(*page, globals, !verb->own_threads);
    for (CLI::App* part : page->get_subcommands(nullptr)) {
      add_globals(*part, globals, false);
    }
    const auto start = std::find(arguments.begin(), arguments.end(), name);
    require_known_options(*page, Arguments(start + 1, arguments.end()));
  }
  try {
    Arguments reversed(arguments.rbegin(), arguments.rend());
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    print(app.help() + "\n");
    return kSuccess;
  } catch (const CLI::ParseError& error) {
    const std::string page = name.empty() ? "sluice --help" : "sluice " + name + " --help";
    const std::string what = first_part(error.what());
    fail(Code::usage, "{}{} See: {}", what, what.ends_with('.') ? "" : ".", page);
  }
  if (version) {
    if (globals.json) {
      print_json({{"version", SLUICE_VERSION}});
    } else {
      print("sluice " SLUICE_VERSION "\n");
    }
    return kSuccess;
  }
  if (!action) {
    if (globals.json) {
      fail(Code::usage, "no verb given; see: sluice --help");
    }
    std::fputs((app.help() + "\n").c_str(), stderr);
    return kUsage;
  }
  if (globals.json || globals.quiet) {
    set_progress_style(ProgressStyle::quiet);
  }
  return action(globals);
}

}  // namespace
}  // namespace sluice::cli

int main(int argc, char** argv) {
  using namespace sluice;
  // A closed pipe or a file over its limit is an error of one write, not the end of the process.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
  const cli::Arguments arguments(argv + std::min(argc, 1), argv + argc);
  const bool json = cli::has_flag(arguments, "--json");
  try {
    return cli::run(arguments);
  } catch (const Error& error) {
    return cli::report(error.code(), error.what(), json);
  } catch (const std::bad_alloc&) {
    return cli::report(Code::limit, "out of memory; a smaller --batch needs less", json);
  } catch (const std::exception& error) {
    return cli::report(Code::internal, cli::first_part(error.what()), json);
  }
}
