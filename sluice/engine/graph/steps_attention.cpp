#include <cmath>

#include "sluice/base/error.h"
#include "sluice/engine/graph/steps.h"
#include "sluice/engine/kernel/attention.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/linear_attention.h"
#include "sluice/engine/kernel/rows.h"
#include "sluice/engine/kernel/spark_attention.h"

namespace sluice::engine {
namespace {

using bundle::Node;

void plan_rope(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  const Shape& shape = planner.full_shape(group.inputs[0]);
  const size_t heads = static_cast<size_t>(bundle::attr_int(node.attrs, "heads", 1)),
               width = static_cast<size_t>(shape[1]) / heads,
               start = static_cast<size_t>(bundle::attr_int(node.attrs, "start", 0));
  std::vector<float> factors = copy_tensor(planner.bundle(), node, "factors");
  for (const float factor : factors)
    if (!(factor > 0))
      fail(Code::numeric, "{}: tensor 'factors': expected numbers above 0, found {}", node.path,
           factor);
  const auto table = shared_rope(
      static_cast<size_t>(
          bundle::attr_int(node.attrs, "dims", static_cast<int64_t>(width - start))),
      bundle::attr_double(node.attrs, "base", 10000), bundle::attr_double(node.attrs, "scale", 1),
      bundle::attr_string(node.attrs, "layout", "half") == "interleaved", std::move(factors));
  for (const std::string& input : group.inputs)
    step.inputs.push_back(planner.fetch(input, Layout::plain));
  step.kernel.name = "sluice rope";
  step.kernel.counts_rows = true;
  step.kernel.in_place = 0;
  step.kernel.scratch_bytes = static_cast<int64_t>(table->scratch() * sizeof(float));
  step.kernel.bind = [=, tokens = shape[0]](const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows);
    const float* in = b.inputs[0];
    const float* given = b.inputs.size() > 1 ? b.inputs[1] : nullptr;
    float* scratch = reinterpret_cast<float*>(b.scratch);
    return [=, rows = b.rows, position = b.position, out = b.output] {
      const int64_t unit = tokens / rows->per_sample;
      const size_t columns = heads * width;
      for (int64_t s = 0; s < rows->samples; ++s) {
        const int64_t first = rows->start[s] * unit, before = position ? position[s] : 0;
        for (int64_t r = first; r < rows->start[s + 1] * unit; ++r) {
          const double at =
              given ? static_cast<double>(given[r]) : static_cast<double>(before + r - first);
          const size_t offset = static_cast<size_t>(r) * columns;
          table->apply(in + offset, heads, width, at, scratch, out + offset, start);
        }
      }
    };
  };
  planner.finish(index, std::move(step), Layout::plain);
}

AttentionSpec attention_spec(const Node& node, const Shape& q, const Shape& v) {
  AttentionSpec spec;
  spec.heads = bundle::attr_int(node.attrs, "heads", 1);
  spec.kv_heads = bundle::attr_int(node.attrs, "kv_heads", spec.heads);
  spec.key_width = q[1] / spec.heads;
  spec.value_width = v[1] / spec.kv_heads;
  spec.causal = bundle::attr_string(node.attrs, "mask", "causal") == "causal";
  spec.window = bundle::attr_int(node.attrs, "window", 0);
  spec.cache = bundle::attr_int(node.attrs, "cache", 0);
  const std::string type = bundle::attr_string(node.attrs, "cache_type", "f32");
  spec.cache_type = type == "bf16"  ? CacheType::bf16
                    : type == "f16" ? CacheType::f16
                                    : CacheType::f32;
  spec.scale = static_cast<float>(
      bundle::attr_double(node.attrs, "scale", 1 / std::sqrt(static_cast<double>(spec.key_width))));
  return spec;
}

/// What one lane's call needs, in place before it runs.
struct AttentionCall {
  AttentionSpec spec;
  int64_t tokens, keys;  // rows of a sample
  int threads;
  const float *q, *k, *v, *open;  ///< open: [rows][kv_heads] or null
  float* out;
  std::byte* scratch;
  std::byte* caches;  // of all samples
  int64_t* seen;      // rows in each
  const int64_t* position;
  const LiveRows *rows, *key_rows;  ///< the same, or queries of fewer of the keys' rows
  Work* work;
  std::vector<AttentionRows> samples;
  int64_t cache_bytes;
  bool rewinds;               ///< positions are those of the sequence, which may have gone back
  std::vector<int64_t> at{};  ///< of queries that are fewer, within their sample

