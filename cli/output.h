// Results go to stdout through these: a full disk is an error, a closed pipe (`| head`) is not.
#pragma once
#include <string_view>

#include "sluice/base/json_fwd.h"

namespace sluice::cli {

/// Writes and flushes. Throws Error{io} when stdout cannot take it; ends the process quietly when
/// its reader is gone.
void print(std::string_view text);
/// One document, indented, with a newline. Bytes that are not UTF-8 (file names) are replaced.
void print_json(const Json& document);

}  // namespace sluice::cli
