// Which bytes are text, and showing what a file holds without obeying it.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace sluice {

/// Bytes at the start of `text` that are whole characters of UTF-8 (RFC 3629: no overlong forms,
/// no surrogates, nothing above U+10FFFF); text.size() when all are.
size_t valid_utf8_prefix(std::string_view text);

/// True for valid UTF-8 without control characters and without marks that break or reorder lines.
bool is_plain_text(std::string_view text);

/// `text` for a message or a terminal: one line of valid UTF-8, control characters and broken bytes
/// as \xNN, at most about `max_bytes` bytes ("..." marks a cut).
std::string printable(std::string_view text, size_t max_bytes = 120);

}  // namespace sluice
