// Any bytes as the CMU pronouncing dictionary: reading may only throw Error in one line of plain
// characters; the words that come out are written with a-z and ' and are there once, and their
// phonemes are known ones.
#include <cstdlib>
#include <cstring>
#include <set>
#include <string_view>

#include "fuzz/refusal.h"
#include "sluice/data/pronunciation.h"

using namespace sluice;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    std::set<std::string> words;
    for (const data::Pronunciation& entry : data::parse_cmudict(text, "input")) {
      if (entry.word.empty() || entry.word.front() < 'a' || entry.phonemes.empty() ||
          entry.word.find_first_not_of("abcdefghijklmnopqrstuvwxyz'") != std::string::npos ||
          !words.insert(entry.word).second)
        std::abort();
      for (const uint8_t phoneme : entry.phonemes) {
        if (phoneme >= data::cmu_phonemes().size()) std::abort();
      }
    }
  } catch (const Error& error) {
    if (error.code() != Code::format) std::abort();
    check_refusal(error);
  }
  return 0;
}
