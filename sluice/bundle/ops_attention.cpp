// Operators that look along a sequence: rotary positions, softmax attention, linear attention.
#include <algorithm>
#include <cmath>

#include "sluice/base/error.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr int64_t kMaxHeads = 1 << 16;
constexpr int64_t kMaxPositions = 1 << 24;  // what f32 counts exactly

const Shape& require_matrix(const OpInput& in, size_t index, const char* name, int64_t rows) {
  const Shape& shape = input(in, index);
  if (shape.size() != 2 || shape[0] != rows)
    fail(Code::shape, "{}: expected [{},D], found {}", name, rows, to_string(shape));
  return shape;
}

/// Width of a head in a matrix of `heads` side by side.
int64_t require_heads(const Shape& shape, const char* name, int64_t heads) {
  if (shape[1] % heads != 0)
    fail(Code::shape, "{}: {} columns do not divide into {} heads", name, shape[1], heads);
  return shape[1] / heads;
}

void require_choice(const OpInput& in, const char* name, const char* fallback,
                    std::initializer_list<const char*> choices) {
  const std::string value = attr_string(in.node.attrs, name, fallback);
  std::string known;
  for (const char* choice : choices) {
    if (value == choice) return;
    known += (known.empty() ? "" : ", ") + std::string(choice);
  }
  fail(Code::shape, "attribute '{}': expected {}, found '{}'", name, known, printable(value, 40));
}

void require_positive(const OpInput& in, const char* name, double fallback) {
  const double value = attr_double(in.node.attrs, name, fallback);
  if (!(value > 0 && value <= 1e30))
    fail(Code::shape, "attribute '{}': expected a number above 0, found {}", name, value);
}

Shape rope_shape(const OpInput& in) {
  require_rank(in, 2, "[T,D]");
  const Shape& x = input(in, 0);
  const int64_t width = require_heads(x, "x", require_int(in, "heads", 1, 1, kMaxHeads));
  const int64_t start = require_int(in, "start", 0, 0, width - 2);
  const int64_t dims = require_int(in, "dims", width - start, 2, width - start);
  if (dims % 2 != 0)
    fail(Code::shape, "attribute 'dims': expected an even number up to {} columns of a head",
         width);
  require_choice(in, "layout", "half", {"half", "interleaved"});
  require_positive(in, "base", 10000);
  require_positive(in, "scale", 1);
  require_tensor(in, "factors", {dims / 2});
  if (in.inputs.size() == 2 && input(in, 1) != Shape{x[0]})
    fail(Code::shape, "positions: expected {}, found {}", x[0], to_string(input(in, 1)));
  return x;
}

Rows rope_rows(const OpInput& in) { return in.inputs.size() == 2 ? Rows::apart : Rows::ordered; }

struct AttentionShape {
  int64_t heads, kv_heads, key_width, value_width, tokens, keys;
  bool causal;
  int64_t window, cache;
};

