// What every reader owes for input that it refuses.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "sluice/base/error.h"
#include "sluice/base/utf8.h"

namespace sluice {

/// Aborts, showing the message, unless it is one line of plain text and not a bug of ours.
inline void check_refusal(const Error& error) {
  if (error.what()[0] != '\0' && is_plain_text(error.what()) && error.code() != Code::internal)
    return;
  std::fprintf(stderr, "refused with %.*s: %s\n", static_cast<int>(code_name(error.code()).size()),
               code_name(error.code()).data(), error.what());
  std::abort();
}

}  // namespace sluice
