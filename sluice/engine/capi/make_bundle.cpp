// Writes the bundles that capi_test.c loads: make_bundle <path> writes a classifier there and a sum
// over time, of up to 4 rows of 2, to <path>.rows
#include <cstdio>
#include <string>

#include "sluice/base/error.h"
#include "sluice/bundle/bundle.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    sluice::bundle::Builder builder;
    builder.tensor("fc.weight", {2, 3}, std::vector<float>{1, 2, 3, -1, 0, 0.5f});
    builder.tensor("fc.bias", {2}, std::vector<float>{0.5f, -0.25f});
    const auto x = builder.input("x", {3});
    const auto y = builder.node("prefix_linear", "fc", {x}, {{"rows", std::vector<int64_t>{1, 2}}},
                                {{"weight", "fc.weight"}, {"bias", "fc.bias"}});
    builder.output(builder.node("activation", "relu", {y}, {{"kind", std::string("relu")}}));
    sluice::bundle::Task task;
    task.kind = "classify";
    task.labels = {"left", "right"};
    builder.set_task(task);
    builder.set_sizes({{"small", 3, {}}, {"large", 6, {}}});
    builder.write(argv[1]);

    sluice::bundle::Builder rows;
    rows.tensor("fc.weight", {1, 2}, std::vector<float>{1, 10});
    const auto r = rows.input("x", {4, 2});
    const auto z = rows.node("linear", "fc", {r}, {}, {{"weight", "fc.weight"}});
    rows.output(rows.node("pool_rows", "last", {z}, {{"kind", std::string("last")}}));
    rows.write(std::string(argv[1]) + ".rows");
  } catch (const sluice::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
