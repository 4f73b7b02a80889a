// tokenize_lines TOKENIZER.json [--special] [--offsets] [--decode] < records > ids
//
// For comparing with the reference library: each record is a 4-byte little-endian length and that
// many bytes of text; each gives a line of its ids, with --offsets a line of begin:end in bytes
// behind it, with --decode the decoded text as hex. With --repeat N nothing is printed but the
// speed.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/text/tokenizer.h"

using namespace sluice;

int main(int count, char** words) {
  text::EncodeOptions options;
  options.add_special_tokens = false;
  bool decode = false;
  int repeat = 0;
  if (count < 2) {
    std::fputs(
        "usage: tokenize_lines TOKENIZER.json [--special] [--offsets] [--decode] [--repeat N]\n",
        stderr);
    return 2;
  }
  for (int i = 2; i < count; ++i) {
    const std::string word = words[i];
    options.add_special_tokens |= word == "--special";
    options.offsets |= word == "--offsets";
    decode |= word == "--decode";
    if (word == "--repeat" && i + 1 < count) {
      repeat = std::atoi(words[++i]);
    }
  }
  try {
    const auto loading = std::chrono::steady_clock::now();
    const text::Tokenizer tokenizer = text::Tokenizer::open(words[1]);
    const auto seconds_since = [](auto start) {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    const double load_time = seconds_since(loading);
    std::vector<std::string> texts;
    unsigned char size[4];
    while (std::fread(size, 1, 4, stdin) == 4) {
      texts.emplace_back(
          size[0] | size[1] << 8 | size[2] << 16 | static_cast<size_t>(size[3]) << 24, '\0');
      if (std::fread(texts.back().data(), 1, texts.back().size(), stdin) != texts.back().size()) {
        std::fputs("tokenize_lines: the input ends within a record\n", stderr);
        return 1;
      }
    }
    for (int round = 0; round < repeat; ++round) {
      const auto start = std::chrono::steady_clock::now();
      size_t bytes = 0, tokens = 0;
      for (const std::string& text : texts) {
        tokens += tokenizer.encode(text, options).size();
        bytes += text.size();
      }
      const double seconds = seconds_since(start);
      std::printf("load %.3f s, %zu bytes, %zu tokens, %.3f s, %.1f MB/s\n", load_time, bytes,
                  tokens, seconds, static_cast<double>(bytes) * 1e-6 / seconds);
    }
    for (size_t i = 0; repeat == 0 && i < texts.size(); ++i) {
      const text::Encoding encoding = tokenizer.encode(texts[i], options);
      for (const int32_t id : encoding.ids) {
        std::printf("%d ", id);
      }
      std::puts("");
      if (options.offsets) {
        for (const text::ByteRange& range : encoding.offsets) {
          std::printf("%u:%u ", range.begin, range.end);
        }
        std::puts("");
      }
      if (decode) {
        for (const char c : tokenizer.decode(encoding.ids, false)) {
          std::printf("%02x", static_cast<unsigned char>(c));
        }
        std::puts("");
      }
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "tokenize_lines: %s\n", error.what());
    return 1;
  }
  return 0;
}
