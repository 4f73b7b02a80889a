// Files compiled into the binary (embed.cmake). Internal to recipes.
#pragma once
#include <map>
#include <string>
#include <string_view>

namespace sluice::recipes {

/// recipes/catalogue.toml.
extern const std::string_view kCatalogueText;
/// Slug -> text of its recipe.toml.
const std::map<std::string, std::string_view>& embedded_recipes();

/// Commit the binary was built from, "-dirty" behind it when tracked sources differed, or
/// "unknown".
extern const std::string_view kBuildCommit;

}  // namespace sluice::recipes
