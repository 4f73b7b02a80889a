#include "sluice/data/text/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/data/text/documents.h"

namespace sluice::data {
namespace token_file_test {

using ::testing::ElementsAre;

TokenWriter writer_of(int64_t vocabulary) {
  TokenWriter writer({.vocabulary = vocabulary,
                      .separator = 0,
                      .tokenizer_json = "{\"a\":\"\\u00e9\"}",
                      .source = "three texts",
                      .fingerprint = 0x0123456789abcdefu});
  writer.add(TextSplit::train, std::vector<int32_t>{5, 6}, 10, "a");
  writer.add(TextSplit::held_out, std::vector<int32_t>{7}, 4, "b");
  writer.add(TextSplit::train, std::vector<int32_t>{static_cast<int32_t>(vocabulary - 1)}, 3, "c");
  return writer;
}

std::vector<int64_t> all(const TokenFile& file, TextSplit split) {
  std::vector<int64_t> ids(static_cast<size_t>(file.count(split)));
  file.read(split, 0, ids);
  return ids;
}

TEST(TokenFile, GivesBackWhatWasWrittenInTwoAndInFourBytes) {
  for (const int64_t vocabulary : {int64_t{65536}, int64_t{65537}}) {
    const TempDirectory temp;
    writer_of(vocabulary).write(temp / "t");
    const TokenFile file = TokenFile::open(temp / "t");
    EXPECT_THAT(all(file, TextSplit::train), ElementsAre(0, 5, 6, 0, vocabulary - 1));
    EXPECT_THAT(all(file, TextSplit::held_out), ElementsAre(0, 7));
    EXPECT_EQ(file.info().tokenizer_json, "{\"a\":\"\\u00e9\"}");
    EXPECT_EQ(file.info().source, "three texts");
    EXPECT_EQ(file.info().fingerprint, 0x0123456789abcdefu);
    EXPECT_EQ(file.info().train_documents, 2);
    EXPECT_EQ(file.info().train_bytes, 13);
    EXPECT_EQ(file.info().held_out_bytes, 4);
    std::vector<int64_t> one(1);
    file.read(TextSplit::train, 4, one);
    EXPECT_EQ(one[0], vocabulary - 1);
    EXPECT_ERROR(file.read(TextSplit::train, 5, one), Code::usage, "ids [5, 6) of 5");
    EXPECT_ERROR(file.read(TextSplit::held_out, -1, one), Code::usage, "of 2");
  }
}

TEST(TokenFile, RefusesIdsOutsideTheVocabularyWhenWriting) {
  TokenWriter writer({.vocabulary = 4});
  EXPECT_ERROR(writer.add(TextSplit::train, std::vector<int32_t>{1, 4}, 2, "x.txt"), Code::format,
               "x.txt: token 4 is outside the vocabulary of 4");
  EXPECT_EQ(writer.count(TextSplit::train), 0);
}

/// Puts the checksums right, as whoever forges a file would.
void sign(std::vector<std::byte>& bytes) {
  const auto put = [&](size_t at, uint64_t value) { std::memcpy(&bytes[at], &value, 8); };
  uint64_t description = 0;
  std::memcpy(&description, &bytes[32], 8);
  const auto rest = std::span(bytes).subspan(64);
  if (description <= rest.size()) {
    put(40, xxhash64(rest.first(description)));
    if ((description + 7) / 8 * 8 <= rest.size())
      put(48, xxhash64(rest.subspan((description + 7) / 8 * 8)));
  }
  put(56, xxhash64(std::span(bytes).first(56)));
}

TEST(TokenFile, RefusesMalformedFilesWithTheReason) {
  const std::vector<std::byte> good = writer_of(100).bytes();
  const auto refuse = [&](Code code, const std::string& words, auto change, bool resign = true) {
    std::vector<std::byte> bytes = good;
    change(bytes);
    if (resign && bytes.size() >= 64) sign(bytes);
    expect_error(
        code, words, [&] { TokenFile::parse(bytes, "file"); }, words);
  };
  const auto field = [](size_t at, uint64_t value, size_t size) {
    return [=](std::vector<std::byte>& bytes) { std::memcpy(&bytes[at], &value, size); };
  };
  refuse(Code::format, "3 bytes; a token file has a header of 64", [](auto& b) { b.resize(3); });
  refuse(Code::format, "not a token file", field(0, 'x', 1));
  refuse(Code::unsupported, "version 2", field(8, 2, 4));
  refuse(Code::format, "3 bytes per id", field(12, 3, 4));
  refuse(Code::format, "expected", field(16, 6, 8));
  refuse(Code::format, "expected", field(16, ~uint64_t{0}, 8));
  refuse(Code::format, "expected", field(24, uint64_t{1} << 63, 8));
  refuse(Code::limit, "a description of", field(32, uint64_t{1} << 40, 8));
  refuse(Code::format, "checksum of the header", field(20, 1, 1), false);
  refuse(
      Code::format, "checksum of the description", [](auto& b) { b[70] ^= std::byte{1}; }, false);
  refuse(
      Code::format, "checksum of the ids", [](auto& b) { b.back() ^= std::byte{1}; }, false);
  refuse(Code::format, "id 357 at 6: outside the vocabulary of 100", [](auto& b) {
    b.back() = std::byte{1};
    b[b.size() - 2] = std::byte{101};
  });
  refuse(Code::format, "JSON", field(64, 'x', 1));
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_THROW(TokenFile::parse(std::span(good).first(size), "cut"), Error) << size;
  }
}

TEST(Documents, ComeInTheOrderOfNamesFromFilesAndLines) {
  const TempDirectory temp;
  make_directories(temp / "sub");
  make_directories(temp / ".git");
  write_text_file(temp / "b.txt", "second");
  write_text_file(temp / "a.jsonl",
                  "{\"text\": \"first\", \"name\": 1}\n\n{\"text\": \" \"}\n{\"text\":\"x\\ny\"}");
  write_text_file(temp / "sub/c.py", "third = 3\n");
  write_text_file(temp / "empty.txt", " \n");
  write_text_file(temp / ".hidden", "no");
  write_text_file(temp / ".git/config", "no");
  write_text_file(temp / "manifest.json", "{}");
  std::vector<std::string> names, texts;
  for (const Document& document : read_documents(temp.path())) {
    names.push_back(document.name);
    texts.push_back(document.text);
  }
  EXPECT_THAT(names, ElementsAre("a.jsonl:1", "a.jsonl:4", "b.txt", "sub/c.py"));
  EXPECT_THAT(texts, ElementsAre("first", "x\ny", "second", "third = 3\n"));
  EXPECT_EQ(read_documents(temp / "b.txt").at(0).name, "b.txt");
}

TEST(Documents, RefuseWhatIsNoText) {
  const TempDirectory temp;
  const auto refuse = [&](const std::string& name, const std::string& text,
                          const std::string& words) {
    make_directories(temp / name);
    write_text_file(temp / (name + "/f" + name), text);
    expect_error(
        Code::format, words, [&] { read_documents(temp / name); }, name);
  };
  EXPECT_ERROR(read_documents(temp / "none"), Code::missing, "scripts/data.sh text");
  EXPECT_ERROR(read_documents(temp.path()), Code::missing, "no text in it");
  refuse("a.bin", std::string("ab\0c", 4), "byte 0x00 at offset 2");
  refuse("b.txt", "caf\xE9 au lait", "byte 0xE9 at offset 3");
  refuse("c.txt", "surrogate \xED\xA0\x80", "byte 0xED at offset 10");
  refuse("d.txt", "long \xC0\x80", "byte 0xC0 at offset 5");
  refuse("e.txt", "cut \xE2\x82", "byte 0xE2 at offset 4");
  refuse("f.txt", "high \xF4\x90\x80\x80", "byte 0xF4 at offset 5");
  refuse("g.jsonl", "{\"text\": 1", "fg.jsonl:1");
  make_directories(temp / "h");
  write_text_file(temp / "h/x.jsonl", "{\"text\": \"a\"}\n{\"words\": \"b\"}\n");
  EXPECT_ERROR(read_documents(temp / "h"), Code::config, "x.jsonl:2");
  write_text_file(temp / "h/x.jsonl", "{\"text\": \"abcdef\"}\n{\"text\": \"b\"}\n");
  EXPECT_ERROR(read_documents(temp / "h", {.bytes = 6}), Code::limit, "more than 6 bytes");
  EXPECT_ERROR(read_documents(temp / "h", {.documents = 1}), Code::limit, "more than 1 documents");
}

TEST(Documents, AreHeldOutByTheirTextAlone) {
  int64_t out = 0;
  for (int i = 0; i < 2000; ++i) {
    const std::string text = "document " + std::to_string(i);
    const Document here{"here", text, xxhash64(std::as_bytes(std::span(text)))};
    const Document there{"there", text, here.hash};
    EXPECT_EQ(held_out(here, 0.1), held_out(there, 0.1));
    EXPECT_FALSE(held_out(here, 0));
    out += held_out(here, 0.1);
    EXPECT_LE(held_out(here, 0.05), held_out(here, 0.1));
  }
  EXPECT_NEAR(double(out), 200, 40);
}

}  // namespace token_file_test
}  // namespace sluice::data
