// Writes the seeds that bundle_fuzz and graph_fuzz start from, always the same: valid files of each
// kind, and one of each way to be broken that mutation would take long to find.
#include <cstdio>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/bundle/testing.h"

using namespace sluice;
using namespace sluice::bundle;
using namespace sluice::bundle::testing;

namespace {

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  SLUICE_CHECK(at != text.npos);
  return text.replace(at, from.size(), to);
}

void write_seeds(const std::string& folder) {
  make_directories(folder + "/bundle");
  make_directories(folder + "/graph");
  const auto seed = [&](const std::string& name, const std::string& bytes) {
    write_text_file(folder + "/bundle/" + name, bytes);
  };
  const std::string valid = as_text(small_network().bytes());
  seed("valid", valid);
  seed("flipped-data", std::string(valid).replace(valid.size() - 3, 1, "\x7f"));
  seed("truncated", valid.substr(0, valid.size() - 5));
  seed("newer-version", replaced(valid, R"("sluice.version":"1")", R"("sluice.version":"9")"));
  seed("unknown-op", replaced(valid, "global_avg_pool", "global_max_pool"));
  seed("bad-task", replaced(valid, R"(\"std\":0.5)", R"(\"std\":0.0)"));

  Builder every;  // the operators that small_network has not
  const std::vector<float> four(4, 0.5f), one(1, 2.0f), eight(8, -1.0f);
  every.tensor("s", {4}, four);
  every.tensor("t", {1}, one);
  every.tensor("d", {8}, eight);
  Value x = every.input("x", {4, 8, 8});
  x = every.node(
      "max_pool2d", "a.max", {x},
      {{"kernel", std::vector<int64_t>{3, 3}}, {"stride", int64_t{2}}, {"padding", int64_t{1}}});
  x = every.node("avg_pool2d", "a.avg", {x}, {{"kernel", int64_t{2}}, {"stride", int64_t{1}}});
  const Value gate = every.node(
      "threshold", "gate.on", {every.node("global_avg_pool", "gate.pool", {x})}, {{"value", 0.25}});
  x = every.node("mul", "gate.mul", {x, gate});
  x = every.node("scale", "b.0", {x}, {}, {{"scale", "s"}});
  x = every.node("scale", "b.1", {x}, {}, {{"scale", "t"}});
  x = every.node("flatten", "c.flatten", {x});
  const Value y = every.input("y", {5, 8});
  every.output(every.node("softmax", "c.softmax", {x}));
  every.output(
      every.node("layer_norm", "c.norm", {y}, {{"eps", 1e-6}}, {{"weight", "d"}, {"bias", "d"}}));
  seed("operators", as_text(every.bytes()));

  Builder nested;  // with a table of sizes
  nested.tensor("w", {4, 2, 1, 1}, eight);
  nested.tensor("t", {2, 4}, eight);
  const std::vector<int64_t> rows{2, 4}, choice{1, 0};
  const Value picture = nested.input("x", {2, 3, 3});
  Value z = nested.node("prefix_conv2d", "a", {picture}, {{"rows", rows}},
                        {{"weight", "w"}, {"scale", "t"}, {"bias", "t"}});
  z = nested.node("size_switch", "c",
                  {nested.node("activation", "b", {z}, {{"kind", std::string("relu")}}), z},
                  {{"choice", choice}});
  nested.output(z);
  nested.set_sizes({{"small", 2 * 2 * 9, {{"accuracy", 0.5}}}, {"large", 4 * 2 * 9, {}}});
  seed("sizes", as_text(nested.bytes()));

  seed(
      "plain",
      raw_file(
          R"({"__metadata__":{"format":"pt"},"a.w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
          R"("a.b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]},)"
          R"("e":{"dtype":"I64","shape":[0],"data_offsets":[12,12]}}   )",
          std::string_view("\0\0\0\0\0\0\x80?\0\0\x80?", 12)));
  seed("no-tensors", raw_file("{}"));
  seed("empty", "");
  seed("long-header", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10));
  seed("nested", raw_file(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", "1234"));
  seed("twice", raw_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                         R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                         "12"));
  seed("overlap", raw_file(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                           R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                           "123"));
  seed("overflow",
       raw_file(R"({"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"));
  seed("backwards", raw_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", "1"));

  write_text_file(folder + "/graph/small", graph_to_json(small_network().graph()));
  write_text_file(folder + "/graph/operators", graph_to_json(every.graph()));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 2) fail(Code::usage, "expected one argument, the folder fuzz/corpus");
    write_seeds(argv[1]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make_bundle_corpus: %s\n", error.what());
    return 1;
  }
}
