// Training, surgery and recipes through the binary: files in, files out, and what happens when they
// are interrupted.
#if SLUICE_WITH_LAB
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <filesystem>

#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "tests/process.h"

namespace sluice::test {
namespace lab_verbs_test {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

const std::string kConfig = std::string(SLUICE_SOURCE_DIR) + "/configs/blobs-tiny.toml";

/// A plain network that trains in about a second.
const char* const kPlain = R"(
[data]
name = "blobs"
train_limit = 600
test_limit = 200
[model]
name = "mlp"
hidden = [32]
[train]
steps = 60
batch = 20
checkpoint_every = 5
)";

class LabVerbs : public testing::Test {
 protected:
  void SetUp() override { write_bytes(directory / "plain.toml", kPlain); }

  Finished run(Arguments arguments, ProcessOptions options = {}) {
    options.directory = directory.path();
    return sluice(arguments, options);
  }

  TempDirectory directory;
};

TEST_F(LabVerbs, TrainWritesABundleAndNothingElse) {
  const Finished finished = run({"train", "plain.toml", "-o", "model.safetensors", "--json"});
  ASSERT_EQ(finished.exit_code, 0) << finished.out << finished.err;
  const Json result = json_of(finished);
  EXPECT_EQ(result["output"], "model.safetensors");
  EXPECT_EQ(result["steps"], 60);
  EXPECT_TRUE(result["validation"]["accuracy"].is_number());
  EXPECT_EQ(result["test"]["samples"], 200);
  EXPECT_THAT(directory.entries(), ElementsAre("model.safetensors", "plain.toml"));
  EXPECT_EQ(run({"inspect", "model.safetensors", "--check"}).exit_code, 0);
}

TEST_F(LabVerbs, SetChangesTheConfiguration) {
  const Json result = json_of(run({"train", "plain.toml", "-o", "m.safetensors", "--set",
                                   "train.steps=7", "--set", "model.hidden=[8]", "--json"}));
  EXPECT_EQ(result["steps"], 7);
  EXPECT_EQ(result["parameters"], 144 * 8 + 8 + 8 * 10 + 10);
}

TEST_F(LabVerbs, ConfigurationMistakesNameTheKey) {
  const auto message = [&](const std::string& assignment) {
    const Finished finished = run({"train", "plain.toml", "--set", assignment});
    EXPECT_EQ(finished.exit_code, 1) << assignment;
    EXPECT_THAT(finished.err, StartsWith("sluice: error [config]: ")) << assignment;
    return finished.err;
  };
  EXPECT_THAT(message("train.stepz=3"), HasSubstr("steps"));
  EXPECT_THAT(message("train.optimizer.momentun=0.5"), HasSubstr("momentum"));
  EXPECT_THAT(message("model.hiden=[3]"), HasSubstr("hidden"));
  EXPECT_THAT(message("model.name=mlq"), HasSubstr("mlp"));
  EXPECT_THAT(message("train.batch=0"), HasSubstr("batch"));
  EXPECT_THAT(message("train.batch=100000"), HasSubstr("batch"));
  EXPECT_THAT(message("train.optimizer.kind=sdg"), HasSubstr("sgd"));
  EXPECT_THAT(message("trian.batch=3"), HasSubstr("train"));
  write_bytes(directory / "both.toml", std::string(kPlain) + "epochs = 2\n");
  EXPECT_THAT(run({"train", "both.toml"}).err, HasSubstr("steps or epochs"));
  write_bytes(directory / "broken.toml", "[data\nname = 1");
  EXPECT_THAT(run({"train", "broken.toml"}).err, HasSubstr("broken.toml:"));
  EXPECT_EQ(run({"train", "plain.toml", "--set", "train.steps"}).exit_code, 2);
  EXPECT_THAT(directory.entries(), ElementsAre("both.toml", "broken.toml", "plain.toml"));
}

TEST_F(LabVerbs, AnOutputThatCannotBeWrittenIsRefusedBeforeTraining) {
  const Finished finished = run({"train", "plain.toml", "-o", "no/such/model.safetensors"});
  EXPECT_EQ(finished.exit_code, 1);
  EXPECT_THAT(finished.err, StartsWith("sluice: error [io]: "));
  EXPECT_THAT(finished.err, HasSubstr("no/such"));
  EXPECT_THAT(finished.err, testing::Not(HasSubstr("steps")));
}

TEST_F(LabVerbs, KilledTrainingResumesToTheSameBytes) {
  ASSERT_EQ(run({"train", "plain.toml", "-o", "whole.safetensors"}).exit_code, 0);
  const Arguments train{"train", "plain.toml", "-o", "killed.safetensors"};
  const std::string checkpoint = directory / "killed.safetensors.checkpoint";
  const Finished killed =
      run(train, {.when = [&] { return file_exists(checkpoint); }, .send = SIGKILL});
  ASSERT_EQ(killed.signal, SIGKILL) << "it finished before it could be killed";
  EXPECT_FALSE(file_exists(directory / "killed.safetensors"));
  Arguments resume = train;
  resume.push_back("--resume");
  const Finished resumed = run(resume);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("continuing from step"));
  EXPECT_EQ(read_bytes(directory / "killed.safetensors"),
            read_bytes(directory / "whole.safetensors"));
}

