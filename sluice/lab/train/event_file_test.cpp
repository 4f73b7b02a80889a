#include "sluice/lab/train/event_file.h"

#include <gmock/gmock.h>

#include <cstring>

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"

namespace sluice::lab {
namespace event_file_test {

template <class T>
T number(const std::string& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

TEST(EventFile, ChecksumIsCastagnolis) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);  // the check value of the catalogue of CRCs
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720, B.4
}

TEST(EventFile, HoldsRecordsAsTensorBoardReadsThem) {
  const TempDirectory temp;
  EventFile file(temp / "runs/a");
  file.scalar("loss", 300, 0.5);
  const std::string bytes = read_text_file(file.path());
  std::vector<std::string> events;
  for (size_t at = 0; at < bytes.size();) {
    const auto size = number<uint64_t>(bytes, at);
    ASSERT_LE(at + 16 + size, bytes.size());
    const auto masked = [&](size_t from, size_t count) {
      const uint32_t crc = crc32c(std::string_view(bytes).substr(from, count));
      return (crc >> 15 | crc << 17) + 0xA282EAD8u;
    };
    EXPECT_EQ(number<uint32_t>(bytes, at + 8), masked(at, 8));
    EXPECT_EQ(number<uint32_t>(bytes, at + 12 + size), masked(at + 12, size));
    events.push_back(bytes.substr(at + 12, size));
    at += 16 + size;
  }
  ASSERT_EQ(events.size(), 2u);
  // Both begin with wall_time: key 0x09 and a double. Then file_version; or step 300 as a varint
  // and a summary of one value with tag and simple_value.
  EXPECT_EQ(events[0].substr(9),
            "\x1A\x0D"
            "brain.Event:2");
  EXPECT_EQ(events[1].substr(9),
            std::string("\x10\xAC\x02\x2A\x0D\x0A\x0B\x0A\x04loss\x15\0\0\0\x3F", 18));
  EXPECT_GT(number<double>(events[1], 1), 1.6e9);
}

TEST(EventFile, SaysWhereItCannotWrite) {
  const TempDirectory temp;
  write_text_file(temp / "file", "x");
  EXPECT_ERROR(EventFile(temp / "file"), Code::io, "file");
}

}  // namespace event_file_test
}  // namespace sluice::lab
