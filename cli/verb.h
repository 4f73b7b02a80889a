// A verb of the command line: one file each, registered at program start.
//
//   Action setup(CLI::App& app) {                       // declares options, returns what to do
//   with them
//     auto options = std::make_shared<Options>();
//     app.add_option("FILE", options->file)->required();
//     return [options](const Globals& globals) { ...; return kSuccess; };
//   }
//   const bool registered = register_verb({"inspect", "Show a file", "sluice inspect
//   model.safetensors", setup});
//
// Actions throw sluice::Error; main.cpp prints it and picks the exit code. stdout is for results
// (output.h), stderr for progress and messages.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace sluice::cli {

inline constexpr int kSuccess = 0, kFailure = 1, kUsage = 2;

/// Options every verb understands.
struct Globals {
  bool json = false;    ///< one JSON document on stdout, quiet stderr
  bool quiet = false;   ///< no progress
  int threads = 0;      ///< 0: all cores this process may use
  std::string command;  ///< as typed, for reports
};

/// Runs the verb after parsing; returns the exit code.
using Action = std::function<int(const Globals&)>;

struct Verb {
  std::string name;
  std::string summary;
  std::string examples;  ///< one command a line, shown at the end of --help
  Action (*setup)(CLI::App& app) = nullptr;
  bool own_threads = false;  ///< declares a --threads of its own
};

bool register_verb(Verb verb);
/// In the order of a user's work: quickstart, train, ... ; unlisted ones by name at the end.
std::vector<const Verb*> verbs();

/// What a user may type that this build was made without: {"train", "training verbs",
/// "-DSLUICE_LAB=ON"}.
struct AbsentVerb {
  std::string name, group, option;
};
std::vector<AbsentVerb> absent_verbs();

}  // namespace sluice::cli
