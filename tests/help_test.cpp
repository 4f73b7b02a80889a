// What a user meets first: help, version, mistakes in the command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>

#include "sluice/base/json.h"
#include "tests/process.h"

namespace sluice::test {
namespace help_test {

using testing::HasSubstr;
using testing::StartsWith;

std::vector<std::string> verbs_of_this_build() {
  std::vector<std::string> verbs{"import", "inspect"};
#if SLUICE_WITH_ENGINE
  verbs.insert(verbs.end(), {"eval", "run", "bench"});
#endif
#if SLUICE_WITH_LAB
  verbs.insert(verbs.end(), {"train", "transform", "reproduce", "quickstart"});
#endif
  return verbs;
}

TEST(Help, ListsEveryVerbAndEndsWithAnExample) {
  const Finished help = sluice({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_EQ(help.err, "");
  for (const std::string& verb : verbs_of_this_build()) {
    EXPECT_THAT(help.out, HasSubstr("\n  " + verb + " "));
  }
  EXPECT_THAT(help.out, HasSubstr("Example:\n  sluice "));
}

TEST(Help, OfEveryVerbHasAnExampleThatUsesOnlyItsOwnOptions) {
  for (const std::string& verb : verbs_of_this_build()) {
    const Finished help = sluice({verb, "--help"});
    EXPECT_EQ(help.exit_code, 0) << verb;
    const size_t example = help.out.rfind("Example:\n");
    ASSERT_NE(example, std::string::npos) << verb;
    const std::string options = help.out.substr(0, example);
    const std::string examples = help.out.substr(example);
    EXPECT_THAT(examples, HasSubstr("sluice " + verb));
    for (size_t at = examples.find(" --"); at != std::string::npos;
         at = examples.find(" --", at + 1)) {
      const size_t end = examples.find_first_of(" =\n", at + 1);
      EXPECT_THAT(options, HasSubstr(examples.substr(at + 1, end - at - 1))) << verb;
    }
  }
}

#if SLUICE_WITH_ENGINE
TEST(Help, PartsOfAVerbHavePagesOfTheirOwn) {
  const Finished help = sluice({"bench", "kernels", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Usage: sluice bench kernels"));
  EXPECT_THAT(help.out, HasSubstr("--only PATTERN"));
  EXPECT_THAT(help.out, HasSubstr("--json"));
  EXPECT_THAT(help.out, HasSubstr("Example:\n  sluice bench kernels"));
}
#endif

TEST(Help, VersionIsOneLine) {
  const Finished version = sluice({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, testing::MatchesRegex("sluice [0-9]+\\.[0-9]+\\.[0-9]+\n"));
  EXPECT_TRUE(json_of(sluice({"--version", "--json"})).contains("version"));
}

TEST(Usage, NoVerbPrintsTheHelpToStderrAndExits2) {
  const Finished finished = sluice({});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, HasSubstr("Usage: sluice"));
}

struct Mistake {
  std::string name;
  Arguments arguments;
  std::string message;
};

void PrintTo(const Mistake& mistake, std::ostream* stream) { *stream << mistake.name; }

class UsageMistake : public testing::TestWithParam<Mistake> {};

TEST_P(UsageMistake, IsOneLineOnStderrWithTheNextStepAndExits2) {
  const Finished finished = sluice(GetParam().arguments);
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, StartsWith("sluice: error [usage]: "));
  EXPECT_THAT(finished.err, HasSubstr(GetParam().message));
  EXPECT_EQ(std::count(finished.err.begin(), finished.err.end(), '\n'), 1) << finished.err;
}

INSTANTIATE_TEST_SUITE_P(
    Cli, UsageMistake,
    testing::Values(
        Mistake{"UnknownVerb", {"inspekt", "x"}, "Did you mean 'inspect'?"},
        Mistake{"UnknownOption", {"inspect", "x", "--dept", "1"}, "Did you mean '--depth'?"},
        Mistake{"UnknownOptionWithValue", {"inspect", "x", "--chekc=1"}, "'--chekc'"},
        Mistake{"MissingFile", {"inspect"}, "FILE is required. See: sluice inspect --help"},
        Mistake{"BadNumber", {"inspect", "x", "--depth", "many"}, "--depth"},
        Mistake{"TooManyArguments", {"inspect", "x", "y"}, "See: sluice inspect --help"}
#if SLUICE_WITH_ENGINE
        ,
        Mistake{"BadSplit", {"eval", "x", "--split", "validation"}, "test"},
        Mistake{"NothingToBench", {"bench"}, "MODEL is required. See: sluice bench --help"},
        Mistake{"UnknownOptionOfKernels", {"bench", "kernels", "--olny", "x"}, "'--only'"},
        Mistake{
            "ModelBesideKernels", {"bench", "x", "kernels"}, "a file of that name is ./kernels"},
        Mistake{"NoSuchKernel", {"bench", "kernels", "--only", "gemm f64"}, "--list"},
        Mistake{"KeepWithoutOut", {"bench", "kernels", "--keep"}, "--out"},
        Mistake{"BadBatchList", {"bench", "x", "--batch", "1,two"}, "two"},
        Mistake{"BadThreads", {"eval", "x", "--threads", "-3"}, "--threads"},
        Mistake{"NothingToRun", {"run", "x"}, "--sample"}
#endif
#if SLUICE_WITH_LAB
        ,
        Mistake{"UnknownSystem", {"reproduce", "lottery-tiket"}, "Did you mean 'lottery-ticket'?"},
        Mistake{"UnknownScale", {"reproduce", "lottery-ticket", "--scale", "huge"}, "tiny"},
        Mistake{"UnknownDevice", {"reproduce", "lottery-ticket", "--device", "tpu"}, "cuda"},
        Mistake{"UnknownPass",
                {"transform", "x", "-o", "y", "--pass", "slice-chanels"},
                "slice-channels"},
        Mistake{"PassOptionWithoutValue",
                {"transform", "x", "-o", "y", "--pass", "prune:rate"},
                "key=value"},
        Mistake{"NoPass", {"transform", "x", "-o", "y"}, "--pass"}
#endif
        ),
    [](const auto& info) { return info.param.name; });

TEST(Usage, MistakesAreJsonToo) {
  const Finished finished = sluice({"inspekt", "--json"});
  EXPECT_EQ(finished.exit_code, 2);
  const Json document = json_of(finished);
  EXPECT_EQ(document["error"]["code"], "usage");
  EXPECT_THAT(document["error"]["message"].get<std::string>(), HasSubstr("inspect"));
}

#if !SLUICE_WITH_LAB
TEST(EngineOnly, TrainingVerbsSayWhatIsMissing) {
  for (const char* verb : {"train", "transform", "reproduce", "quickstart"}) {
    const Finished finished = sluice({verb, "anything"});
    EXPECT_EQ(finished.exit_code, 1);
    EXPECT_THAT(finished.err,
                StartsWith("sluice: error [unsupported]: this build has no training verbs"));
    EXPECT_THAT(finished.err, HasSubstr("-DSLUICE_LAB=ON"));
  }
}

TEST(EngineOnly, LoadsNoLibTorch) {
  const TempDirectory directory;
  const std::string command = "ldd " SLUICE_BINARY " > '" + directory / "libraries" + "' 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0);
  const std::string libraries = read_bytes(directory / "libraries");
  EXPECT_THAT(libraries, HasSubstr("libc.so"));
  EXPECT_THAT(libraries, testing::Not(HasSubstr("libtorch")));
  EXPECT_THAT(libraries, testing::Not(HasSubstr("libc10")));
}
#endif

}  // namespace help_test
}  // namespace sluice::test
