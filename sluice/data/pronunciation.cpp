#include "sluice/data/pronunciation.h"

#include <algorithm>
#include <unordered_set>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/utf8.h"

namespace sluice::data {
namespace {

constexpr size_t kLargestFile = size_t{256} << 20;
constexpr size_t kMostPhonemes = 200;

bool is_vowel(std::string_view phoneme) {
  return std::string_view("AEIOU").find(phoneme.front()) != std::string_view::npos;
}

uint8_t phoneme_index(std::string_view token, const std::string& what) {
  const auto& known = cmu_phonemes();
  std::string_view name = token;
  if (!name.empty() && name.back() >= '0' && name.back() <= '9') name.remove_suffix(1);
  const auto found = std::lower_bound(known.begin(), known.end(), name);
  if (name.empty() || found == known.end() || *found != name)
    fail(Code::format, "{}: '{}' is no phoneme; expected one of AA to ZH", what,
         printable(token, 40));
  const bool stressed = name.size() < token.size();
  if (stressed != is_vowel(name) || (stressed && token.back() > '2'))
    fail(Code::format, "{}: '{}': expected vowels with a stress of 0, 1 or 2, consonants without",
         what, printable(token, 40));
  return static_cast<uint8_t>(found - known.begin());
}

/// "WORD(2)" without its number; whether it had one.
bool strip_variant(std::string_view& word) {
  if (word.size() < 4 || word.back() != ')') return false;
  const size_t open = word.rfind('(');
  if (open == std::string_view::npos || open == 0 || open + 2 > word.size() - 1) return false;
  const std::string_view digits = word.substr(open + 1, word.size() - open - 2);
  if (digits.find_first_not_of("0123456789") != std::string_view::npos) return false;
  word = word.substr(0, open);
  return true;
}

/// In small letters; empty for a word of other characters.
std::string plain_word(std::string_view word) {
  std::string result;
  for (const char c : word) {
    if (c >= 'A' && c <= 'Z') {
      result += static_cast<char>(c - 'A' + 'a');
    } else if (c == '\'' && !result.empty()) {
      result += c;
    } else {
      return "";
    }
  }
  return result;
}

std::vector<uint8_t> phonemes_of(std::string_view text, const std::string& what) {
  std::vector<uint8_t> result;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find(' ', at), text.size());
    result.push_back(phoneme_index(text.substr(at, end - at), what));
    if (result.size() > kMostPhonemes)
      fail(Code::format, "{}: more than {} phonemes", what, kMostPhonemes);
    at = end + 1;
  }
  return result;
}

}  // namespace

const std::vector<std::string>& cmu_phonemes() {
  static const std::vector<std::string> phonemes = {
      "AA", "AE", "AH", "AO", "AW", "AY", "B",  "CH", "D", "DH", "EH", "ER", "EY",
      "F",  "G",  "HH", "IH", "IY", "JH", "K",  "L",  "M", "N",  "NG", "OW", "OY",
      "P",  "R",  "S",  "SH", "T",  "TH", "UH", "UW", "V", "W",  "Y",  "Z",  "ZH"};
  return phonemes;
}

std::vector<Pronunciation> parse_cmudict(std::string_view text, const std::string& what) {
  std::vector<Pronunciation> result;
  std::unordered_set<std::string> seen;
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with(";;;")) continue;
    const std::string place = fmt::format("{}: line {}", what, number);
    const size_t gap = line.find("  ");
    if (gap == std::string_view::npos || gap == 0)
      fail(Code::format, "{}: expected a word, two spaces and phonemes, found '{}'", place,
           printable(line, 40));
    std::string_view word = line.substr(0, gap);
    if (word.find(' ') != std::string_view::npos)
      fail(Code::format, "{}: '{}': a space in the word", place, printable(word, 40));
    std::vector<uint8_t> phonemes = phonemes_of(line.substr(gap + 2), place);
    if (strip_variant(word)) continue;
    std::string plain = plain_word(word);
    if (!plain.empty() && seen.insert(plain).second)
      result.push_back({std::move(plain), std::move(phonemes)});
  }
  if (result.empty()) fail(Code::format, "{}: no words in it", what);
  return result;
}

std::vector<Pronunciation> load_cmudict(const std::string& directory) {
  const std::string path = directory + "/data/dict.txt";
  if (!file_exists(path)) {
    fail(Code::missing,
         "data set 'cmudict': {} is not there; fetch it with: scripts/data.sh cmudict (or set "
         "SLUICE_DATA to a directory that holds cmudict/)",
         path);
  }
  return parse_cmudict(read_text_file(path, kLargestFile), path);
}

}  // namespace sluice::data
