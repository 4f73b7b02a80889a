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

}  // namespace sluice::recipes
