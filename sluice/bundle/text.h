// Untrusted text: showing it safely, and reading it as JSON. Internal to bundle.
#pragma once
#include <string>
#include <string_view>

#include "sluice/base/json_fwd.h"
#include "sluice/base/utf8.h"

namespace sluice::bundle {

using sluice::is_plain_text;
using sluice::printable;

/// True for valid UTF-8, with control characters or without.
bool is_utf8(std::string_view text);

/// sluice::parse_json for text from a file: Error{limit} above `max_bytes`.
Json parse_document(std::string_view text, const std::string& what, size_t max_bytes,
                    int max_depth);

/// nlohmann's message without its prefix, made printable.
std::string json_problem(const char* message);

/// `text` as a JSON string with quotes; Error{usage} naming `what` when it is not UTF-8.
std::string json_quote(const std::string& text, std::string_view what);

}  // namespace sluice::bundle
