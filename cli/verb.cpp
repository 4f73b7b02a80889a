#include "cli/verb.h"

#include <algorithm>
#include <array>
#include <utility>

namespace sluice::cli {
namespace {

struct Known {
  const char* name;
  const char* group;
  const char* option;
};

// The order of --help, and what each verb needs.
constexpr std::array kKnown{
    Known{"quickstart", "training verbs", "-DSLUICE_LAB=ON"},
    Known{"train", "training verbs", "-DSLUICE_LAB=ON"},
    Known{"transform", "training verbs", "-DSLUICE_LAB=ON"},
    Known{"tune", "training verbs", "-DSLUICE_LAB=ON"},
    Known{"delta", "training verbs", "-DSLUICE_LAB=ON"},
    Known{"import", "", ""},
    Known{"inspect", "", ""},
    Known{"eval", "engine", "-DSLUICE_ENGINE=ON"},
    Known{"run", "engine", "-DSLUICE_ENGINE=ON"},
    Known{"bench", "engine", "-DSLUICE_ENGINE=ON"},
    Known{"reproduce", "training verbs", "-DSLUICE_LAB=ON"},
};

std::vector<Verb>& registry() {
  static std::vector<Verb> verbs;
  return verbs;
}

size_t rank(const std::string& name) {
  const auto found = std::find_if(kKnown.begin(), kKnown.end(),
                                  [&](const Known& known) { return name == known.name; });
  return static_cast<size_t>(found - kKnown.begin());
}

}  // namespace

bool register_verb(Verb verb) {
  registry().push_back(std::move(verb));
  return true;
}

std::vector<const Verb*> verbs() {
  std::vector<const Verb*> all;
  for (const Verb& verb : registry()) {
    all.push_back(&verb);
  }
  std::sort(all.begin(), all.end(), [](const Verb* a, const Verb* b) {
    return std::pair(rank(a->name), a->name) < std::pair(rank(b->name), b->name);
  });
  return all;
}

std::vector<AbsentVerb> absent_verbs() {
  std::vector<AbsentVerb> absent;
  for (const Known& known : kKnown) {
    const bool present = std::any_of(registry().begin(), registry().end(),
                                     [&](const Verb& verb) { return verb.name == known.name; });
    if (!present) {
      absent.push_back({known.name, known.group, known.option});
    }
  }
  return absent;
}

}  // namespace sluice::cli
