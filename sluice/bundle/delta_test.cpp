#include "sluice/bundle/delta.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "sluice/base/file.h"
#include "sluice/base/random.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"
#include "sluice/bundle/testing.h"

namespace sluice::bundle {
namespace delta_test {

/// Weights that own their values.
struct Weights {
  std::map<std::string, std::pair<Shape, std::vector<float>>> all;

  NamedWeights view() const {
    NamedWeights named;
    for (const auto& [name, entry] : all) named[name] = {entry.first, entry.second};
    return named;
  }
};

/// Values of all sizes: sums of unlike exponents are where rounding bites.
std::vector<float> values(int64_t count, uint64_t seed) {
  std::vector<float> out;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = derive_seed(seed, "value", uint64_t(i));
    const double x = double(bits >> 11) * 0x1p-53 - 0.5;
    out.push_back(float(x * std::pow(10.0, double(bits % 9) - 4)));
  }
  return out;
}

Weights network(uint64_t seed) {
  Weights w;
  w.all["a.weight"] = {{20, 10}, values(200, seed)};
  w.all["b.weight"] = {{5, 4, 3, 3}, values(180, seed + 1)};
  w.all["b.bias"] = {{5}, values(5, seed + 2)};
  return w;
}

bool same(const Weights& x, const Weights& y) {
  for (const auto& [name, entry] : x.all) {
    const auto& other = y.all.at(name).second;
    if (std::memcmp(entry.second.data(), other.data(), other.size() * sizeof(float)) != 0)
      return false;
  }
  return true;
}

int64_t apply(const SparseDelta& delta, double scale, Weights& weights) {
  int64_t exact = 0;
  for (const auto& [name, tensor] : delta.tensors)
    exact += apply_delta(tensor, scale, weights.all.at(name).second, name);
  return exact;
}

TEST(SparseDelta, KeepsTheLargestDifferencesExactly) {
  const Weights base = network(1), tuned = network(7);
  for (const double density : {0.0, 0.01, 0.05, 0.5, 1.0}) {
    for (const bool by_layer : {false, true}) {
      DeltaSummary summary;
      const SparseDelta delta = make_delta(base.view(), tuned.view(),
                                           {.density = density, .by_layer = by_layer}, &summary);
      EXPECT_EQ(summary.weights, 380);
      EXPECT_EQ(summary.changed, 380);
      EXPECT_EQ(summary.vectors, 5);
      EXPECT_EQ(summary.kept, by_layer ? std::llround(density * 200) + std::llround(density * 180)
                                       : std::llround(density * 380));
      EXPECT_EQ(delta.entries(), summary.kept + 5);
      // Nothing that was left out differs more than what was kept.
      double least = 1e300, most = 0;
      for (const char* name : {"a.weight", "b.weight"}) {
        const auto &from = base.all.at(name).second, &to = tuned.all.at(name).second;
        std::vector<bool> kept(from.size(), false);
        if (const auto found = delta.tensors.find(name); found != delta.tensors.end()) {
          for (size_t k = 0; k < found->second.index.size(); ++k) {
            const auto i = size_t(found->second.index[k]);
            kept[i] = true;
            EXPECT_EQ(found->second.before[k], from[i]);
            EXPECT_EQ(found->second.after[k], to[i]);
          }
        }
        for (size_t i = 0; i < from.size(); ++i) {
          const double size = std::abs(double(to[i]) - double(from[i]));
          if (kept[i]) {
            least = std::min(least, size);
          } else {
            most = std::max(most, size);
          }
        }
        if (by_layer) {
          EXPECT_GE(least, most) << name;
          least = 1e300, most = 0;
        }
      }
      if (!by_layer) {
        EXPECT_GE(least, most);
      }
      if (density == 1) {
        EXPECT_EQ(summary.energy, 1);
      } else {
        EXPECT_LT(summary.energy, 1);
      }
    }
  }
}

TEST(SparseDelta, AddedAndTakenAwayGivesTheBaseBitForBit) {
  const Weights base = network(1), tuned = network(7);
  const SparseDelta whole = make_delta(base.view(), tuned.view(), {.density = 1});
  Weights now = base;
  EXPECT_EQ(apply(whole, 1, now), whole.entries());
  EXPECT_TRUE(same(now, tuned));
  EXPECT_EQ(apply(whole, -1, now), whole.entries());
  EXPECT_TRUE(same(now, base));
  // The bare arithmetic would not have done it.
  int64_t off = 0;
  for (const auto& [name, tensor] : whole.tensors)
    for (size_t k = 0; k < tensor.index.size(); ++k) {
      const float d = tensor.after[k] - tensor.before[k];
      off += (tensor.before[k] + d) - d != tensor.before[k];
    }
  EXPECT_GT(off, 10);
}

TEST(SparseDelta, SeveralAddUpAndComeOffInAnyOrder) {
  const Weights base = network(1);
  // Two that share no place.
  const Weights seven = network(7), nine = network(9);
  const SparseDelta first = make_delta(base.view(), seven.view(),
                                       {.density = 0.3, .pattern = "a.weight"}),
                    second =
                        make_delta(base.view(), nine.view(), {.density = 0.3, .pattern = "b.*"});
  Weights now = base;
  apply(first, 1, now);
  apply(second, 1, now);
  apply(first, -1, now);
  EXPECT_FALSE(same(now, base));
  apply(second, -1, now);
  EXPECT_TRUE(same(now, base));
  // Two that share all: sums, and the base again to a rounding for each.
  const SparseDelta third = make_delta(base.view(), nine.view(), {.density = 1}),
                    whole = make_delta(base.view(), seven.view(), {.density = 1});
  now = base;
  apply(whole, 1, now);
  EXPECT_EQ(apply(third, 1, now), 0);
  const auto &a = base.all.at("a.weight").second, &x = seven.all.at("a.weight").second,
             &y = nine.all.at("a.weight").second;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(now.all.at("a.weight").second[i],
              float(double(x[i]) + (double(y[i]) - double(a[i]))));
  }
  apply(whole, -1, now);
  apply(third, -1, now);
  for (const auto& [name, entry] : base.all) {
    for (size_t i = 0; i < entry.second.size(); ++i) {
      const double size =
          std::max({std::abs(entry.second[i]), std::abs(whole.tensors.at(name).after[i]),
                    std::abs(third.tensors.at(name).after[i])});
      EXPECT_NEAR(now.all.at(name).second[i], entry.second[i], 4 * size * 0x1p-23) << name << i;
    }
  }
  // Half of it.
  now = base;
  EXPECT_EQ(apply(whole, 0.5, now), 0);
  EXPECT_EQ(now.all.at("a.weight").second[3],
            float(double(a[3]) + 0.5 * (double(x[3]) - double(a[3]))));
}

