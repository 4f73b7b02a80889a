// Photographs by picture: for networks from pictures to pictures.
#pragma once
#include <string>
#include <vector>

#include "sluice/data/planes.h"

namespace sluice::data {

struct Photo {
  std::string name;
  Planes planes;  ///< three channels; grey pictures have three equal ones
};

/// Split by picture: crops of one photograph are all on one side.
struct PhotoSet {
  std::string name;
  std::vector<Photo> train, validation, test;
  std::vector<Photo> sequence;  ///< grey frames of one recorded sequence, a second test set
};

/// "photos": 22 pictures of scikit-image, scikit-learn and darknet, 16 to train with, flower and
/// eagle to validate, chelsea, china, coffee and horses to test, and 11 frames of ViSP's recorded
/// sequence mbt/cube (scripts/data.sh photos). "made": made here from seeds without any files, for
/// tests: edges, gradients and textures of 48 x 48 pixels. `directory` of photos: where the files
/// are; empty: $SLUICE_DATA/photos, then where the script puts them. Throws Error{missing} with the
/// command that fetches them, Error{usage} for another name.
PhotoSet load_photos(const std::string& name, const std::string& directory = "");

}  // namespace sluice::data