TEST_F(LabVerbs, KilledGatedTrainingResumesToTheSameBytes) {
  const Arguments settings{"--set", "train.steps=40",       "--set", "train.checkpoint_every=15",
                           "--set", "gates.calibration=100"};
  const auto train = [&](const std::string& output) {
    Arguments arguments{"train", kConfig, "-o", output};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    return arguments;
  };
  ASSERT_EQ(run(train("whole.safetensors")).exit_code, 0);
  const std::string checkpoint = directory / "killed.safetensors.checkpoint";
  const Finished killed = run(train("killed.safetensors"),
                              {.when = [&] { return file_exists(checkpoint); }, .send = SIGKILL});
  ASSERT_EQ(killed.signal, SIGKILL) << "it finished before it could be killed";
  Arguments resume = train("killed.safetensors");
  resume.push_back("--resume");
  const Finished resumed = run(resume);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_EQ(read_bytes(directory / "killed.safetensors"),
            read_bytes(directory / "whole.safetensors"));
}

TEST_F(LabVerbs, InterruptLeavesNoTemporaryFiles) {
  const std::string checkpoint = directory / "model.safetensors.checkpoint";
  const Finished finished = run({"train", "plain.toml", "-o", "model.safetensors", "--set",
                                 "train.steps=2000", "--set", "train.checkpoint_every=1"},
                                {.when = [&] { return file_exists(checkpoint); }, .send = SIGINT});
  EXPECT_EQ(finished.signal, SIGINT);
  EXPECT_THAT(directory.entries(), ElementsAre("model.safetensors.checkpoint", "plain.toml"));
}

TEST_F(LabVerbs, AFullDiskKeepsTheOldFileAndLeavesNoOther) {
  write_bytes(directory / "model.safetensors", "what was here before");
  const Finished finished =
      run({"train", "plain.toml", "-o", "model.safetensors", "--set", "train.checkpoint_every=1"},
          {.file_size_limit = 4096});
  EXPECT_EQ(finished.exit_code, 1);
  EXPECT_EQ(finished.signal, 0);
  EXPECT_THAT(finished.err, HasSubstr("sluice: error [io]: "));
  EXPECT_EQ(read_bytes(directory / "model.safetensors"), "what was here before");
  EXPECT_THAT(directory.entries(), ElementsAre("model.safetensors", "plain.toml"));
}