TEST(SparseDelta, RefusesWhatIsNotOneNetwork) {
  const Weights base = network(1);
  const auto make = [&](const Weights& tuned, const DeltaOptions& options = {}) {
    return make_delta(base.view(), tuned.view(), options);
  };
  Weights other = network(7);
  EXPECT_ERROR(make(other, {.density = 1.5}), Code::config, "density 1.5");
  EXPECT_ERROR(make(other, {.density = std::nan("")}), Code::config, "density");
  EXPECT_ERROR(make(other, {.pattern = "c.*"}), Code::usage, "no tensor matches 'c.*'");
  other.all["c"] = {{1}, {1}};
  EXPECT_ERROR(make(other), Code::missing, "'c' is in the tuned network only");
  other = network(7);
  other.all.erase("b.bias");
  EXPECT_ERROR(make(other), Code::missing, "'b.bias' is in the base only");
  other = network(7);
  other.all["a.weight"].first = {10, 20};
  EXPECT_ERROR(make(other), Code::shape, "'a.weight': 20 x 10 in the base, 10 x 20");
  other = network(7);
  other.all["a.weight"].second[7] = std::nanf("");
  EXPECT_ERROR(make(other), Code::numeric, "tuned network: tensor 'a.weight': value 7 is nan");
  // A sum that is no number changes nothing.
  const SparseDelta delta = make(network(7), {.density = 1});
  Weights now = base;
  now.all["a.weight"].second[5] = std::numeric_limits<float>::max();
  const Weights before = now;
  EXPECT_ERROR(apply_delta(delta.tensors.at("a.weight"), 1e38, now.all.at("a.weight").second, "a"),
               Code::numeric, "a: value");
  EXPECT_TRUE(same(now, before));
}

TEST(SparseDelta, TheDigestIsOfNamesShapesAndValues) {
  const Weights base = network(1);
  const std::string digest = weights_digest(base.view());
  EXPECT_EQ(digest.size(), 16u);
  EXPECT_EQ(weights_digest(network(1).view()), digest);
  Weights other = base;
  other.all["a.weight"].second[199] += 1;
  EXPECT_NE(weights_digest(other.view()), digest);
  other = base;
  other.all["a.weight"].first = {10, 20};
  EXPECT_NE(weights_digest(other.view()), digest);
  other = base;
  other.all["a2.weight"] = other.all.extract("a.weight").mapped();
  EXPECT_NE(weights_digest(other.view()), digest);
}

