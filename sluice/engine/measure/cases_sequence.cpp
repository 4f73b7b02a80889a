// Attention of one sequence, and rows that leave a block.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "sluice/engine/kernel/attention.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/linear_attention.h"
#include "sluice/engine/kernel/rows.h"
#include "sluice/engine/kernel/spark_attention.h"
#include "sluice/engine/measure/case_families.h"
#include "sluice/engine/measure/kernels_ours.h"
#include "sluice/engine/measure/rivals.h"

namespace sluice::engine::measure {
namespace {

struct AttentionShape {
  int64_t heads = 32, kv_heads = 8, width = 128, rows = 1, seen = 0;
  CacheType type = CacheType::f32;
};

AttentionSpec spec_of(const AttentionShape& s) {
  AttentionSpec spec;
  spec.heads = s.heads;
  spec.kv_heads = s.kv_heads;
  spec.key_width = spec.value_width = s.width;
  spec.scale = 1 / std::sqrt(static_cast<float>(s.width));
  spec.cache = s.seen + s.rows;
  spec.cache_type = s.type;
  return spec;
}

/// Ours, with caches that were filled before and rotate.
Contender softmax_attention(const AttentionShape& s, int threads, int64_t cold, Role role) {
  struct State {
    AttentionSpec spec;
    std::vector<float> q, k, out;
    Buffer scratch;
    std::optional<Rotation<Buffer>> caches;
    AttentionRows call;
    int threads;
  };
  auto state = std::make_shared<State>();
  State& st = *state;
  st.spec = spec_of(s);
  st.threads = threads;
  st.q = random_values(s.rows * s.heads * s.width, 1);
  st.k = random_values(std::max(s.rows, s.seen) * s.kv_heads * s.width, 2);
  st.out.resize(st.q.size());
  st.scratch = Buffer(attention_scratch_bytes(st.spec, threads));
  const int64_t bytes = attention_cache_bytes(st.spec);
  st.call = {st.q.data(), st.k.data(), st.k.data(), st.out.data(), s.rows, s.rows, 0, nullptr};
  Buffer filled(bytes);
  st.call.cache = filled.data();
  for (int64_t p = 0; p < s.seen; p += s.rows) {
    st.call.rows = st.call.keys = std::min(s.rows, s.seen - p);
    st.call.seen = p;
    st.call.k = st.call.v = st.k.data() + p * s.kv_heads * s.width;
    attention(st.spec, {&st.call, 1}, threads, st.scratch.data());
  }
  st.call.rows = st.call.keys = s.rows;
  st.call.seen = s.seen;
  st.call.k = st.call.v = st.k.data();
  st.caches.emplace(cold, bytes, [&](int64_t) {
    Buffer copy(bytes);
    std::copy_n(filled.data(), bytes, copy.data());
    return copy;
  });
  Contender contender;
  contender.name = role == Role::ours ? "sluice" : "sluice softmax attention";
  contender.role = role;
  const double pairs =
      static_cast<double>(s.rows * s.seen) + static_cast<double>(s.rows * (s.rows + 1)) / 2;
  contender.bytes = static_cast<double>(bytes);
  contender.operations = 4.0 * pairs * static_cast<double>(s.heads * s.width);
  contender.run = [state] {
    State& st = *state;
    st.call.cache = st.caches->next().data();
    attention(st.spec, {&st.call, 1}, st.threads, st.scratch.data());
  };
  return contender;
}

/// The two products of every head through oneDNN, over all keys, with the scores stored between
/// them. No softmax: a lower bound for what can be built from matrix products.
std::optional<Contender> two_products(const AttentionShape& s, int threads, int64_t cold) {
  const int64_t group = s.heads / s.kv_heads, rows = s.rows * group, keys = s.seen + s.rows;
  const std::vector<float> q = random_values(rows * s.width, 1),
                           scores = random_values(rows * keys, 2),
                           cache = random_values(keys * s.width, 3);
  auto first = onednn_matmul({rows, s.width, keys, q, cache, threads, cold}, Precision::f32);
  auto second = onednn_matmul({rows, keys, s.width, scores, cache, threads, cold}, Precision::f32);
  if (!first || !second) {
    return std::nullopt;
  }
  Contender contender;
  contender.name = "oneDNN matmuls f32";
  contender.role = Role::rival;
  contender.note = "both products of every head over all keys, without mask and softmax";
  contender.bytes = static_cast<double>(s.kv_heads) * (first->bytes + second->bytes);
  contender.operations = static_cast<double>(s.kv_heads) * (first->operations + second->operations);
  contender.run = [heads = s.kv_heads, first = first->run, second = second->run] {
    for (int64_t h = 0; h < heads; ++h) {
      first();
      second();
    }
  };
  return contender;
}

Contender recurrent(int64_t heads, int64_t width, int64_t rows, int threads) {
  struct State {
    LinearAttentionSpec spec;
    std::vector<float> q, k, v, decay, out;
    Buffer scratch, memory;
    LinearAttentionRows call;
    int threads;
  };
  auto state = std::make_shared<State>();
  State& s = *state;
  s.spec.heads = heads;
  s.spec.key_width = s.spec.value_width = width;
  s.spec.decay = Decay::channel;
  s.spec.scale = 1 / std::sqrt(static_cast<float>(width));
  s.threads = threads;
  const int64_t count = rows * heads * width;
  s.q = random_values(count, 1);
  s.k = random_values(count, 2);
  s.v = random_values(count, 3);
  s.decay.assign(static_cast<size_t>(count), 0.95f);
  s.out.resize(static_cast<size_t>(count));
  s.scratch = Buffer(linear_attention_scratch_bytes(s.spec, threads));
  s.memory = Buffer(linear_attention_state_bytes(s.spec));
  s.call = {s.q.data(),   s.k.data(), s.v.data(),        s.decay.data(),
            s.out.data(), rows,       s.memory.floats(), false};
  Contender contender;
  contender.name = "sluice";
  contender.bytes = static_cast<double>(s.memory.bytes());
  contender.operations = 5.0 * static_cast<double>(count * width);
  contender.run = [state] {
    linear_attention(state->spec, {&state->call, 1}, state->threads, state->scratch.data());
  };
  return contender;
}

/// One token behind `keys` - 1 others that looks at about `tokens` of them, caches in turn.
Contender spark_decode(const AttentionShape& s, int64_t keys, int64_t tokens, int threads,
                       int64_t cold) {
  struct State {
    SparkAttentionSpec spec;
    std::vector<float> q, k, out;
    Buffer scratch;
    std::optional<Rotation<Buffer>> caches;
    SparkAttentionRows call;
    int threads;
  };
  auto state = std::make_shared<State>();
  State& st = *state;
  st.spec = {s.heads, s.width / 2, s.width - s.width / 2, s.width, tokens, keys};
  st.threads = threads;
  const int64_t columns = s.heads * s.width;
  st.q = random_values(columns, 1);
  st.k = random_values(keys * columns, 2);
  st.out.resize(st.q.size());
  st.scratch = Buffer(spark_scratch_bytes(st.spec, 1, threads));
  const int64_t bytes = spark_cache_bytes(st.spec);
  Buffer filled(bytes);
  st.call = {st.q.data(), st.k.data(), st.k.data(), st.out.data(), 1, 0, filled.data()};
  // One by one without looking back: only the caches matter.
  for (int64_t p = 0; p < keys; ++p) {
    st.call.seen = p;
    st.call.k = st.call.v = st.k.data() + p * columns;
    spark_append(st.spec, st.call);
  }
  st.call.seen = keys - 1;
  st.caches.emplace(cold, bytes, [&](int64_t) {
    Buffer copy(bytes);
    std::copy_n(filled.data(), bytes, copy.data());
    return copy;
  });
  Contender contender;
  contender.name = "sluice";
  contender.note = "the first half of every key is read in any case";
  contender.bytes = 4.0 * static_cast<double>(s.heads) *
                    (static_cast<double>(keys * st.spec.split) +
                     static_cast<double>(tokens * (st.spec.rest + st.spec.value_width)));
  contender.operations = contender.bytes / 2;
  contender.run = [state] {
    State& st = *state;
    st.call.cache = st.caches->next().data();
    spark_attention(st.spec, {&st.call, 1}, st.threads, st.scratch.data());
  };
  return contender;
}

/// x + down(relu(up(x))) for some rows; the others keep x.
struct RowBlock {
  onednn::PackCache cache;
  std::vector<float> x, keep, out;
  Buffer packed, hidden, result;
  std::vector<int64_t> whole{0, 1}, start{0, 0}, source;
  LiveRows before, after;
  std::vector<Buffer> scratch;
  std::function<void()> up, down;
  size_t width;

