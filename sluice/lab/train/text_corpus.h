// From a folder of text to a token file, for `sluice train` and recipes.
#pragma once
#include <cstdint>
#include <string>

#include "sluice/data/text/token_file.h"

namespace sluice::lab {

struct CorpusConfig {
  std::string text;  ///< folder or file; a bare name is looked up where scripts/data.sh puts texts
  std::string tokens;      ///< token file: read when it is of this text, else written
  double held_out = 0.05;  ///< share of the documents
  int64_t vocabulary = 4096;
  int64_t train_tokens = 0;     ///< at most; 0: all
  int64_t held_out_tokens = 0;  ///< at most; 0: all
};

/// The token file of `corpus`: opened when it is there and of the same texts and options, made
/// otherwise. Documents come in the order of their hashes, so that a limit takes an even part of
/// every source. Throws what reading, training the tokenizer and writing throw.
data::TokenFile prepare_tokens(const CorpusConfig& corpus);

/// The held-out documents, decoded, one after the other with an empty line between: for `sluice
/// eval
/// --text`. Throws Error{unsupported} in a build without tokenizers.
void write_held_out_text(const data::TokenFile& tokens, const std::string& path);

}  // namespace sluice::lab
