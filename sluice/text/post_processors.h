// Post-processors: the special tokens around one or two encoded texts.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/text/encoding.h"

namespace sluice::text {

class PostProcessor {
 public:
  /// The text of a token, for trimming offsets.
  using TokenText = std::function<std::string_view(int32_t)>;
  virtual ~PostProcessor() = default;
  virtual int64_t added_tokens(bool pair) const = 0;
  /// Replaces the encodings of one or two texts by the parts of the result, in order.
  virtual void apply(std::vector<Encoding>& parts, bool add_special,
                     const TokenText& text) const = 0;
};

/// From the "post_processor" of a tokenizer.json: TemplateProcessing, BertProcessing,
/// RobertaProcessing, ByteLevel, Sequence. Throws Error{config, limit, unsupported} naming `what`.
std::unique_ptr<PostProcessor> make_post_processor(const Json& json, const std::string& what);

/// `before` A `after`, and for pairs `before` A `after` `before` B `after`: what GGUF files ask
/// for. -1: no token.
std::unique_ptr<PostProcessor> make_frame(int32_t before, int32_t after);

}  // namespace sluice::text
