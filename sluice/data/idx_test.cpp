#include "sluice/data/idx.h"

#include <zlib.h>

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/data/gzip.h"

namespace sluice::data {
namespace idx_test {

using ::testing::ElementsAre;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string idx(uint8_t type, std::vector<uint32_t> sizes, const std::string& data) {
  std::string result{'\0', '\0', static_cast<char>(type), static_cast<char>(sizes.size())};
  for (const uint32_t size : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      result += static_cast<char>(size >> shift & 0xFF);
    }
  }
  return result + data;
}

std::string gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

TEST(ParseIdx, ReadsPlainAndGzippedOfEveryRank) {
  const std::vector<std::vector<uint32_t>> shapes{{6}, {2, 3}, {1, 2, 3}, {1, 2, 1, 3}};
  for (const std::vector<uint32_t>& sizes : shapes) {
    const std::string file = idx(8, sizes, "abcdef");
    for (const std::string& text : {file, gzip(file)}) {
      const IdxArray array = parse_idx(bytes_of(text), "t");
      EXPECT_EQ(array.shape, Shape(sizes.begin(), sizes.end()));
      EXPECT_THAT(array.bytes, ElementsAre('a', 'b', 'c', 'd', 'e', 'f'));
    }
  }
  EXPECT_TRUE(parse_idx(bytes_of(idx(8, {0, 28}, "")), "t").bytes.empty());
}

TEST(ParseIdx, RefusesMalformedHeaders) {
  struct Bad {
    std::string text;
    Code code;
    const char* message;
  };
  const Bad cases[] = {
      {"", Code::format, "found 0 bytes"},
      {std::string(3, '\0'), Code::format, "found 3 bytes"},
      {"\x89PNG\r\n", Code::format, "magic"},
      {idx(9, {1}, "a"), Code::dtype, "signed byte"},
      {idx(0x0D, {1}, "abcd"), Code::dtype, "32-bit float"},
      {idx(0x77, {1}, "a"), Code::dtype, "unknown"},
      {idx(8, {}, "a"), Code::format, "1 to 4 dimensions, found 0"},
      {idx(8, {1, 1, 1, 1, 1}, "a"), Code::format, "found 5"},
      {idx(8, {2, 3}, "").substr(0, 9), Code::format, "header of 12 bytes"},
      {idx(8, {2, 3}, "abcde"), Code::format,
       "needs 6 bytes of data, found 5; the file is truncated"},
      {idx(8, {2, 3}, "abcdefg"), Code::format, "followed by other bytes"},
      {idx(8, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, "a"), Code::limit, "63 bits"},
      {idx(8, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0}, ""), Code::limit, "63 bits"},
      {idx(8, {0xFFFFFFFF, 16}, "a"), Code::limit, "are allowed"},
  };
  for (const Bad& c : cases) {
    SCOPED_TRACE(c.message);
    expect_error(c.code, c.message, [&] { parse_idx(bytes_of(c.text), "a.idx"); });
    expect_error(c.code, "a.idx: ", [&] { parse_idx(bytes_of(c.text), "a.idx"); });
    expect_error(c.code, c.message, [&] { parse_idx(bytes_of(gzip(c.text)), "a.idx"); });
  }
}

TEST(ParseIdx, EveryTruncationIsAnError) {
  const std::string plain = idx(8, {2, 3}, "abcdef");
  for (const std::string& file : {plain, gzip(plain)}) {
    for (size_t length = 0; length < file.size(); ++length) {
      SCOPED_TRACE(length);
      expect_error(Code::format, "t: ", [&] { parse_idx(bytes_of(file.substr(0, length)), "t"); });
    }
  }
}

TEST(ParseIdx, FlippedBitsOfGzipAreErrors) {
  const std::string good = gzip(idx(8, {2, 3}, "abcdef"));
  for (size_t i = 10; i < good.size(); ++i) {  // the first ten bytes hold fields nobody checks
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    SCOPED_TRACE(i);
    EXPECT_TRUE(error_of([&] { parse_idx(bytes_of(bad), "t"); }).has_value());
  }
}

TEST(ParseIdx, BoundsTheInflatedSize) {
  const std::string bomb = gzip(idx(8, {10000000}, std::string(10000000, '\0')));
  EXPECT_LT(bomb.size(), 20000U);
  expect_error(Code::limit, "1000020 bytes allowed",
               [&] { parse_idx(bytes_of(bomb), "t", 1000000); });
  EXPECT_EQ(parse_idx(bytes_of(bomb), "t", 10000000).bytes.size(), 10000000U);
  expect_error(Code::limit, "are allowed", [&] { parse_idx(bytes_of(bomb), "t", 9999999); });
}

TEST(InflateGzip, JoinsMembersAndRefusesTails) {
  const std::string two = gzip("one ") + gzip("two");
  const std::vector<uint8_t> joined = inflate_gzip(bytes_of(two), "t", 100);
  EXPECT_EQ(std::string(joined.begin(), joined.end()), "one two");
  EXPECT_TRUE(inflate_gzip(bytes_of(gzip("")), "t", 100).empty());
  expect_error(Code::format, "4 bytes follow",
               [&] { inflate_gzip(bytes_of(gzip("one") + "tail"), "t", 100); });
  expect_error(Code::format, "truncated",
               [&] { inflate_gzip(bytes_of(gzip("one") + gzip("x").substr(0, 12)), "t", 100); });
  expect_error(Code::format, "expected a gzip file",
               [&] { inflate_gzip(bytes_of("plain text"), "t", 100); });
}

TEST(InflateGzip, AcceptsExactlyTheLimit) {
  const std::string file = gzip(std::string(1000, 'x'));
  EXPECT_EQ(inflate_gzip(bytes_of(file), "t", 1000).size(), 1000U);
  expect_error(Code::limit, "999", [&] { inflate_gzip(bytes_of(file), "t", 999); });
  expect_error(Code::limit, "0 bytes", [&] { inflate_gzip(bytes_of(file), "t", 0); });
}

TEST(InflateGzip, ALyingSizeIsHarmless) {
  std::string file = gzip("hello");
  for (const char lie : {'\0', '\xFF'}) {
    file.replace(file.size() - 4, 4, std::string(4, lie));
    expect_error(Code::format, "damaged",
                 [&] { inflate_gzip(bytes_of(file), "t", size_t{1} << 40); });
  }
}

TEST(ReadIdx, NamesTheFile) {
  const TempDirectory directory;
  write_text_file(directory / "a", idx(8, {3}, "abc"));
  EXPECT_THAT(read_idx(directory / "a").bytes, ElementsAre('a', 'b', 'c'));
  expect_error(Code::missing, directory / "b", [&] { read_idx(directory / "b"); });
}

}  // namespace idx_test
}  // namespace sluice::data