  void run() {
    const int64_t unit = tokens / rows->per_sample, key_unit = keys / key_rows->per_sample;
    for (int64_t s = 0; s < rows->samples; ++s) {
      AttentionRows& sample = samples[static_cast<size_t>(s)];
      const int64_t first = rows->start[s] * unit, key_first = key_rows->start[s] * key_unit;
      sample.rows = rows->start[s + 1] * unit - first;
      sample.keys = key_rows->start[s + 1] * key_unit - key_first;
      sample.q = q + first * spec.heads * spec.key_width;
      sample.k = k + key_first * spec.kv_heads * spec.key_width;
      sample.v = v + key_first * spec.kv_heads * spec.value_width;
      sample.out = out + first * spec.heads * spec.value_width;
      if (open) sample.open = open + first * spec.kv_heads;
      if (rows != key_rows) {  // a number of `keep` per row: their unit is 1
        sample.at = at.data() + first;
        for (int64_t r = first; r < first + sample.rows; ++r)
          at[static_cast<size_t>(r)] = rows->source[r] - key_first;
      }
      if (spec.cache == 0) continue;
      if (!position || position[s] == 0) seen[s] = 0;
      if (rewinds) seen[s] = std::min(seen[s], position[s]);
      sample.seen = seen[s];
      sample.cache = caches + s * cache_bytes;
      seen[s] += sample.keys;
    }
    const Work done = attention(spec, samples, threads, scratch);
    if (!work) return;
    work->macs += done.macs;
    work->bytes += done.bytes;
  }
};

void plan_attention(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Shape& q = planner.full_shape(group.inputs[0]);
  const AttentionSpec spec =
      attention_spec(planner.node(index), q, planner.full_shape(group.inputs[2]));
  const int threads = planner.threads_for(step.info.cost.macs);
  const int64_t samples = planner.all_samples();
  // Which queries there are is known from their rows: `keep` is not read again.
  const bool gated = bundle::attr_bool(planner.node(index).attrs, "gated", false);
  for (size_t i = 0; i < (gated ? 4u : 3u); ++i)
    step.inputs.push_back(planner.fetch(group.inputs[i], Layout::plain));
  const int64_t seen_bytes = align_up(samples * static_cast<int64_t>(sizeof(int64_t)));
  // Otherwise a cache's positions are not those of the sequence.
  const bool rewinds = spec.cache > 0 && planner.has_all_rows(group.inputs[1]) &&
                       q[0] == planner.bundle().graph().inputs[0].shape[0];
  if (spec.cache > 0) {
    step.kernel.state_bytes = checked_add(
        seen_bytes, checked_mul(samples, attention_cache_bytes(spec), "cache"), "cache");
    // A window's cache wraps where nothing that is still seen is overwritten.
    const bool wraps = spec.window > 0 && spec.cache >= spec.window + q[0] - 1;
    if (!wraps) planner.limit_capacity(spec.cache);
    if (!rewinds) planner.limit_rewind(0);
    // Position p took the place of p - cache. What a row at q looks back to, q - window + 1, is
    // still there when none before it was taken.
    if (wraps) planner.limit_rewind(spec.cache - spec.window + 1);
  }
  step.kernel.name = "sluice attention";
  step.kernel.counts_rows = true;
  step.kernel.metered = true;
  step.kernel.scratch_bytes = attention_scratch_bytes(spec, threads);
  step.kernel.bind = [=, tokens = q[0], keys = planner.full_shape(group.inputs[1])[0]](
                         const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows && b.other && (b.state || spec.cache == 0));
    auto call = std::make_shared<AttentionCall>();
    *call = {spec,
             tokens,
             keys,
             threads,
             b.inputs[0],
             b.inputs[1],
             b.inputs[2],
             gated ? b.inputs[3] : nullptr,
             b.output,
             b.scratch,
             b.state + seen_bytes,
             reinterpret_cast<int64_t*>(b.state),
             b.position,
             b.rows,
             b.other,
             b.work,
             std::vector<AttentionRows>(static_cast<size_t>(samples)),
             spec.cache > 0 ? attention_cache_bytes(spec) : 0,
             rewinds};
    if (b.rows != b.other) call->at.resize(static_cast<size_t>(samples * tokens));
    return [call] { call->run(); };
  };
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_spark_attention(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  const Shape &q = planner.full_shape(group.inputs[0]), &v = planner.full_shape(group.inputs[2]);
  SparkAttentionSpec spec;
  spec.heads = bundle::attr_int(node.attrs, "heads", 1);
  spec.split = bundle::attr_int(node.attrs, "split", 1);
  spec.rest = q[1] / spec.heads - spec.split;
  spec.value_width = v[1] / spec.heads;
  spec.tokens = bundle::attr_int(node.attrs, "tokens", 1);
  spec.cache = bundle::attr_int(node.attrs, "cache", 0);
  const int threads = planner.threads_for(step.info.cost.macs);
  const int64_t samples = planner.all_samples();
  for (const std::string& input : group.inputs)
    step.inputs.push_back(planner.fetch(input, Layout::plain));
  const int64_t seen_bytes = align_up(samples * static_cast<int64_t>(sizeof(int64_t)));
  const bool rewinds = spec.cache > 0 && planner.has_all_rows(group.inputs[0]) &&
                       q[0] == planner.bundle().graph().inputs[0].shape[0];
  if (spec.cache > 0) {
    step.kernel.state_bytes =
        checked_add(seen_bytes, checked_mul(samples, spark_cache_bytes(spec), "cache"), "cache");
    planner.limit_capacity(spec.cache);
    if (!rewinds) planner.limit_rewind(0);
  }
  step.kernel.name = "sluice spark_attention";
  step.kernel.counts_rows = true;
  step.kernel.metered = true;
  step.kernel.scratch_bytes = spark_scratch_bytes(spec, q[0], threads);
  step.kernel.bind = [=, tokens = q[0]](const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows && (b.state || spec.cache == 0));
    auto calls = std::make_shared<std::vector<SparkAttentionRows>>(static_cast<size_t>(samples));
    const float *query = b.inputs[0], *key = b.inputs[1], *value = b.inputs[2];
    auto* seen = reinterpret_cast<int64_t*>(b.state);
    std::byte* caches = b.state ? b.state + seen_bytes : nullptr;
    const int64_t each = spec.cache > 0 ? spark_cache_bytes(spec) : 0;
    return [=, scratch = b.scratch, out = b.output, rows = b.rows, position = b.position,
            work = b.work] {
      const int64_t unit = tokens / rows->per_sample, width = spec.heads * (spec.split + spec.rest),
                    wide = spec.heads * spec.value_width;
      for (int64_t s = 0; s < rows->samples; ++s) {
        SparkAttentionRows& sample = (*calls)[static_cast<size_t>(s)];
        const int64_t first = rows->start[s] * unit;
        sample.rows = rows->start[s + 1] * unit - first;
        sample.q = query + first * width;
        sample.k = key + first * width;
        sample.v = value + first * wide;
        sample.out = out + first * wide;
        if (spec.cache == 0) continue;
        if (!position || position[s] == 0) seen[s] = 0;
        if (rewinds) seen[s] = std::min(seen[s], position[s]);
        sample.seen = seen[s];
        sample.cache = caches + s * each;
        seen[s] += sample.rows;
      }
      const Work done = spark_attention(spec, *calls, threads, scratch);
      if (!work) return;
      work->macs += done.macs;
      work->bytes += done.bytes;
    };
  };
  planner.finish(index, std::move(step), Layout::plain);
}

