#include "sluice/base/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

namespace sluice {
namespace progress_test {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class ProgressTest : public ::testing::Test {
 protected:
  ~ProgressTest() override { set_progress_style(ProgressStyle::automatic); }

  template <class Work>
  std::string output(ProgressStyle style, const Work& work) {
    set_progress_style(style);
    testing::internal::CaptureStderr();
    work();
    return testing::internal::GetCapturedStderr();
  }
};

TEST_F(ProgressTest, LinesShowOnlyTheEndOfShortWork) {
  const std::string text = output(ProgressStyle::lines, [] {
    Progress progress("train", 100);
    for (int i = 1; i <= 100; ++i) {
      progress.update(i);
    }
    progress.finish("loss 0.4");
  });
  EXPECT_THAT(text, StartsWith("train 100% 100/100 steps, "));
  EXPECT_THAT(text, EndsWith(", loss 0.4\n"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
}

TEST_F(ProgressTest, AFileGetsLinesByItself) {
  const std::string text = output(ProgressStyle::automatic, [] {
    Progress progress("train", 2);
    progress.finish();
  });
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_THAT(text, Not(HasSubstr("\r")));
}

TEST_F(ProgressTest, BarIsRedrawnInPlaceAndEndsItsLine) {
  ::setenv("LC_ALL", "C", 1);
  const std::string text = output(ProgressStyle::bar, [] {
    Progress progress("train", 4, "images");
    progress.update(1, "loss 2");
    progress.update(2);
    progress.finish();
  });
  ::unsetenv("LC_ALL");
  EXPECT_THAT(text, StartsWith("\rtrain [######..................]  25% 1/4 images"));
  EXPECT_THAT(text, HasSubstr("[########################] 100% 4/4 images"));
  EXPECT_THAT(text, HasSubstr("loss 2"));
  EXPECT_THAT(text, EndsWith("\x1b[K\n"));
}

TEST_F(ProgressTest, BarUsesBlocksOnlyWhereTheLocaleHasThem) {
  const auto draw = [this] {
    return output(ProgressStyle::bar, [] { Progress("x", 4).update(2); });
  };
  ::setenv("LC_ALL", "en_GB.UTF-8", 1);
  EXPECT_THAT(draw(), HasSubstr("\u2588"));
  ::setenv("LC_ALL", "C", 1);
  EXPECT_THAT(draw(), Not(HasSubstr("\u2588")));
  ::unsetenv("LC_ALL");
}

TEST_F(ProgressTest, BarIsCutByCharactersNotBytes) {
  ::setenv("LC_ALL", "en_GB.UTF-8", 1);
  const auto draw = [this](const std::string& note) {
    return output(ProgressStyle::bar, [&] { Progress("x", 4).update(4, note); });
  };
  const auto characters = [](const std::string& text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  };
  EXPECT_THAT(draw("the end"), HasSubstr("the end"));  // 24 blocks of three bytes
  const std::string cut = draw(std::string(300, 'n'));
  EXPECT_THAT(cut, StartsWith("\r"));
  EXPECT_EQ(characters(cut.substr(1, cut.find("\x1b[K") - 1)), 99);
  ::unsetenv("LC_ALL");
}

TEST_F(ProgressTest, AbandonedWorkClaimsOnlyWhatWasDone) {
  const std::string text = output(ProgressStyle::lines, [] { Progress("train", 100).update(42); });
  EXPECT_THAT(text, StartsWith("train  42% 42/100 steps"));
}

TEST_F(ProgressTest, UnusedProgressSaysNothing) {
  EXPECT_EQ(output(ProgressStyle::bar, [] { Progress progress("train", 100); }), "");
}

TEST_F(ProgressTest, UnknownTotalsShowACount) {
  const std::string text = output(ProgressStyle::lines, [] {
    Progress progress("read", 0, "lines");
    progress.update(17);
    progress.finish();
  });
  EXPECT_THAT(text, StartsWith("read 17 lines"));
  EXPECT_THAT(text, Not(HasSubstr("%")));
}

TEST_F(ProgressTest, QuietSaysNothingAtAll) {
  EXPECT_EQ(output(ProgressStyle::quiet,
                   [] {
                     Progress progress("train", 2);
                     progress.update(1);
                     progress.finish();
                     log_line("hello");
                   }),
            "");
}

TEST_F(ProgressTest, NotesCannotBreakTheLine) {
  const std::string text = output(ProgressStyle::lines, [] {
    Progress progress("train", 2);
    progress.finish("a\nb\rc");
  });
  EXPECT_THAT(text, EndsWith("a b c\n"));
}

TEST_F(ProgressTest, LogLineClearsTheBarItInterrupts) {
  const std::string text = output(ProgressStyle::bar, [] {
    Progress progress("train", 2);
    progress.update(1);
    log_line("saved");
  });
  EXPECT_THAT(text, HasSubstr("\r\x1b[Ksaved\n"));
}

}  // namespace progress_test
}  // namespace sluice