TEST(SparseDelta, ComesBackFromAFile) {
  const TempDirectory folder;
  SparseDelta delta = make_delta(network(1).view(), network(7).view(), {.density = 0.1});
  delta.made = R"({"base":"x"})";
  write_delta(folder / "d", delta);
  const SparseDelta again = read_delta(folder / "d");
  EXPECT_EQ(again.base, delta.base);
  EXPECT_EQ(again.made, delta.made);
  ASSERT_EQ(again.tensors.size(), delta.tensors.size());
  for (const auto& [name, tensor] : delta.tensors) {
    EXPECT_EQ(again.tensors.at(name).shape, tensor.shape);
    EXPECT_EQ(again.tensors.at(name).index, tensor.index);
    EXPECT_EQ(again.tensors.at(name).before, tensor.before);
    EXPECT_EQ(again.tensors.at(name).after, tensor.after);
  }
  // Nothing differs: an empty one, which changes nothing.
  write_delta(folder / "e", make_delta(network(1).view(), network(1).view(), {}));
  EXPECT_EQ(read_delta(folder / "e").entries(), 0);
}

/// A file with that document and one tensor "w" of three entries.
std::string file(const std::string& document, std::vector<int32_t> index = {0, 2, 5},
                 std::vector<float> after = {1, 2, 3}, const std::string& extra = "",
                 DType index_type = DType::i32) {
  const std::vector<float> before{0, 0, 0};
  std::vector<TensorView> views{
      {"w/index", index_type, {std::ssize(index)}, std::as_bytes(std::span(index))},
      {"w/before", DType::f32, {3}, std::as_bytes(std::span(before))},
      {"w/after", DType::f32, {std::ssize(after)}, std::as_bytes(std::span(after))}};
  if (!extra.empty()) views.push_back({extra, DType::f32, {3}, std::as_bytes(std::span(before))});
  return testing::as_text(safetensors_bytes(views, {{"sluice.delta", document}}));
}

std::string document(const std::string& tensors, const std::string& base = "0123456789abcdef",
                     const std::string& version = "1") {
  return R"({"version":)" + version + R"(,"base":")" + base + R"(","tensors":)" + tensors + "}";
}

TEST(SparseDelta, FilesThatLieAreErrors) {
  const auto parse = [](const std::string& bytes) {
    return parse_delta(SafetensorsFile::parse(testing::as_bytes(bytes), "f"));
  };
  const std::string fine = document(R"({"w":[2,3]})");
  EXPECT_EQ(parse(file(fine)).entries(), 3);
  EXPECT_ERROR(parse(testing::as_text(safetensors_bytes({}, {}))), Code::format, "not a delta");
  EXPECT_ERROR(parse(file("[1]")), Code::format, "expected an object");
  EXPECT_ERROR(parse(file("{")), Code::format, "f: sluice.delta");
  EXPECT_ERROR(parse(file(document(R"({"w":[2,3]})", "0123", "1"))), Code::format,
               "16 hexadecimal");
  EXPECT_ERROR(parse(file(document("[]"))), Code::format, "an object of shapes");
  EXPECT_ERROR(parse(file(document(R"({"w":[2,3]})", "0123456789abcdef", "2"))), Code::unsupported,
               "version 2");
  EXPECT_ERROR(parse(file(document(R"({"w":[2,3]})", "0123456789abcdef", "\"1\""))), Code::format,
               "version is missing");
  EXPECT_ERROR(parse(file(document(R"({"w":[2,2]})"))), Code::format,
               "place 5 behind 2; expected ascending ones below 4");
  EXPECT_ERROR(parse(file(document(R"({"w":[2,0]})"))), Code::format, "a dimension of 1 to");
  EXPECT_ERROR(parse(file(document(R"({"w":[2,-3]})"))), Code::format, "a dimension of 1 to");
  EXPECT_ERROR(parse(file(document(R"({"w":[65536,65536]})"))), Code::limit, "values or more");
  EXPECT_ERROR(parse(file(document(R"({"w":[2.5]})"))), Code::format, "a dimension");
  EXPECT_ERROR(parse(file(document(R"({"w":"x"})"))), Code::format, "expected a shape");
  EXPECT_ERROR(parse(file(document(R"({"v":[2,3]})"))), Code::format, "'v/index' is missing");
  EXPECT_ERROR(parse(file(document(R"({})"))), Code::format, "3 tensors in the file");
  EXPECT_ERROR(parse(file(fine, {0, 2, 2})), Code::format, "place 2 behind 2");
  EXPECT_ERROR(parse(file(fine, {-1, 2, 3})), Code::format, "place -1");
  EXPECT_ERROR(parse(file(fine, {0, 2})), Code::format, "2 places, 3 values before");
  EXPECT_ERROR(parse(file(fine, {0, 2, 5}, {1, 2})), Code::format, "and 2 after");
  EXPECT_ERROR(parse(file(fine, {0, 2, 5}, {1, NAN, 2})), Code::numeric, "after: value 1 is nan");
  EXPECT_ERROR(parse(file(fine, {0, 2, 5}, {1, 2, 3}, "more")), Code::format, "4 tensors");
  EXPECT_ERROR(parse(file(fine, {0, 2, 5}, {1, 2, 3}, "", DType::f32)), Code::format,
               "'w/index': expected");
}

}  // namespace delta_test
}  // namespace sluice::bundle