AttentionShape attention_sizes(const OpInput& in) {
  AttentionShape s{};
  require_rank(in, 2, "[T,heads*width]");
  require_choice(in, "mask", "causal", {"causal", "full"});
  require_choice(in, "cache_type", "f32", {"f32", "bf16", "f16"});
  s.causal = attr_string(in.node.attrs, "mask", "causal") == "causal";
  s.heads = require_int(in, "heads", 0, 1, kMaxHeads);
  s.kv_heads = require_int(in, "kv_heads", s.heads, 1, kMaxHeads);
  s.window = require_int(in, "window", 0, 0, kMaxPositions);
  s.cache = require_int(in, "cache", 0, 0, kMaxPositions);
  if (s.heads % s.kv_heads != 0)
    fail(Code::shape, "attribute 'kv_heads': {} does not divide {} heads", s.kv_heads, s.heads);
  if (!s.causal && (s.window > 0 || s.cache > 0))
    fail(Code::shape, "attributes 'window' and 'cache' need mask causal: a full mask has no past");
  s.tokens = input(in, 0)[0];
  const bool crossed = !s.causal && input(in, 1).size() == 2;
  s.keys = crossed ? input(in, 1)[0] : s.tokens;
  if (s.cache > 0 && s.cache < s.tokens)
    fail(Code::shape, "attribute 'cache': expected at least the {} rows of a run, found {}",
         s.tokens, s.cache);
  s.key_width = require_heads(input(in, 0), "q", s.heads);
  const Shape& k = require_matrix(in, 1, "k", s.keys);
  const Shape& v = require_matrix(in, 2, "v", s.keys);
  if (k[1] != s.kv_heads * s.key_width)
    fail(Code::shape, "k: expected {} columns ({} heads of {}), found {}", s.kv_heads * s.key_width,
         s.kv_heads, s.key_width, k[1]);
  s.value_width = require_heads(v, "v", s.kv_heads);
  if (in.node.attrs.count("scale")) require_positive(in, "scale", 1);
  const bool gated = attr_bool(in.node.attrs, "gated", false);
  if (gated && (in.inputs.size() != 4 || s.tokens != s.keys))
    fail(Code::shape,
         "attribute 'gated': input 4 says which key heads each of the rows of q and k looks at; "
         "found {} inputs, {} rows of q and {} of k",
         in.inputs.size(), s.tokens, s.keys);
  if (gated && input(in, 3) != Shape{s.tokens, s.kv_heads})
    fail(Code::shape, "open heads: expected {} x {}, found {}", s.tokens, s.kv_heads,
         to_string(input(in, 3)));
  if (in.inputs.size() == 4 && !gated) {
    if (s.tokens != s.keys)
      fail(Code::shape, "keep: queries are some of the {} rows that k has; q has {}", s.keys,
           s.tokens);
    const Shape& keep = input(in, 3);
    if (keep != Shape{s.tokens} && keep != Shape{s.tokens, 1})
      fail(Code::shape, "keep: expected {0} or {0} x 1, found {1}", s.tokens, to_string(keep));
  }
  const int64_t cached = checked_mul(s.cache, checked_add(k[1], v[1], "cache"), "cache");
  if (cached > GraphLimits::kValueElements)
    fail(Code::limit, "attribute 'cache': {} positions of {} numbers are more than {}", s.cache,
         k[1] + v[1], GraphLimits::kValueElements);
  return s;
}

Shape attention_shape(const OpInput& in) {
  const AttentionShape s = attention_sizes(in);
  return {s.tokens, checked_mul(s.heads, s.value_width, "attention output")};
}

/// Of a sequence from its beginning; what a longer one costs is metered.
int64_t attention_macs(const OpInput& in, const Shape&) {
  const AttentionShape s = attention_sizes(in);
  int64_t pairs = checked_mul(s.tokens, s.keys, "MACs");
  if (s.causal) {
    const int64_t width = s.window > 0 ? std::min(s.window, s.tokens) : s.tokens;
    pairs =
        checked_mul(width, s.tokens - width, "MACs") + checked_mul(width, width + 1, "MACs") / 2;
  }
  return checked_mul(pairs, checked_mul(s.heads, s.key_width + s.value_width, "MACs"), "MACs");
}

Rows attention_rows(const OpInput& in) {
  return input(in, 0)[0] == input(in, 1)[0] ? Rows::grouped : Rows::mixed;
}

struct SparkShape {
  int64_t heads, width, value_width, rows;
};

