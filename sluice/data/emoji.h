// The colour pictures of the npm package emoji-datasource-twitter, labelled with their category.
#pragma once
#include <string>

#include "sluice/data/dataset.h"

namespace sluice::data {

/// Reads `directory`/emoji.json and `directory`/img/twitter/64/*.png: RGB, transparent parts black,
/// scaled to 32 x 32. The package has no split: a fifth of the emoji, chosen by a hash of the code
/// point, is the test; skin-tone variants stay on the side of their emoji. Throws Error{missing}
/// with the command that fetches the files, Error{format} for a damaged list or picture.
ImageSet load_emoji(const std::string& directory);

}  // namespace sluice::data
