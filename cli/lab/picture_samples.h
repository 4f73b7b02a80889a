// Folders of pictures as inputs of models, for tuning.
#pragma once
#include <string>

#include "cli/lab/text_samples.h"

namespace sluice::cli {

/// Up to `limit` PNG, PGM and PPM files of the folder, by name, as `model` takes them ([n, C, H,
/// W]; readers of lines keep a line's proportions). Throws Error{missing|usage} naming `option` for
/// a folder without any, Error{shape} for a model that takes no pictures, Error{limit} for more
/// than 4 GiB.
TextSamples load_pictures(const std::string& folder, const lab::Model& model, int64_t limit,
                          const std::string& option);

}  // namespace sluice::cli