SparkShape spark_sizes(const OpInput& in) {
  require_rank(in, 2, "[T,heads*width]");
  const Shape& q = input(in, 0);
  SparkShape s{};
  s.rows = q[0];
  s.heads = require_int(in, "heads", 0, 1, kMaxHeads);
  s.width = require_heads(q, "q", s.heads);
  if (input(in, 1) != q)
    fail(Code::shape, "k: expected the shape of q, {}, found {}", to_string(q),
         to_string(input(in, 1)));
  const Shape& v = require_matrix(in, 2, "v", s.rows);
  s.value_width = require_heads(v, "v", s.heads);
  if (s.width < 2) fail(Code::shape, "q: heads of {} columns; expected 2 and more", s.width);
  require_int(in, "split", 0, 1, s.width - 1);
  require_int(in, "tokens", 0, 1, kMaxPositions);
  const int64_t cache = require_int(in, "cache", 0, 0, kMaxPositions);
  if (cache > 0 && cache < s.rows)
    fail(Code::shape, "attribute 'cache': expected at least the {} rows of a run, found {}", s.rows,
         cache);
  const int64_t cached = checked_mul(cache, checked_add(q[1], v[1], "cache"), "cache");
  if (cached > GraphLimits::kValueElements)
    fail(Code::limit, "attribute 'cache': {} positions of {} numbers are more than {}", cache,
         q[1] + v[1], GraphLimits::kValueElements);
  return s;
}

Shape spark_shape(const OpInput& in) {
  spark_sizes(in);
  return input(in, 2);
}

/// With everything kept, of a sequence from its beginning.
int64_t spark_macs(const OpInput& in, const Shape&) {
  const SparkShape s = spark_sizes(in);
  const int64_t pairs = checked_mul(s.rows, s.rows + 1, "MACs") / 2;
  return checked_mul(pairs, checked_mul(s.heads, s.width + s.value_width, "MACs"), "MACs");
}

struct LinearShape {
  int64_t heads, key_width, value_width, tokens;
};

LinearShape linear_sizes(const OpInput& in) {
  require_rank(in, 2, "[T,heads*width]");
  const Shape& q = input(in, 0);
  LinearShape s{};
  s.heads = require_int(in, "heads", 0, 1, kMaxHeads);
  s.tokens = q[0];
  s.key_width = require_heads(q, "q", s.heads);
  if (input(in, 1) != q)
    fail(Code::shape, "k: expected the shape of q, {}, found {}", to_string(q),
         to_string(input(in, 1)));
  const Shape& v = require_matrix(in, 2, "v", s.tokens);
  s.value_width = require_heads(v, "v", s.heads);
  if (in.inputs.size() == 4) {
    const Shape& decay = require_matrix(in, 3, "decay", s.tokens);
    if (decay[1] != s.heads && decay[1] != q[1])
      fail(Code::shape, "decay: expected {} columns (one per head) or {} (per channel), found {}",
           s.heads, q[1], decay[1]);
  }
  if (in.node.attrs.count("scale")) require_positive(in, "scale", 1);
  attr_bool(in.node.attrs, "carry", false);
  const int64_t state = checked_mul(q[1], s.value_width, "state");
  if (state > GraphLimits::kValueElements)
    fail(Code::limit, "state of {} x {} numbers is more than {}", q[1], s.value_width,
         GraphLimits::kValueElements);
  return s;
}

Shape linear_shape(const OpInput& in) {
  linear_sizes(in);
  return input(in, 2);
}

int64_t linear_macs(const OpInput& in, const Shape&) {
  const LinearShape s = linear_sizes(in);
  return checked_mul(checked_mul(2 * s.tokens, s.heads, "MACs"),
                     checked_mul(s.key_width, s.value_width, "MACs"), "MACs");
}

Rows grouped_rows(const OpInput&) { return Rows::grouped; }

}  // namespace

std::vector<Operator> attention_operators() {
  return {
      {"rope",
       1,
       2,
       {},
       {"factors"},
       {"heads", "dims", "start", "base", "scale", "layout"},
       rope_shape,
       no_macs,
       rope_rows},
      {"attention",
       3,
       4,
       {},
       {},
       {"heads", "kv_heads", "mask", "window", "scale", "cache", "cache_type", "gated"},
       attention_shape,
       attention_macs,
       attention_rows},
      {"spark_attention",
       3,
       3,
       {},
       {},
       {"heads", "split", "tokens", "cache"},
       spark_shape,
       spark_macs,
       grouped_rows},
      {"linear_attention",
       3,
       4,
       {},
       {},
       {"heads", "scale", "carry"},
       linear_shape,
       linear_macs,
       grouped_rows},
  };
}

}  // namespace sluice::bundle
