#include "sluice/base/file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"

namespace sluice {
namespace file_test {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(MappedFileTest, ShowsTheBytesAndMoves) {
  const TempDirectory directory;
  write_text_file(directory / "a", "hello");
  MappedFile first = MappedFile::open(directory / "a");
  EXPECT_EQ(as_text(first.bytes()), "hello");
  EXPECT_EQ(first.path(), directory / "a");
  MappedFile second = std::move(first);
  EXPECT_EQ(as_text(second.bytes()), "hello");
  write_text_file(directory / "b", "other");
  second = MappedFile::open(directory / "b");
  EXPECT_EQ(as_text(second.bytes()), "other");
}

TEST(MappedFileTest, EmptyFileHasNoBytes) {
  const TempDirectory directory;
  write_text_file(directory / "empty", "");
  EXPECT_TRUE(MappedFile::open(directory / "empty").bytes().empty());
}

TEST(MappedFileTest, KeepsTheOldBytesWhenTheFileIsReplaced) {
  const TempDirectory directory;
  write_text_file(directory / "a", "before");
  const MappedFile file = MappedFile::open(directory / "a");
  write_text_file(directory / "a", "after!");
  EXPECT_EQ(as_text(file.bytes()), "before");
}

TEST(MappedFileTest, TellsMissingFromUnreadable) {
  const TempDirectory directory;
  expect_error(Code::missing, "none", [&] { MappedFile::open(directory / "none"); });
  expect_error(Code::io, "directory", [&] { MappedFile::open(directory.path()); });
  expect_error(Code::io, "regular file", [&] { MappedFile::open("/dev/null"); });
  ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
  expect_error(Code::io, "regular file", [&] { MappedFile::open(directory / "pipe"); });
}

TEST(AtomicFileTest, ShowsNothingBeforeCommit) {
  const TempDirectory directory;
  write_text_file(directory / "a", "old");
  AtomicFile file(directory / "a");
  file.write("new");
  EXPECT_EQ(read_text_file(directory / "a"), "old");
  file.commit();
  EXPECT_EQ(read_text_file(directory / "a"), "new");
  EXPECT_THAT(directory.entries(), ElementsAre("a"));
}

TEST(AtomicFileTest, WithoutCommitLeavesNoTrace) {
  const TempDirectory directory;
  { AtomicFile(directory / "a").write("half"); }
  EXPECT_THAT(directory.entries(), IsEmpty());
}

TEST(AtomicFileTest, TwoWritersOfOneNameDoNotMix) {
  const TempDirectory directory;
  AtomicFile first(directory / "a"), second(directory / "a");
  first.write("first");
  second.write("second");
  first.commit();
  second.commit();
  EXPECT_EQ(read_text_file(directory / "a"), "second");
}

TEST(AtomicFileTest, RefusesWritingAfterCommit) {
  const TempDirectory directory;
  AtomicFile file(directory / "a");
  file.commit();
  expect_error(Code::state, "after commit", [&] { file.write("x"); });
  expect_error(Code::state, "twice", [&] { file.commit(); });
}

TEST(AtomicFileTest, KeepsPermissionsAndLinks) {
  const TempDirectory directory;
  write_text_file(directory / "a", "old");
  ASSERT_EQ(::chmod((directory / "a").c_str(), 0640), 0);
  std::filesystem::create_symlink("a", directory / "link");
  write_text_file(directory / "link", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(directory / "link"));
  EXPECT_EQ(read_text_file(directory / "a"), "new");
  struct stat status {};
  ASSERT_EQ(::stat((directory / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640U);
}

TEST(AtomicFileTest, ExplainsImpossibleTargets) {
  const TempDirectory directory;
  expect_error(Code::io, "mkdir -p", [&] { AtomicFile(directory / "no/such/a"); });
  expect_error(Code::io, "is a directory", [&] { AtomicFile(directory.path()); });
  expect_error(Code::io, "names a directory", [&] { AtomicFile(directory / "new/"); });
  expect_error(Code::io, "regular file", [&] { AtomicFile("/dev/null"); });
  expect_error(Code::io, "without a name", [&] { AtomicFile(""); });
  write_text_file(directory / "a", "x");
  expect_error(Code::io, "cannot write", [&] { AtomicFile(directory / "a/b"); });
}

/// Runs `work` in a child whose files cannot grow beyond `bytes`; its exit status.
template <class Work>
int with_full_disk(rlim_t bytes, const Work& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);  // the write then fails as on a full disk, with EFBIG
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::_exit(work());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(AtomicFileTest, FullDiskKeepsTheOldFileAndRemovesTheTemporary) {
  const TempDirectory directory;
  const std::string path = directory / "model";
  write_text_file(path, "good");
  const std::string large(100000, 'x');
  const int status = with_full_disk(4096, [&] {
    const auto error = error_of([&] { write_text_file(path, large); });
    const bool expected = error && error->code() == Code::io &&
                          std::string(error->what()).find("cannot write " + path) == 0;
    return expected ? 7 : 1;
  });
  EXPECT_EQ(status, 7);
  EXPECT_EQ(read_text_file(path), "good");
  EXPECT_THAT(directory.entries(), ElementsAre("model"));
}

TEST(ReadTextFile, ReadsFilesOfUnknownSize) {
  EXPECT_THAT(read_text_file("/proc/self/status"), ::testing::HasSubstr("Pid:"));
}

TEST(ReadTextFile, HoldsTheLimit) {
  const TempDirectory directory;
  write_text_file(directory / "a", "12345");
  EXPECT_EQ(read_text_file(directory / "a", 5), "12345");
  expect_error(Code::limit, "4 bytes", [&] { read_text_file(directory / "a", 4); });
  expect_error(Code::limit, "/dev/zero", [&] { read_text_file("/dev/zero", 10000); });
  expect_error(Code::missing, "none", [&] { read_text_file(directory / "none"); });
  expect_error(Code::io, "directory", [&] { read_text_file(directory.path()); });
}

TEST(MakeDirectories, CreatesChainsAndRefusesFilesInTheWay) {
  const TempDirectory directory;
  make_directories(directory / "a/b/c");
  make_directories(directory / "a/b/c");
  EXPECT_TRUE(file_exists(directory / "a/b/c"));
  EXPECT_FALSE(file_exists(directory / "a/x"));
  write_text_file(directory / "plain", "");
  expect_error(Code::io, "plain", [&] { make_directories(directory / "plain/sub"); });
  expect_error(Code::io, "plain", [&] { make_directories(directory / "plain"); });
}

TEST(Xxhash, MatchesThePublishedValues) {
  EXPECT_EQ(xxhash64({}), 0xef46db3751d8e999ULL);
  const std::string_view abc = "abc";
  EXPECT_EQ(xxhash64(std::as_bytes(std::span(abc))), 0x44bc2cf5ad770999ULL);
}

}  // namespace file_test
}  // namespace sluice
