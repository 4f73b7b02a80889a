#include "sluice/data/emoji.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "sluice/base/error.h"
#include "sluice/data/image.h"

namespace sluice::data {
namespace emoji_test {

class Emoji : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "emoji-" +
                 ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(directory_ + "/img/twitter/64");
  }

  void list(const std::string& json) { std::ofstream(directory_ + "/emoji.json") << json; }
  void picture(const std::string& name, uint8_t value) {
    Image image{64, 64, 3, std::vector<uint8_t>(64 * 64 * 3, value)};
    image.pixels[0] = 255;
    write_image(directory_ + "/img/twitter/64/" + name, image);
  }
  std::string message() {
    try {
      load_emoji(directory_);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::string directory_;
};

TEST_F(Emoji, VariantsStayOnTheSideOfTheirEmoji) {
  std::string json;
  for (int i = 0; i < 40; ++i) {
    const std::string code = "1F" + std::to_string(100 + i), name = std::to_string(i);
    json += std::string(i ? "," : "[") + R"({"unified": ")" + code + R"(", "image": ")" + name +
            R"(.png", "category": ")" + (i % 2 ? "Odd" : "Even") +
            R"(", "skin_variations": {"1F3FB": {"image": ")" + name + R"(-a.png"}}})";
    picture(name + ".png", static_cast<uint8_t>(i));
    picture(name + "-a.png", static_cast<uint8_t>(i));
  }
  list(json + "]");
  const ImageSet set = load_emoji(directory_);
  EXPECT_EQ(set.labels, (std::vector<std::string>{"Even", "Odd"}));
  EXPECT_EQ(set.train.sample_shape, (Shape{3, 32, 32}));
  EXPECT_EQ(set.train.count() + set.test.count(), 80);
  EXPECT_GT(set.test.count(), 0);
  for (const Split* split : {&set.train, &set.test}) {
    ASSERT_EQ(split->count() % 2, 0);
    for (int64_t i = 0; i < split->count(); i += 2) {
      EXPECT_EQ(split->sample(i)[100], split->sample(i + 1)[100]);
      EXPECT_EQ(split->labels[static_cast<size_t>(i)], split->sample(i)[100] % 2);
    }
  }
}

TEST_F(Emoji, MissingFilesNameTheCommandThatFetchesThem) {
  EXPECT_NE(message().find("scripts/data.sh emoji"), std::string::npos) << message();
}

TEST_F(Emoji, NamesThatLeaveTheFolderAreRefused) {
  list(R"([{"unified": "1", "image": "../../../secret.png", "category": "x"}])");
  EXPECT_NE(message().find("is no name of a picture"), std::string::npos) << message();
}

TEST_F(Emoji, AListOfAnotherKindIsRefused) {
  list(R"({"unified": "1"})");
  EXPECT_NE(message().find("expected a list"), std::string::npos) << message();
  list(R"([{"unified": "1", "image": "a.png"}])");
  EXPECT_NE(message().find("category"), std::string::npos) << message();
}

}  // namespace emoji_test
}  // namespace sluice::data
