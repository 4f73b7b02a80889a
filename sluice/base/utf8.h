// Which bytes are text.
#pragma once
#include <cstddef>
#include <string_view>

namespace sluice {

/// Bytes at the start of `text` that are whole characters of UTF-8 (RFC 3629: no overlong forms,
/// no surrogates, nothing above U+10FFFF); text.size() when all are.
size_t valid_utf8_prefix(std::string_view text);

}  // namespace sluice