TEST_F(LabVerbs, GatedTrainingThenSurgeryGivesASmallerNetworkThatSaysTheSame) {
  const Finished trained = run({"train", kConfig, "-o", "frozen.safetensors", "--gated",
                                "gated.safetensors", "--set", "train.steps=80", "--json"});
  ASSERT_EQ(trained.exit_code, 0) << trained.out << trained.err;
  EXPECT_TRUE(json_of(trained).contains("gates"));

  const Json sliced = json_of(run({"transform", "frozen.safetensors", "-o", "small.safetensors",
                                   "--pass", "slice-channels", "--pass", "fold-norm", "--json"}));
  ASSERT_EQ(sliced["passes"].size(), 2u);
  for (const Json& pass : sliced["passes"]) {
    EXPECT_LT(pass["largest_output_change"].get<double>(), 1e-3);
    EXPECT_LE(pass["parameters"]["after"], pass["parameters"]["before"]);
  }
  const Finished frozen =
      run({"transform", "gated.safetensors", "-o", "again.safetensors", "--pass", "freeze-gates",
           "--calibrate", "blobs:200", "--pass", "slice-channels"});
  EXPECT_EQ(frozen.exit_code, 0) << frozen.err;
  EXPECT_THAT(frozen.out, HasSubstr("freeze-gates"));

  const Json evaluated =
      json_of(run({"eval", "frozen.safetensors", "small.safetensors", "--limit", "500", "--json"}));
  const Json &before = evaluated["models"][0], &after = evaluated["models"][1];
  EXPECT_NEAR(before["accuracy"].get<double>(), after["accuracy"].get<double>(), 0.005);
  EXPECT_LT(after["parameters"], before["parameters"]);
  EXPECT_LE(after["macs_per_sample"], before["macs_per_sample"]);

  const Finished ran = run({"run", "small.safetensors", "--sample", "1"});
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("truth: "));
  const Json bench = json_of(run({"bench", "frozen.safetensors", "small.safetensors", "--batch",
                                  "4", "--threads", "1", "--rounds", "1", "--json"}));
  ASSERT_EQ(bench["arms"].size(), 4u) << "two models, each beside LibTorch";
  for (const Json& arm : bench["arms"]) {
    if (arm["runtime"] == "libtorch") {
      EXPECT_LT(arm["metrics"]["largest_difference"]["mean"].get<double>(), 1e-3);
    }
  }
}

TEST_F(LabVerbs, ANetworkOfManySizesIsTrainedListedAndRun) {
  const Finished trained = run({"train", "plain.toml", "-o", "many.safetensors", "--set",
                                "nest.widths=[0.25,0.5,1]", "--set", "nest.draws=2", "--json"});
  ASSERT_EQ(trained.exit_code, 0) << trained.out << trained.err;
  const Json sizes = json_of(run({"inspect", "many.safetensors", "--sizes", "--json"}))["sizes"];
  ASSERT_EQ(sizes.size(), 3u);
  EXPECT_EQ(sizes[0]["name"], "w25");
  EXPECT_EQ(sizes[0]["macs"], 144 * 8 + 8 * 10);
  EXPECT_EQ(sizes[2]["macs"], 144 * 32 + 32 * 10);
  for (const Json& size : sizes) EXPECT_GT(size["quality"]["accuracy"].get<double>(), 0.5);
  for (const Arguments& choice : {Arguments{"--size", "w25"}, Arguments{"--budget-macs", "1500"}}) {
    Arguments arguments{"run", "many.safetensors", "--sample", "1"};
    arguments.insert(arguments.end(), choice.begin(), choice.end());
    const Finished ran = run(arguments);
    EXPECT_EQ(ran.exit_code, 0) << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("w25"));
  }
  // An ordinary network of one size, which says the same for less.
  const Finished picked = run(
      {"transform", "many.safetensors", "-o", "small.safetensors", "--pass", "pick-size:size=w25"});
  ASSERT_EQ(picked.exit_code, 0) << picked.err;
  const Json small = json_of(run({"eval", "small.safetensors", "--limit", "100", "--json"}));
  EXPECT_EQ(small["models"][0]["macs_per_sample"], sizes[0]["macs"]);
}

