#include "sluice/data/emoji.h"

#include <algorithm>
#include <map>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/base/random.h"
#include "sluice/base/utf8.h"
#include "sluice/data/image.h"

namespace sluice::data {
namespace {

constexpr int64_t kSize = 32;
constexpr size_t kMostEmoji = 100000;

/// A name from the list that becomes part of a path: no folder, nothing hidden.
std::string picture_name(const Json& entry, const std::string& what) {
  const auto name = json_get<std::string>(entry, "image", what);
  const bool plain = name.size() < 200 && name.ends_with(".png") && name.front() != '.' &&
                     name.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz-.") == name.npos;
  if (!plain) fail(Code::format, "{}: '{}' is no name of a picture", what, printable(name, 80));
  return name;
}

void append(Split& split, const std::string& path, int64_t label) {
  Image image = read_image(path);
  if (image.channels != 3) {
    Image rgb{image.width, image.height, 3, {}};
    for (const uint8_t grey : image.pixels) rgb.pixels.insert(rgb.pixels.end(), 3, grey);
    image = std::move(rgb);
  }
  image = resize(image, kSize, kSize);
  for (size_t c = 0; c < 3; ++c) {
    for (size_t i = c; i < image.pixels.size(); i += 3) split.pixels.push_back(image.pixels[i]);
  }
  split.labels.push_back(label);
}

}  // namespace

ImageSet load_emoji(const std::string& directory) {
  const std::string list = directory + "/emoji.json";
  if (!file_exists(list)) {
    fail(Code::missing,
         "data set 'emoji': {} is not there; fetch it with: scripts/data.sh emoji (or set "
         "SLUICE_DATA to a directory that holds emoji/)",
         list);
  }
  const Json entries = read_json_file(list);
  if (!entries.is_array() || entries.size() > kMostEmoji) {
    fail(Code::format, "{}: expected a list of at most {} emoji", list, kMostEmoji);
  }
  std::map<std::string, int64_t> categories;
  for (size_t i = 0; i < entries.size(); ++i) {
    categories[json_get<std::string>(entries[i], "category", fmt::format("{}: {}", list, i))] = 0;
  }
  ImageSet set;
  set.name = "emoji";
  for (auto& [name, label] : categories) {
    label = static_cast<int64_t>(set.labels.size());
    set.labels.push_back(name);
  }
  set.train.sample_shape = set.test.sample_shape = {3, kSize, kSize};
  for (size_t i = 0; i < entries.size(); ++i) {
    const std::string what = fmt::format("{}: {}", list, i);
    const int64_t label = categories.at(json_get<std::string>(entries[i], "category", what));
    const auto code = json_get<std::string>(entries[i], "unified", what);
    Split& split = derive_seed(0, "emoji " + code) % 5 == 0 ? set.test : set.train;
    const std::string folder = directory + "/img/twitter/64/";
    append(split, folder + picture_name(entries[i], what), label);
    const Json variants = json_get_or<Json>(entries[i], "skin_variations", Json::object(), what);
    if (!variants.is_object()) fail(Code::format, "{}: 'skin_variations' is no object", what);
    for (const auto& [tone, variant] : variants.items()) {
      append(split, folder + picture_name(variant, what), label);
    }
  }
  return set;
}

}  // namespace sluice::data
