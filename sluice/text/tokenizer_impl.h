// The parts of a tokenizer; for the .cpp files of this folder.
#pragma once
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "sluice/text/added_tokens.h"
#include "sluice/text/decoders.h"
#include "sluice/text/model.h"
#include "sluice/text/normalizers.h"
#include "sluice/text/post_processors.h"
#include "sluice/text/pre_tokenizers.h"
#include "sluice/text/tokenizer.h"

namespace sluice::text {

struct Tokenizer::Impl {
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<Model> model;
  std::unique_ptr<PostProcessor> post_processor;
  std::unique_ptr<Decoder> decoder;
  AddedTokens added;
  std::optional<Truncation> truncation;
  std::optional<Padding> padding;

  /// Everything one encoding needs; kept for the next one.
  struct Workspace {
    Scratch scratch;
    ModelScratch model;
    WordCache cache;
    std::vector<Slice> slices, words;
    std::vector<Token> tokens;
    std::vector<int32_t> ids;
    std::string mapped;
  };
  std::unique_ptr<Workspace> take() const;
  void give_back(std::unique_ptr<Workspace> workspace) const;

  void encode_text(std::string_view text, bool offsets, Workspace& workspace, Encoding& out) const;
  Encoding finish(std::vector<Encoding> parts, const EncodeOptions& options) const;
  void pad(Encoding& encoding, int64_t length) const;
  int64_t padded_length(int64_t longest) const;
  std::optional<std::string_view> token_text(int32_t id) const;
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

 private:
  void word_ids(std::string_view word, bool map_bytes, Workspace& workspace,
                std::vector<int32_t>& out) const;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace sluice::text
