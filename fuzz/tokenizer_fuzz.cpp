// A tokenizer.json and, behind a zero byte, a text for it: reading may only throw Error; what reads
// encodes and decodes without trouble, ids are those of the vocabulary, and a stream gives the same
// text as decoding at once.
#include <cstdlib>
#include <cstring>
#include <string>

#include "fuzz/refusal.h"
#include "sluice/text/tokenizer.h"
#include "sluice/text/unicode.h"

using namespace sluice;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view whole(reinterpret_cast<const char*>(data), size);
  const size_t zero = whole.find('\0');
  const std::string_view input =
      zero == std::string_view::npos ? "Hello, wörld 12" : whole.substr(zero + 1);
  try {
    const text::Tokenizer tokenizer = text::Tokenizer::parse(whole.substr(0, zero), "input");
    text::EncodeOptions options;
    options.offsets = true;
    const text::Encoding encoding = tokenizer.encode(input, options);
    if (encoding.ids != tokenizer.encode(input) || encoding.offsets.size() != encoding.ids.size())
      std::abort();
    for (const text::ByteRange& range : encoding.offsets) {
      if (range.begin > range.end || range.end > input.size()) std::abort();
    }
    const std::string once = tokenizer.decode(encoding.ids, false);
    text::DecodeStream stream = tokenizer.stream(false);
    for (const int32_t id : encoding.ids) stream.push(id);
    stream.flush();
    if (valid_utf8_prefix(once) != once.size()) std::abort();
    tokenizer.encode_pair(input, "b");
  } catch (const Error& error) {
    check_refusal(error);
  }
  return 0;
}
