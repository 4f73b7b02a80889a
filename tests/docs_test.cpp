// The commands of the documentation exist: every `sluice VERB --option` of a code block is one the
// binary knows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <regex>
#include <sstream>

#include "tests/process.h"

namespace sluice::test {
namespace docs_test {

namespace fs = std::filesystem;

std::vector<fs::path> documents() {
  const fs::path root = SLUICE_SOURCE_DIR;
  std::vector<fs::path> found;
  for (const char* name : {"README.md", "CONTRIBUTING.md"}) {
    found.push_back(root / name);
  }
  for (const char* folder : {"docs", "recipes", "configs", "models"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (entry.path().extension() == ".md" || entry.path().extension() == ".toml") {
        found.push_back(entry.path());
      }
    }
  }
  return found;
}

TEST(Documentation, CommandsUseVerbsAndOptionsThatExist) {
  std::map<std::string, std::string> help;
  const std::regex command(R"(^[ #$]*(?:build/[a-z-]+/)?sluice ([a-z]+)((?: .*)?)$)");
  const std::regex option(R"( (--[a-z][a-z-]*))");
  for (const fs::path& path : documents()) {
    std::istringstream lines(read_bytes(path.string()));
    std::string line;
    bool code = path.extension() == ".toml";
    while (std::getline(lines, line)) {
      if (line.starts_with("```")) {
        code = !code;
        continue;
      }
      std::smatch match;
      if (!code || !std::regex_match(line, match, command)) {
        continue;
      }
      std::string verb = match[1];
      const std::string words = match[2];
      const auto page_of = [&](const Arguments& arguments) {
        const Finished finished = sluice(arguments);
        const bool other_build = finished.err.find("this build has no") != std::string::npos;
        EXPECT_TRUE(finished.exit_code == 0 || other_build) << path << ": " << line;
        return finished.out;
      };
      if (!help.contains(verb)) {
        help[verb] = page_of({verb, "--help"});
      }
      // A verb may have parts with pages of their own: "bench kernels".
      const size_t parts = help[verb].find("\nVerbs:\n");
      const std::string part = words.empty() ? "" : words.substr(1, words.find(' ', 1) - 1);
      if (parts != std::string::npos && !part.empty() &&
          help[verb].find("\n  " + part + " ", parts) != std::string::npos) {
        const std::string name = verb + " " + part;
        if (!help.contains(name)) {
          help[name] = page_of({verb, part, "--help"});
        }
        verb = name;
      }
      if (help[verb].empty()) {
        continue;
      }
      const std::string rest = match[2];
      for (std::sregex_iterator it(rest.begin(), rest.end(), option), end; it != end; ++it) {
        EXPECT_THAT(help[verb], testing::HasSubstr((*it)[1].str())) << path << ": " << line;
      }
    }
  }
}

TEST(Documentation, LinksToFilesOfThisRepositoryExist) {
  const std::regex link(R"(\]\(([^)#:]+)(?:#[^)]*)?\))");
  for (const fs::path& path : documents()) {
    if (path.extension() != ".md") {
      continue;
    }
    const std::string text = read_bytes(path.string());
    for (std::sregex_iterator it(text.begin(), text.end(), link), end; it != end; ++it) {
      EXPECT_TRUE(fs::exists(path.parent_path() / (*it)[1].str())) << path << " -> " << (*it)[1];
    }
  }
}

}  // namespace docs_test
}  // namespace sluice::test