  RowBlock(int64_t rows, int64_t live, int64_t columns, int64_t inner, bool packs, int threads)
      : x(random_values(rows * columns, 3)),
        out(x.size()),
        packed(rows * columns * 4),
        hidden(rows * inner * 4),
        result(rows * columns * 4),
        source(static_cast<size_t>(rows)),
        width(static_cast<size_t>(columns)) {
    for (int64_t r = 0; r < rows; ++r) {
      keep.push_back(r * live / rows != (r + 1) * live / rows ? 1.0f : 0.0f);
    }
    before.count = before.samples = 1;
    before.start = whole.data();
    after.samples = 1;
    after.per_sample = rows;
    after.start = start.data();
    after.source = source.data();
    onednn::Tail relu;
    relu.activation = Activation::relu;
    const std::vector<float> weight_up = random_values(inner * columns, 1, 0.05f),
                             weight_down = random_values(inner * columns, 2, 0.05f);
    up = bind(onednn::make_linear(live, columns, inner, relu, weight_up, {}, threads, cache, "up"),
              packs ? packed.floats() : x.data(), hidden.floats());
    down =
        bind(onednn::make_linear(live, inner, columns, {}, weight_down, {}, threads, cache, "down"),
             hidden.floats(), result.floats());
  }
  std::function<void()> bind(const Kernel& kernel, float* from, float* to) {
    scratch.emplace_back(kernel.scratch_bytes);
    float* inputs[] = {from};
    Binding binding;
    binding.inputs = inputs;
    binding.output = to;
    binding.scratch = scratch.back().data();
    return kernel.bind(binding);
  }
};

std::vector<Contender> row_block(int64_t rows, int64_t width, double kept, int threads) {
  const int64_t hidden = 4 * width,
                live = std::max<int64_t>(1, std::lround(static_cast<double>(rows) * kept));
  const auto few = std::make_shared<RowBlock>(rows, live, width, hidden, true, threads),
             all = std::make_shared<RowBlock>(rows, rows, width, hidden, false, threads);
  const double operations = 4.0 * static_cast<double>(width * hidden);
  Contender ours, dense;
  ours.name = "sluice";
  ours.note = "packing the rows to the front and putting them back is part of the time";
  ours.operations = operations * static_cast<double>(live);
  ours.run = [few] {
    RowBlock& b = *few;
    compact_rows(b.x.data(), b.keep.data(), b.width, b.before, b.after, b.packed.floats());
    b.up();
    b.down();
    scatter_rows(b.x.data(), b.result.floats(), b.width, b.before, b.after, true, b.out.data());
  };
  ours.output = [few] { return std::span<const float>(few->out); };
  dense.name = "sluice dense f32";
  dense.role = Role::dense;
  dense.operations = operations * static_cast<double>(rows);
  dense.run = [all] {
    RowBlock& b = *all;
    b.up();
    b.down();
    add(b.x.data(), b.result.floats(), Activation::none, b.out.data(), b.out.size());
  };
  if (live == rows) {
    dense.output = [all] { return std::span<const float>(all->out); };
  }
  ours.bytes = dense.bytes = 8.0 * static_cast<double>(width * hidden);
  return {ours, dense};
}

const char* type_name(CacheType type) {
  return type == CacheType::f32 ? "f32" : type == CacheType::bf16 ? "bf16" : "f16";
}

}  // namespace

std::vector<KernelCase> sequence_cases(const CaseOptions& options) {
  std::vector<KernelCase> cases;
  const bool quick = options.quick;
  const int64_t cold = cold_bytes(options);
  const auto add_case = [&](std::string kernel, std::string shape, int threads, Limit limit,
                            std::function<std::vector<Contender>()> prepare) -> KernelCase& {
    KernelCase c;
    c.kernel = std::move(kernel);
    c.shape = std::move(shape);
    c.threads = threads;
    c.limit = limit;
    c.prepare = std::move(prepare);
    cases.push_back(std::move(c));
    return cases.back();
  };
  AttentionShape base;
  if (quick) {
    base.heads = 4;
    base.kv_heads = 2;
    base.width = 16;
  }
  const auto heads_text = [](const AttentionShape& s) {
    return fmt::format("{} heads of {}, {} for keys", s.heads, s.width, s.kv_heads);
  };
  for (const CacheType type : {CacheType::f32, CacheType::bf16}) {
    for (const int threads : options.threads) {
      AttentionShape s = base;
      s.seen = quick ? 30 : 4095;
      s.type = type;
      add_case(fmt::format("attention decode {}", type_name(type)),
               fmt::format("{}, {} keys", heads_text(s), s.seen + 1), threads,
               Limit::read_bandwidth, [=] {
                 std::vector<Contender> contenders{softmax_attention(s, threads, cold, Role::ours)};
                 if (auto rival = two_products(s, threads, cold)) {
                   contenders.push_back(std::move(*rival));
                 }
                 return contenders;
               });
    }
  }
  for (const int threads : options.threads) {
    AttentionShape s = base;
    s.rows = quick ? 10 : 512;
    add_case("attention prefill f32", fmt::format("{}, {} rows, causal", heads_text(s), s.rows),
             threads, Limit::f32_peak, [=] {
               std::vector<Contender> contenders{softmax_attention(s, threads, 0, Role::ours)};
               if (auto rival = two_products(s, threads, 0)) {
                 contenders.push_back(std::move(*rival));
               }
               return contenders;
             });
  }
  for (const int threads : options.threads) {
    AttentionShape s = base;
    s.kv_heads = s.heads;
    s.width = quick ? 16 : 64;
    s.seen = quick ? 30 : 4095;
    for (const int64_t rows : {1, 128}) {
      if (rows > 1) {
        s.seen = 0;
        s.rows = quick ? 10 : rows;
      }
      add_case(
          "linear-attention f32",
          fmt::format("{} heads of {}, {} row{}", s.heads, s.width, s.rows, rows > 1 ? "s" : ""),
          threads, Limit::none, [=] {
            std::vector<Contender> contenders{recurrent(s.heads, s.width, s.rows, threads),
                                              softmax_attention(s, threads, cold, Role::dense)};
            contenders[1].note = fmt::format("the same heads over {} keys", s.seen + s.rows);
            return contenders;
          });
    }
  }
  for (const int threads : options.threads) {
    AttentionShape s = base;
    s.kv_heads = s.heads = quick ? 4 : 16;
    const int64_t keys = quick ? 30 : 4096;
    s.seen = keys - 1;
    for (const double kept : {1.0, 0.5, 0.25, 0.0625}) {
      KernelCase& c = add_case(
          "spark-attention decode f32", fmt::format("{}, {} keys", heads_text(s), keys), threads,
          Limit::read_bandwidth, [=] {
            const auto tokens = std::max<int64_t>(1, std::lround(kept * static_cast<double>(keys)));
            return std::vector<Contender>{spark_decode(s, keys, tokens, threads, cold),
                                          softmax_attention(s, threads, cold, Role::dense)};
          });
      c.kept = kept;
      c.conditional = true;
    }
  }
  for (const int threads : options.threads) {
    for (const double kept : {1.0, 0.75, 0.5, 0.25, 0.1}) {
      const int64_t rows = quick ? 20 : 512, width = quick ? 32 : 512;
      KernelCase& c = add_case(
          "row-compaction f32", fmt::format("{} rows, {}-{}-{}", rows, width, 4 * width, width),
          threads, Limit::f32_peak, [=] { return row_block(rows, width, kept, threads); });
      c.kept = kept;
      c.conditional = true;
    }
  }
  return cases;
}

}  // namespace sluice::engine::measure
