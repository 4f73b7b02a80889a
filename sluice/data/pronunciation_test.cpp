#include "sluice/data/pronunciation.h"

#include <gtest/gtest.h>

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"

namespace sluice::data {
namespace pronunciation_test {

std::string spoken(const Pronunciation& entry) {
  std::string result = entry.word + ":";
  for (const uint8_t phoneme : entry.phonemes) result += " " + cmu_phonemes()[phoneme];
  return result;
}

TEST(Pronunciation, TheFirstOfEveryPlainWord) {
  const auto found = parse_cmudict(
      ";;; a comment\n"
      "A  AH0\n"
      "A(1)  EY1\n"
      "A'S  EY1 Z\r\n"
      "\n"
      "A42128  EY1 F AO1 R\n"  // checked, not given
      "'BOUT  B AW1 T\n"       // begins with no letter
      "{BRACE  B R EY1 S\n"
      "ABACUS  AE1 B AH0 K AH0 S\n"
      "ABACUS  AE1 B\n"  // there already
      "ZH  ZH",
      "dict");
  ASSERT_EQ(found.size(), 4u);
  EXPECT_EQ(spoken(found[0]), "a: AH");
  EXPECT_EQ(spoken(found[1]), "a's: EY Z");
  EXPECT_EQ(spoken(found[2]), "abacus: AE B AH K AH S");
  EXPECT_EQ(spoken(found[3]), "zh: ZH");
  EXPECT_EQ(cmu_phonemes().size(), 39u);
}

TEST(Pronunciation, DamagedLinesAreNamed) {
  const auto refuse = [](const std::string& line, const std::string& words) {
    EXPECT_ERROR(parse_cmudict("OK  OW1 K EY1\n" + line + "\n", "dict"), Code::format, words);
  };
  refuse("WORD", "dict: line 2: expected a word, two spaces and phonemes, found 'WORD'");
  refuse("WORD W ER1 D", "expected a word, two spaces");
  refuse("  W ER1 D", "expected a word, two spaces");
  refuse("WORD  ", "'' is no phoneme");
  refuse("WORD  W  ER1 D", "'' is no phoneme");
  refuse("WORD  W ER1 D ", "'' is no phoneme");
  refuse("WORD  W ER1 QQ", "'QQ' is no phoneme");
  refuse("WORD  1", "'1' is no phoneme");
  refuse("WORD  W ER D", "'ER': expected vowels with a stress");
  refuse("WORD  W1 ER1 D", "'W1': expected vowels with a stress");
  refuse("WORD  W ER3 D", "'ER3': expected vowels with a stress");
  refuse("A WORD  W ER1 D", "'A WORD': a space in the word");
  refuse("{X  W \x1b[2J", "'\\x1b[2J' is no phoneme");  // also of words that are not given
  std::string endless = "WORD  W";
  for (int i = 0; i < 300; ++i) endless += " W";
  refuse(endless, "more than 200 phonemes");
  EXPECT_ERROR(parse_cmudict("", "dict"), Code::format, "no words");
  EXPECT_ERROR(parse_cmudict("1ST  F ER1 S T\n", "dict"), Code::format, "no words");
  EXPECT_ERROR(load_cmudict("/nowhere"), Code::missing, "scripts/data.sh cmudict");
}

TEST(Pronunciation, IsReadFromItsFolder) {
  const TempDirectory folder;
  make_directories(folder / "data");
  write_text_file(folder / "data/dict.txt", "WORD  W ER1 D\n");
  EXPECT_EQ(spoken(load_cmudict(folder.path()).at(0)), "word: W ER D");
}

}  // namespace pronunciation_test
}  // namespace sluice::data
