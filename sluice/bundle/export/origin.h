// What the provenance of an imported bundle remembers of its source, for the way back. Internal to
// export.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "sluice/base/json.h"
#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

struct Origin {
  std::string name;                  ///< of the folder or file; "" when it was not imported
  std::string architecture;          ///< class of transformers
  int64_t positions = 0;             ///< that the model was made for; 0: unknown
  bool f16 = false;                  ///< f32 tensors may have been f16
  std::optional<Json> config;        ///< config.json
  std::optional<Json> preprocessor;  ///< preprocessor_config.json
};
Origin find_origin(const Bundle& bundle);

/// An f32 matrix (or vector of one row) all of whose values f16 has, too.
bool is_exact_f16(const PackedMatrix& matrix);
bool is_exact_bf16(const PackedMatrix& matrix);

}  // namespace sluice::bundle
