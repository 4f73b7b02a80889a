// Look-ups shared by the files of the recipe framework. Internal to recipes.
#pragma once
#include "recipes/recipe.h"

namespace sluice::recipes {

/// By slug or id; nullptr when unknown.
const CatalogueEntry* find_in_catalogue(const std::string& slug);
/// Throws Error{usage} naming the nearest system and those that can run.
RecipeFunction recipe_function(const std::string& slug);
/// The whole recipe.toml. Throws Error{config} for unknown tables.
Json declared_settings(const std::string& slug);
/// [scale.<scale>] over [defaults]. Throws Error{usage} naming the scales there are.
Json scale_settings(const Json& declared, const std::string& slug, const std::string& scale);

/// mean, sample standard deviation, count.
Json summarize(const Samples& samples, const std::string& what);

}  // namespace sluice::recipes
