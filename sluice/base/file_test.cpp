#include "sluice/base/file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "sluice/base/test_error.h"
#include "sluice/base/test_files.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(MappedFileTest, ShowsTheBytesAndMoves) {
  const TestDirectory directory;
  write_text_file(directory.file("a"), "hello");
  MappedFile first = MappedFile::open(directory.file("a"));
  EXPECT_EQ(as_text(first.bytes()), "hello");
  EXPECT_EQ(first.path(), directory.file("a"));
  MappedFile second = std::move(first);
  EXPECT_EQ(as_text(second.bytes()), "hello");
  write_text_file(directory.file("b"), "other");
  second = MappedFile::open(directory.file("b"));
  EXPECT_EQ(as_text(second.bytes()), "other");
}

TEST(MappedFileTest, EmptyFileHasNoBytes) {
  const TestDirectory directory;
  write_text_file(directory.file("empty"), "");
  EXPECT_TRUE(MappedFile::open(directory.file("empty")).bytes().empty());
}

TEST(MappedFileTest, KeepsTheOldBytesWhenTheFileIsReplaced) {
  const TestDirectory directory;
  write_text_file(directory.file("a"), "before");
  const MappedFile file = MappedFile::open(directory.file("a"));
  write_text_file(directory.file("a"), "after!");
  EXPECT_EQ(as_text(file.bytes()), "before");
}

TEST(MappedFileTest, TellsMissingFromUnreadable) {
  const TestDirectory directory;
  EXPECT_ERROR(MappedFile::open(directory.file("none")), Code::missing, "none");
  EXPECT_ERROR(MappedFile::open(directory.path()), Code::io, "directory");
  EXPECT_ERROR(MappedFile::open("/dev/null"), Code::io, "regular file");
  ASSERT_EQ(::mkfifo(directory.file("pipe").c_str(), 0600), 0);
  EXPECT_ERROR(MappedFile::open(directory.file("pipe")), Code::io, "regular file");
}

TEST(AtomicFileTest, ShowsNothingBeforeCommit) {
  const TestDirectory directory;
  write_text_file(directory.file("a"), "old");
  AtomicFile file(directory.file("a"));
  file.write("new");
  EXPECT_EQ(read_text_file(directory.file("a")), "old");
  file.commit();
  EXPECT_EQ(read_text_file(directory.file("a")), "new");
  EXPECT_THAT(directory.names(), ElementsAre("a"));
}

TEST(AtomicFileTest, WithoutCommitLeavesNoTrace) {
  const TestDirectory directory;
  { AtomicFile(directory.file("a")).write("half"); }
  EXPECT_THAT(directory.names(), IsEmpty());
}

TEST(AtomicFileTest, TwoWritersOfOneNameDoNotMix) {
  const TestDirectory directory;
  AtomicFile first(directory.file("a")), second(directory.file("a"));
  first.write("first");
  second.write("second");
  first.commit();
  second.commit();
  EXPECT_EQ(read_text_file(directory.file("a")), "second");
}

TEST(AtomicFileTest, RefusesWritingAfterCommit) {
  const TestDirectory directory;
  AtomicFile file(directory.file("a"));
  file.commit();
  EXPECT_ERROR(file.write("x"), Code::state, "after commit");
  EXPECT_ERROR(file.commit(), Code::state, "twice");
}

TEST(AtomicFileTest, KeepsPermissionsAndLinks) {
  const TestDirectory directory;
  write_text_file(directory.file("a"), "old");
  ASSERT_EQ(::chmod(directory.file("a").c_str(), 0640), 0);
  std::filesystem::create_symlink("a", directory.file("link"));
  write_text_file(directory.file("link"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(directory.file("link")));
  EXPECT_EQ(read_text_file(directory.file("a")), "new");
  struct stat status {};
  ASSERT_EQ(::stat(directory.file("a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640U);
}

TEST(AtomicFileTest, ExplainsImpossibleTargets) {
  const TestDirectory directory;
  EXPECT_ERROR(AtomicFile(directory.file("no/such/a")), Code::io, "mkdir -p");
  EXPECT_ERROR(AtomicFile(directory.path()), Code::io, "is a directory");
  EXPECT_ERROR(AtomicFile(directory.file("new/")), Code::io, "names a directory");
  EXPECT_ERROR(AtomicFile("/dev/null"), Code::io, "regular file");
  EXPECT_ERROR(AtomicFile(""), Code::io, "without a name");
  write_text_file(directory.file("a"), "x");
  EXPECT_ERROR(AtomicFile(directory.file("a/b")), Code::io, "cannot write");
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
  const TestDirectory directory;
  const std::string path = directory.file("model");
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
  EXPECT_THAT(directory.names(), ElementsAre("model"));
}

TEST(ReadTextFile, ReadsFilesOfUnknownSize) {
  EXPECT_THAT(read_text_file("/proc/self/status"), ::testing::HasSubstr("Pid:"));
}

TEST(ReadTextFile, HoldsTheLimit) {
  const TestDirectory directory;
  write_text_file(directory.file("a"), "12345");
  EXPECT_EQ(read_text_file(directory.file("a"), 5), "12345");
  EXPECT_ERROR(read_text_file(directory.file("a"), 4), Code::limit, "4 bytes");
  EXPECT_ERROR(read_text_file("/dev/zero", 10000), Code::limit, "/dev/zero");
  EXPECT_ERROR(read_text_file(directory.file("none")), Code::missing, "none");
  EXPECT_ERROR(read_text_file(directory.path()), Code::io, "directory");
}

TEST(MakeDirectories, CreatesChainsAndRefusesFilesInTheWay) {
  const TestDirectory directory;
  make_directories(directory.file("a/b/c"));
  make_directories(directory.file("a/b/c"));
  EXPECT_TRUE(file_exists(directory.file("a/b/c")));
  EXPECT_FALSE(file_exists(directory.file("a/x")));
  write_text_file(directory.file("plain"), "");
  EXPECT_ERROR(make_directories(directory.file("plain/sub")), Code::io, "plain");
  EXPECT_ERROR(make_directories(directory.file("plain")), Code::io, "plain");
}

TEST(Xxhash, MatchesThePublishedValues) {
  EXPECT_EQ(xxhash64({}), 0xef46db3751d8e999ULL);
  const std::string_view abc = "abc";
  EXPECT_EQ(xxhash64(std::as_bytes(std::span(abc))), 0x44bc2cf5ad770999ULL);
}

}  // namespace
}  // namespace sluice