void plan_linear_attention(Planner& planner, size_t index, Step step) {
  const Group& group = planner.group(index);
  const Node& node = planner.node(index);
  const Shape &q = planner.full_shape(group.inputs[0]), &v = planner.full_shape(group.inputs[2]);
  LinearAttentionSpec spec;
  spec.heads = bundle::attr_int(node.attrs, "heads", 1);
  spec.key_width = q[1] / spec.heads;
  spec.value_width = v[1] / spec.heads;
  spec.scale = static_cast<float>(bundle::attr_double(node.attrs, "scale", 1));
  if (group.inputs.size() > 3)
    spec.decay = planner.full_shape(group.inputs[3])[1] == q[1] ? Decay::channel : Decay::head;
  const bool carry = bundle::attr_bool(node.attrs, "carry", false);
  const int threads = planner.threads_for(step.info.cost.macs);
  const int64_t samples = planner.all_samples();
  for (const std::string& input : group.inputs)
    step.inputs.push_back(planner.fetch(input, Layout::plain));
  const int64_t each = linear_attention_state_bytes(spec),
                states = checked_mul(samples, each, "state"),
                own = align_up(linear_attention_scratch_bytes(spec, threads));
  if (carry) planner.limit_rewind(0);
  step.kernel.name = "sluice linear_attention";
  step.kernel.counts_rows = true;
  step.kernel.metered = true;
  step.kernel.state_bytes = carry ? states : 0;
  step.kernel.scratch_bytes = checked_add(own, carry ? 0 : states, "state");
  step.kernel.bind = [=, tokens = q[0],
                      decays = group.inputs.size() > 3](const Binding& b) -> std::function<void()> {
    SLUICE_CHECK(b.rows && (b.state || !carry));
    auto calls = std::make_shared<std::vector<LinearAttentionRows>>(static_cast<size_t>(samples));
    const float *query = b.inputs[0], *key = b.inputs[1], *value = b.inputs[2];
    const float* decay = decays ? b.inputs[3] : nullptr;
    std::byte* state = carry ? b.state : b.scratch + own;
    return [=, scratch = b.scratch, out = b.output, rows = b.rows, position = b.position,
            work = b.work] {
      const int64_t unit = tokens / rows->per_sample,
                    decay_width =
                        spec.decay == Decay::channel ? spec.heads * spec.key_width : spec.heads;
      for (int64_t s = 0; s < rows->samples; ++s) {
        LinearAttentionRows& sample = (*calls)[static_cast<size_t>(s)];
        const int64_t first = rows->start[s] * unit;
        sample.rows = rows->start[s + 1] * unit - first;
        sample.q = query + first * spec.heads * spec.key_width;
        sample.k = key + first * spec.heads * spec.key_width;
        sample.v = value + first * spec.heads * spec.value_width;
        sample.decay = decay ? decay + first * decay_width : nullptr;
        sample.out = out + first * spec.heads * spec.value_width;
        sample.state = reinterpret_cast<float*>(state + s * each);
        sample.fresh = !carry || !position || position[s] == 0;
      }
      const Work done = linear_attention(spec, *calls, threads, scratch);
      if (!work) return;
      work->macs += done.macs;
      work->bytes += done.bytes;
    };
  };
  planner.finish(index, std::move(step), Layout::plain);
}

}  // namespace

std::vector<PlanEntry> attention_steps() {
  return {{"rope", plan_rope},
          {"attention", plan_attention},
          {"spark_attention", plan_spark_attention},
          {"linear_attention", plan_linear_attention}};
}

}  // namespace sluice::engine