TEST_F(LabVerbs, ATrainedNetworkIsNestedAndTrainedOn) {
  ASSERT_EQ(run({"train", "plain.toml", "-o", "whole.safetensors"}).exit_code, 0);
  const Json nested = json_of(run({"transform", "whole.safetensors", "-o", "nested.safetensors",
                                   "--pass", "nest:widths=[0.25,1]", "--json"}));
  EXPECT_LT(nested["passes"][0]["largest_output_change"].get<double>(), 1e-3);
  const Finished tuned =
      run({"train", "plain.toml", "--from", "nested.safetensors", "-o", "many.safetensors"});
  ASSERT_EQ(tuned.exit_code, 0) << tuned.err;
  EXPECT_THAT(tuned.out, HasSubstr("2 sizes"));
  const Json sizes = json_of(run({"inspect", "many.safetensors", "--sizes", "--json"}))["sizes"];
  for (const Json& size : sizes) EXPECT_GT(size["quality"]["accuracy"].get<double>(), 0.5);

  const auto message = [&](Arguments more) {
    Arguments arguments{"train", "plain.toml", "--from", "nested.safetensors", "-o", "no"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Finished finished = run(arguments);
    EXPECT_NE(finished.exit_code, 0);
    return finished.err;
  };
  EXPECT_THAT(message({"--set", "nest.widths=[0.5,1]"}), HasSubstr("nested already, of 2 sizes"));
  EXPECT_THAT(message({"--set", "nest.draws=0"}), HasSubstr("draws of sizes"));
  EXPECT_THAT(message({"--set", "nest.sampling=one"}), HasSubstr("uniform, all, sandwich"));
  EXPECT_THAT(
      run({"transform", "whole.safetensors", "-o", "no", "--pass", "nest:widths=[0.3,1]"}).err,
      HasSubstr("a width of 0.3 of 32 units is 9.6, which cuts one of them"));
  EXPECT_THAT(run({"transform", "nested.safetensors", "-o", "no", "--pass", "nest"}).err,
              HasSubstr("nested already"));
  write_linear_bundle(directory / "foreign.safetensors");
  EXPECT_THAT(run({"train", "plain.toml", "--from", "foreign.safetensors", "-o", "no"}).err,
              HasSubstr("holds a graph but no bricks"));
  EXPECT_FALSE(file_exists(directory / "no"));
}

TEST_F(LabVerbs, ATableOfSizesThatLiesIsRefusedByEveryReader) {
  ASSERT_EQ(run({"train", "plain.toml", "-o", "many.safetensors", "--set", "nest.widths=[0.5,1]",
                 "--set", "train.steps=2"})
                .exit_code,
            0);
  const std::string honest = read_bytes(directory / "many.safetensors");
  const std::string macs = std::to_string(144 * 16 + 16 * 10);
  const size_t at = honest.rfind("\\\"macs\\\":" + macs);
  ASSERT_NE(at, std::string::npos);
  std::string lie = honest;
  lie[at + std::string("\\\"macs\\\":").size()] = '1';
  write_bytes(directory / "lie.safetensors", lie);
  for (const Arguments& arguments :
       {Arguments{"inspect", "lie.safetensors", "--sizes"},
        Arguments{"run", "lie.safetensors", "--sample", "1", "--size", "w50"},
        Arguments{"run", "lie.safetensors", "--sample", "1", "--budget", "0.9"},
        Arguments{"transform", "lie.safetensors", "-o", "no", "--pass", "pick-size:size=w50"}}) {
    const Finished finished = run(arguments);
    EXPECT_EQ(finished.exit_code, 1) << arguments[0];
    EXPECT_THAT(finished.err, HasSubstr("the table says 1")) << arguments[0];
    EXPECT_THAT(finished.err, HasSubstr("lie.safetensors"));
  }
  EXPECT_FALSE(file_exists(directory / "no"));
}

TEST_F(LabVerbs, SparseTrainingKeepsTheDensityAndResumesToTheSameBytes) {
  for (const std::string method : {"set", "rigl", "soft"}) {
    Arguments train{"train", "plain.toml",        "--set", "sparse.method=" + method,
                    "--set", "sparse.density=0.1"};
    if (method != "soft") train.insert(train.end(), {"--set", "sparse.every=4"});
    const auto with = [&](Arguments more) {
      Arguments arguments = train;
      arguments.insert(arguments.end(), more.begin(), more.end());
      return arguments;
    };
    const Json whole = json_of(run(with({"-o", method + ".safetensors", "--json"})));
    EXPECT_NEAR(whole["sparse"]["density"].get<double>(), 0.1, 1e-3);
    EXPECT_EQ(whole["sparse"]["method"], method);
    // Of 60 steps, in the first three quarters; a soft mask hardens once.
    EXPECT_EQ(whole["sparse"]["updates"], method == "soft" ? 1 : 11);
    const std::string name = method + "2.safetensors";
    const std::string checkpoint = directory / (name + ".checkpoint");
    const Finished killed =
        run(with({"-o", name}), {.when = [&] { return file_exists(checkpoint); }, .send = SIGKILL});
    ASSERT_EQ(killed.signal, SIGKILL) << "it finished before it could be killed";
    const Finished resumed = run(with({"-o", name, "--resume"}));
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_THAT(resumed.out, HasSubstr("10.0"));
    EXPECT_EQ(read_bytes(directory / name), read_bytes(directory / (method + ".safetensors")));
    // The zeros are in the file: nothing is left to prune of the smallest 90 %.
    const Json pruned = json_of(run({"transform", method + ".safetensors", "-o", "p.safetensors",
                                     "--pass", "prune:rate=0", "--json"}));
    EXPECT_NEAR(pruned["passes"][0]["report"]["density"].get<double>(), 0.1, 1e-3) << method;
  }
  const auto message = [&](Arguments more) {
    Arguments arguments{"train", "plain.toml", "-o", "no"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Finished finished = run(arguments);
    EXPECT_NE(finished.exit_code, 0);
    EXPECT_FALSE(file_exists(directory / "no"));
    return finished.err;
  };
  EXPECT_THAT(message({"--set", "sparse.density=0"}), HasSubstr("[sparse]: sparse training"));
  EXPECT_THAT(message({"--set", "sparse.density=1.5"}), HasSubstr("at most 1"));
  EXPECT_THAT(message({"--set", "sparse.method=rigel"}), HasSubstr("did you mean rigl"));
  EXPECT_THAT(message({"--set", "sparse.densty=0.5"}), HasSubstr("density"));
  EXPECT_THAT(message({"--set", "sparse.slots=fd*"}), HasSubstr("fd*"));
  EXPECT_THAT(message({"--set", "sparse.density=0.5", "--set", "nest.widths=[0.5,1]"}),
              HasSubstr("[sparse] and [nest] are two ways"));
}

TEST_F(LabVerbs, TrainedNetworksAreStitchedIntoOneOfManySizes) {
  write_bytes(directory / "net.toml", R"(
[data]
name = "blobs"
train_limit = 400
test_limit = 100
[model]
name = "resnet"
width = 4
blocks = 2
stages = 2
stem_stride = 2
[train]
steps = 20
batch = 20
)");
  for (const char* width : {"4", "6"}) {
    const std::string name = std::string("w") + width + ".safetensors";
    ASSERT_EQ(run({"train", "net.toml", "-o", name, "--set", std::string("model.width=") + width})
                  .exit_code,
              0);
    ASSERT_EQ(run({"transform", name, "-o", name, "--pass", "fold-norm"}).exit_code, 0);
  }
  const Finished made = run({"transform", "w6.safetensors", "-o", "both.safetensors", "--pass",
                             "stitch:with=w4.safetensors", "--calibrate", "100"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_THAT(made.out, HasSubstr("residual"));
  const Json sizes = json_of(run({"inspect", "both.safetensors", "--sizes", "--json"}))["sizes"];
  ASSERT_GT(sizes.size(), 4u);
  EXPECT_EQ(sizes.front()["name"], "a0");
  EXPECT_EQ(sizes.back()["name"], "a1");
  const auto scores = [&](const std::string& model, const std::string& size) {
    Arguments arguments{"run", model, "--sample", "3", "--json"};
    if (!size.empty()) arguments.insert(arguments.end(), {"--size", size});
    std::vector<int> best;  // equal but for rounding
    for (const Json& found : json_of(run(arguments))["results"][0]["classes"])
      best.push_back(static_cast<int>(std::lround(1e4 * found["probability"].get<double>())));
    return best;
  };
  EXPECT_EQ(scores("both.safetensors", "a0"), scores("w4.safetensors", ""));
  EXPECT_EQ(scores("both.safetensors", "a1"), scores("w6.safetensors", ""));
  const std::string between = sizes[sizes.size() / 2]["name"];
  EXPECT_THAT(run({"run", "both.safetensors", "--sample", "3", "--size", between}).out,
              HasSubstr(between));
  EXPECT_EQ(run({"run", "both.safetensors", "--sample", "3", "--budget", "0.8"}).exit_code, 0);
  EXPECT_EQ(
      run({"eval", "both.safetensors", "--budget-curve", "--save", "m.safetensors"}).exit_code, 0);
  for (const Json& size : json_of(run({"inspect", "m.safetensors", "--sizes", "--json"}))["sizes"])
    EXPECT_TRUE(size["quality"].contains("accuracy"));

  // Trained further, each way by itself.
  const Finished further = run({"train", "net.toml", "--from", "both.safetensors", "-o",
                                "trained.safetensors", "--set", "train.optimizer.rate=1e-3"});
  EXPECT_EQ(further.exit_code, 0) << further.err;
  EXPECT_THAT(further.out, HasSubstr(std::to_string(sizes.size()) + " sizes"));

  const auto message = [&](const std::string& pass) {
    const Finished finished = run({"transform", "w6.safetensors", "-o", "no", "--pass", pass});
    EXPECT_NE(finished.exit_code, 0);
    EXPECT_FALSE(file_exists(directory / "no"));
    return finished.err;
  };
  ASSERT_EQ(run({"train", "plain.toml", "-o", "mlp.safetensors"}).exit_code, 0);
  EXPECT_THAT(message("stitch:with=mlp.safetensors"), HasSubstr("mlp.safetensors"));
  EXPECT_THAT(message("stitch:with=none.safetensors"), HasSubstr("none.safetensors"));
  EXPECT_THAT(message("stitch:with=w4.safetensors,window=9"),
              HasSubstr("expected 1 to the 4 blocks"));
  EXPECT_THAT(message("stitch:with=w4.safetensors,stride=3"), HasSubstr("stride of stitches"));
  EXPECT_THAT(message("stitch:with=both.safetensors"), HasSubstr("sizes already"));
  EXPECT_THAT(message("stitch"), HasSubstr("with is missing"));
}

TEST_F(LabVerbs, PassesSayWhatTheyDoNotApplyTo) {
  ASSERT_EQ(run({"train", "plain.toml", "-o", "m.safetensors", "--set", "train.steps=2"}).exit_code,
            0);
  const Finished pattern = run({"transform", "m.safetensors", "-o", "out.safetensors", "--pass",
                                "prune:rate=0.5,slots=no.such.layer"});
  EXPECT_NE(pattern.exit_code, 0);
  EXPECT_THAT(pattern.err, HasSubstr("no.such.layer"));
  const Finished option =
      run({"transform", "m.safetensors", "-o", "out.safetensors", "--pass", "prune:rat=0.5"});
  EXPECT_NE(option.exit_code, 0);
  EXPECT_THAT(option.err, HasSubstr("rate"));
  write_linear_bundle(directory / "foreign.safetensors");
  EXPECT_THAT(
      run({"transform", "foreign.safetensors", "-o", "out.safetensors", "--pass", "fold-norm"}).err,
      StartsWith("sluice: error [unsupported]: "));
  EXPECT_FALSE(file_exists(directory / "out.safetensors"));
}

TEST_F(LabVerbs, TransformListsItsPasses) {
  const Finished text = run({"transform", "--list"});
  EXPECT_EQ(text.exit_code, 0);
  for (const char* pass :
       {"insert-gates", "freeze-gates", "slice-channels", "fold-norm", "prune"}) {
    EXPECT_THAT(text.out, HasSubstr(pass));
  }
  EXPECT_FALSE(json_of(run({"transform", "--list", "--json"}))["passes"].empty());
}

TEST_F(LabVerbs, ReproduceListsTheWholeCatalogue) {
  const Json document = json_of(run({"reproduce", "--list", "--json"}));
  EXPECT_EQ(document["systems"].size(), 129u);
  std::vector<std::string> runnable;
  std::string planned;
  for (const Json& system : document["systems"]) {
    if (system["state"] == "runnable") {
      runnable.push_back(system["slug"]);
    } else {
      planned = system["slug"];
    }
  }
  EXPECT_THAT(runnable, Contains("consensus-subnetwork"));
  if (!planned.empty()) {
    const Finished finished = run({"reproduce", planned});
    EXPECT_EQ(finished.exit_code, 1);
    EXPECT_THAT(finished.err, StartsWith("sluice: error [unsupported]: "));
  }
}

TEST_F(LabVerbs, ReproduceWithoutGnuplotKeepsItsTablesAndLeavesScripts) {
  const Finished finished = run({"reproduce", "lottery-ticket", "--scale", "tiny", "--out", "out"},
                                {.programs = directory.path()});
  EXPECT_EQ(finished.signal, 0);
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_THAT(finished.err, HasSubstr("no pictures: gnuplot"));
  EXPECT_THAT(finished.out, HasSubstr("verdict: "));
  EXPECT_TRUE(file_exists(directory / "out/lottery-ticket.json"));
  EXPECT_FALSE(file_exists(directory / "out/lottery-ticket-accuracy.svg"));
  EXPECT_THAT(read_bytes(directory / "out/lottery-ticket-accuracy.gnuplot"), HasSubstr("set term"));
}

TEST_F(LabVerbs, TheExampleConfigurationsAreValid) {
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(SLUICE_SOURCE_DIR) + "/configs")) {
    if (entry.path().filename().string().starts_with("decoder-")) continue;  // below
    // One step needs the data; a wrong batch is refused only after everything else has been read.
    const Finished finished =
        run({"train", entry.path().string(), "-o", "m.safetensors", "--set", "data.name=blobs",
             "--set", "data.train_limit=200", "--set", "train.batch=1000"});
    EXPECT_EQ(finished.exit_code, 1);
    EXPECT_THAT(finished.err, HasSubstr("batch = 1000 is more than")) << entry.path();
  }
}

TEST_F(LabVerbs, TheExampleConfigurationsOfDecodersAreValid) {
  std::string text;
  for (int line = 0; line < 400; ++line)
    text += "line " + std::to_string(line * 37) + " of a text\n";
  make_directories(directory / "texts");
  for (int file = 0; file < 8; ++file)
    write_bytes(directory / ("texts/" + std::to_string(file) + ".txt"),
                std::to_string(file) + text);
  for (const char* name : {"tiny", "small", "code"}) {
    const std::string file = std::string(SLUICE_SOURCE_DIR) + "/configs/decoder-" + name + ".toml";
    std::vector<std::string> arguments{"train", file, "-o", "m.safetensors"};
    for (const char* small :
         {"data.text=texts", "data.held_out=0.3", "tokenizer.vocab=280", "model.layers=1",
          "model.width=32", "model.heads=2", "model.kv_heads=1", "model.ffn=32", "model.context=16",
          "train.steps=2", "train.batch=1", "train.micro_batch=1", "train.precision=f32",
          "train.validate_tokens=64"}) {
      arguments.insert(arguments.end(), {"--set", small});
    }
    const Finished finished = run(arguments);
    EXPECT_EQ(finished.exit_code, 0) << file << "\n" << finished.err;
  }
}

}  // namespace lab_verbs_test
}  // namespace sluice::test
#endif
