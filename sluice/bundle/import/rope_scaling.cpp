#include "sluice/bundle/import/rope_scaling.h"

#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

constexpr Range kFactor{1e-3, 1e6}, kBase{1 + 1e-6, 1e30};
constexpr double kPi = 3.14159265358979323846;

/// Long waves are stretched by `factor`, short ones not, those between in proportion.
std::vector<float> llama3_factors(const Config& scaling, const RopeScaling& rope,
                                  int64_t original) {
  const double factor = scaling.number("factor", kFactor),
               low = scaling.number("low_freq_factor", kFactor),
               high = scaling.number("high_freq_factor", kFactor);
  if (!(high > low))
    fail(Code::config, "{}: expected a number above low_freq_factor, {}, found {}",
         scaling.field("high_freq_factor"), low, high);
  std::vector<float> factors;
  for (int64_t i = 0; i < rope.dims / 2; ++i) {
    const double wave = 2 * kPi * std::pow(rope.base, 2.0 * double(i) / double(rope.dims)),
                 turns = double(original) / wave,
                 kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    factors.push_back(static_cast<float>(1 / ((1 - kept) / factor + kept)));
  }
  return factors;
}

/// Pairs that turn more than beta_fast times within the original length keep their frequency, those
/// that turn less than beta_slow times are stretched; a ramp over the pairs between.
void read_yarn(const Config& scaling, RopeScaling& rope, int64_t original) {
  const double factor = scaling.number("factor", kFactor),
               fast = scaling.number_or("beta_fast", 32, kFactor),
               slow = scaling.number_or("beta_slow", 1, kFactor);
  const auto pair_with = [&](double turns) {
    return double(rope.dims) * std::log(double(original) / (turns * 2 * kPi)) /
           (2 * std::log(rope.base));
  };
  double first = pair_with(fast), last = pair_with(slow);
  if (scaling.flag_or("truncate", true)) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, double(rope.dims - 1));
  if (first == last) last += 0.001;
  for (int64_t i = 0; i < rope.dims / 2; ++i) {
    const double stretched = std::clamp((double(i) - first) / (last - first), 0.0, 1.0);
    rope.factors.push_back(static_cast<float>(1 / (stretched / factor + (1 - stretched))));
  }
  const auto magnitude = [&](double weight) {
    return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1;
  };
  const double all = scaling.number_or("mscale_all_dim", 0, {0, 1e3}),
               own = scaling.number_or("mscale", 0, {0, 1e3});
  const double inferred = all > 0 && own > 0 ? magnitude(own) / magnitude(all) : magnitude(1);
  const double magnified = scaling.number_or("attention_factor", inferred, kFactor);
  rope.attention = magnified * magnified;
}

}  // namespace

RopeScaling read_rope(const Config& config, int64_t head_dim) {
  RopeScaling rope;
  const bool joined = config.has("rope_parameters");
  const std::string name = joined ? "rope_parameters" : "rope_scaling";
  const std::optional<Config> scaling = config.object(name);
  const Config& place = joined ? *scaling : config;
  rope.base = joined && !scaling->has("rope_theta") ? config.number_or("rope_theta", 10000, kBase)
                                                    : place.number_or("rope_theta", 10000, kBase);
  const double partial = place.number_or(
      "partial_rotary_factor", config.number_or("partial_rotary_factor", 1, {0, 1}), {0, 1});
  rope.dims = static_cast<int64_t>(double(head_dim) * partial);
  if (rope.dims < 2 || rope.dims % 2 != 0)
    fail(Code::unsupported, "{}: {} of {} columns of a head are {}; expected an even number",
         config.field("partial_rotary_factor"), partial, head_dim, rope.dims);
  rope.positions = config.integer("max_position_embeddings");
  if (!scaling) return rope;
  const std::string type = scaling->text_or("rope_type", scaling->text_or("type", "default"));
  const int64_t original =
      scaling->integer_or("original_max_position_embeddings",
                          config.integer_or("original_max_position_embeddings", rope.positions));
  if (type == "default") return rope;
  if (type == "linear") {
    rope.scale = scaling->number("factor", kFactor);
  } else if (type == "dynamic") {
    scaling->number("factor", kFactor);
    rope.positions = original;  // beyond it frequencies change with the length
  } else if (type == "llama3") {
    rope.factors = llama3_factors(*scaling, rope, original);
  } else if (type == "yarn") {
    read_yarn(*scaling, rope, original);
    if (rope.attention != 1 && rope.dims != head_dim)
      fail(Code::unsupported, "{}: yarn on a part of each head; set attention_factor to 1",
           config.field("partial_rotary_factor"));
  } else {
    fail(Code::unsupported, "{}: expected default, linear, dynamic, llama3 or yarn, found '{}'",
         scaling->field(scaling->has("rope_type") ? "rope_type" : "type"), printable(type, 60));
  }
  return rope;
}

}  // namespace sluice::bundle::hf
