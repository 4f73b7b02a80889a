// What networks for text have in common: ids [T] in, a tokenizer in the file.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/engine/graph/network.h"
#include "sluice/text/tokenizer.h"

namespace sluice::engine {

/// Ids that the network takes: the rows of the embedding behind its input. Throws
/// Error{unsupported} for a network that does not begin with one.
int64_t vocabulary_of(const Network& network);

/// The tokenizer of the file. Throws Error{missing} when there is none, Error{shape} when it has
/// ids that the network does not take, and as Tokenizer::parse.
text::Tokenizer tokenizer_of(const Network& network);

/// Throws Error{format} naming `what` and the byte where text stops being UTF-8.
void require_utf8(std::string_view text, const std::string& what);

}  // namespace sluice::engine
