// Which systems exist, which of them have code, and their embedded settings.
#include "recipes/registry.h"

#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>

#include "recipes/embedded.h"
#include "sluice/base/config.h"
#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"

namespace sluice::recipes {
namespace {

std::map<std::string, RecipeFunction>& functions() {
  static std::map<std::string, RecipeFunction> table;  // filled while the program starts
  return table;
}

}  // namespace

bool register_recipe(const std::string& slug, RecipeFunction run) {
  if (!functions().emplace(slug, run).second)
    fail(Code::internal, "recipe '{}' is registered twice", slug);
  return true;
}

std::vector<std::string> runnable() {
  std::vector<std::string> out;
  for (const auto& [slug, run] : functions()) out.push_back(slug);
  return out;
}

const std::vector<CatalogueEntry>& catalogue() {
  static const std::vector<CatalogueEntry> entries = [] {
    std::vector<CatalogueEntry> out;
    const auto toml = parse_toml(kCatalogueText, "recipes/catalogue.toml");
    for (const auto& row : json_get<Json>(toml, "system", "recipes/catalogue.toml")) {
      auto text = [&](const char* key) {
        return json_get<std::string>(row, key, "recipes/catalogue.toml");
      };
      out.push_back({text("id"), text("slug"), text("family"), text("kind"), text("title")});
    }
    return out;
  }();
  return entries;
}

const CatalogueEntry* find_in_catalogue(const std::string& slug) {
  for (const auto& entry : catalogue())
    if (entry.slug == slug || entry.id == slug) return &entry;
  return nullptr;
}

RecipeFunction recipe_function(const std::string& slug) {
  const auto found = functions().find(slug);
  if (found != functions().end()) return found->second;
  if (const auto* entry = find_in_catalogue(slug))
    fail(Code::usage, "'{}' ({}) is in the catalogue but has no recipe yet; runnable: {}", slug,
         entry->id, fmt::join(runnable(), ", "));
  std::vector<std::string> names = runnable();
  for (const auto& entry : catalogue()) names.push_back(entry.slug);
  const auto near = nearest_name(slug, names);
  fail(Code::usage, "unknown system '{}'{}; runnable: {}", slug,
       near.empty() ? "" : ", did you mean '" + near + "'?", fmt::join(runnable(), ", "));
}

Json declared_settings(const std::string& slug) {
  const auto found = embedded_recipes().find(slug);
  if (found == embedded_recipes().end())
    fail(Code::internal, "recipe '{}' is registered but has no recipe.toml beside it", slug);
  const std::string what = slug + "/recipe.toml";
  auto toml = parse_toml(found->second, what);
  json_require_known_keys(toml, {"slug", "defaults", "scale", "bar", "control"}, what);
  if (const auto named = json_get_or<std::string>(toml, "slug", slug, what); named != slug)
    fail(Code::config, "{}: slug '{}' in the folder of '{}'", what, named, slug);
  return toml;
}

Json scale_settings(const Json& declared, const std::string& slug, const std::string& scale) {
  const std::string what = slug + "/recipe.toml";
  const auto scales = json_get<Json>(declared, "scale", what);
  if (!scales.contains(scale)) {
    std::vector<std::string> names;
    for (const auto& [name, value] : scales.items()) names.push_back(name);
    fail(Code::usage, "'{}' has no scale '{}'; it has: {}", slug, scale, fmt::join(names, ", "));
  }
  return merge_json(json_get_or(declared, "defaults", Json(Json::object()), what),
                    scales.at(scale));
}

}  // namespace sluice::recipes
