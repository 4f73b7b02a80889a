#include "sluice/engine/kernel/experts.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/base/shape.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/packed_accumulate.h"
#include "sluice/engine/kernel/packed_tiles.h"
#include "sluice/engine/kernel/panel.h"
#include "sluice/engine/kernel/reduce.h"
#include "sluice/engine/kernel/select.h"

namespace sluice::engine {
namespace {

using bundle::Format;
using bundle::PackedMatrix;

constexpr size_t kTokens = kMaxDotBatch;
constexpr int64_t kFloat = static_cast<int64_t>(sizeof(float));
// Groups of so many tokens take the panels, see active_rows_bench.cpp.
constexpr size_t kPanelsFrom = 3;
// Floats between rows that are multiplied together: rows that lie a power of two apart would share
// one set of the first-level cache.
constexpr int64_t kPad = 16;

/// Groups of more than kTokens go through AMX tiles as a whole.
bool takes_tiles(const Experts& e) {
  return e.kind == DotKind::i8 && tiles_usable() && tiles_apply(e.up[0]) &&
         (!e.gated() || tiles_apply(e.gate[0]));
}

struct Places {
  int64_t choice = 0, weight = 0, order = 0, start = 0, ranked = 0, probability = 0, pointers = 0,
          hidden = 0, other = 0, result = 0, gathered = 0, dot = 0, sums = 0, end = 0;

  Places(const Experts& e, int64_t rows, int threads) {
    const int64_t slots = checked_mul(rows, static_cast<int64_t>(e.top_k), "expert slots");
    const int64_t count = static_cast<int64_t>(e.count());
    const PackedMatrix &up = e.up[0], &down = e.down[0];
    const auto take = [&](int64_t items, int64_t size) {
      const int64_t at = end;
      end =
          checked_add(end, align_up(checked_mul(items, size, "expert scratch")), "expert scratch");
      return at;
    };
    choice = take(slots, kFloat);
    weight = take(slots, kFloat);
    order = take(slots, kFloat);
    start = take(count + 1, kFloat);
    ranked = take(count, kFloat);
    probability = take(count, kFloat);
    pointers = take(2 * rows, static_cast<int64_t>(sizeof(float*)));
    // A token has an expert once, so a group is no larger than all tokens.
    hidden = take(checked_mul(rows, up.rows + kPad, "hidden"), kFloat);
    if (e.gated()) other = take(checked_mul(rows, up.rows + kPad, "hidden"), kFloat);
    result = take(checked_mul(rows, down.columns, "expert results"), kFloat);
    gathered = take(checked_mul(rows, up.columns + kPad, "gathered rows"), kFloat);
    int64_t most = dot_scratch_bytes(up.format, e.kind, up.columns, kTokens);
    if (e.gated())
      most = std::max(most, dot_scratch_bytes(e.gate[0].format, e.kind, up.columns, kTokens));
    if (takes_tiles(e)) {
      most = std::max(most, tiles_scratch_bytes(up, rows, threads));
      if (e.gated()) most = std::max(most, tiles_scratch_bytes(e.gate[0], rows, threads));
    }
    dot = take(most, 1);
    sums = take(packed_accumulate_scratch(down, threads), 1);
  }
};

class Run {
 public:
  Run(const Experts& experts, const float* x, const float* logits, float* y, size_t rows,
      std::byte* scratch, int threads, Work* work)
      : e_(experts),
        at_(experts, static_cast<int64_t>(rows), threads),
        scratch_(scratch),
        threads_(threads),
        work_(work),
        x_(x),
        y_(y),
        rows_(rows),
        in_(static_cast<size_t>(experts.up[0].columns)),
        hidden_(static_cast<size_t>(experts.up[0].rows)),
        out_(static_cast<size_t>(experts.down[0].columns)) {
    route(logits);
  }

  void all() {
    std::fill_n(y_, rows_ * out_, 0.0f);
    const int32_t* start = at<int32_t>(at_.start);
    for (size_t e = 0; e < e_.count(); ++e) {
      const size_t first = static_cast<size_t>(start[e]), last = static_cast<size_t>(start[e + 1]);
      if (first == last) continue;
      if (last - first >= kPanelsFrom && !e_.up_panels.empty()) {
        by_panels(e, first, last);
      } else {
        const size_t step = takes_tiles(e_) ? last - first : kTokens;
        for (size_t i = first; i < last; i += step) by_dots(e, i, std::min(i + step, last));
      }
      count_work(e, last - first);
    }
  }

 private:
  template <class T>
  T* at(int64_t place) const {
    return reinterpret_cast<T*>(scratch_ + place);
  }
  float* floats(int64_t place) const { return at<float>(place); }
  size_t token_of(size_t place) const {
    return static_cast<size_t>(at<int32_t>(at_.order)[place]) / e_.top_k;
  }
  float weight_of(size_t place) const { return floats(at_.weight)[at<int32_t>(at_.order)[place]]; }

  /// Chooses experts and weights of every token, and sorts the slots by expert.
  void route(const float* logits) {
    const size_t count = e_.count(), k = e_.top_k;
    int32_t *choice = at<int32_t>(at_.choice), *start = at<int32_t>(at_.start),
            *ranked = at<int32_t>(at_.ranked);
    float *weight = floats(at_.weight), *probability = floats(at_.probability);
    std::fill_n(start, count + 1, 0);
    for (size_t t = 0; t < rows_; ++t) {
      const float* from = logits + t * count;
      select_top_k({from, count, Rank::value}, k, ranked);
      float* mine = weight + t * k;
      if (e_.softmax_first) {
        softmax(from, probability, 1, count);
        for (size_t i = 0; i < k; ++i) mine[i] = probability[ranked[i]];
      } else {
        for (size_t i = 0; i < k; ++i) mine[i] = from[ranked[i]];
        softmax(mine, mine, 1, k);
      }
      for (size_t i = 0; i < k; ++i) {
        choice[t * k + i] = ranked[i];
        ++start[ranked[i] + 1];
      }
    }
    for (size_t e = 0; e < count; ++e) start[e + 1] += start[e];
    int32_t* next = ranked;  // its work is done
    std::copy_n(start, count, next);
    for (size_t slot = 0; slot < rows_ * k; ++slot)
      at<int32_t>(at_.order)[next[choice[slot]]++] = static_cast<int32_t>(slot);
  }

  void add_result(size_t first, size_t last, size_t from, size_t to) const {
    for (size_t i = first; i < last; ++i) {
      const float w = weight_of(i);
      const float* result = floats(at_.result) + (i - first) * out_;
      float* y = y_ + token_of(i) * out_;
      for (size_t c = from; c < to; ++c) y[c] += w * result[c];
    }
  }

  void by_dots(size_t e, size_t first, size_t last) const {
    const size_t tokens = last - first;
    float *gathered = floats(at_.gathered), *hidden = floats(at_.hidden),
          *other = floats(at_.other), *result = floats(at_.result);
    for (size_t i = 0; i < tokens; ++i)
      std::memcpy(gathered + i * in_, x_ + token_of(first + i) * in_, in_ * sizeof(float));
    const auto product = [&](const PackedMatrix& m, float* to) {
      if (tokens > kTokens) {
        return multiply_tiles(m, gathered, static_cast<int64_t>(tokens), to, scratch_ + at_.dot,
                              threads_);
      }
      const DotInput input = prepare_dot(m, e_.kind, gathered, m.columns,
                                         static_cast<int64_t>(tokens), scratch_ + at_.dot);
      packed_dot(m, input, to, m.rows, threads_);
    };
    product(e_.gated() ? e_.gate[e] : e_.up[e], hidden);
    activate(e_.activation, hidden, hidden, tokens * hidden_);
    if (e_.gated()) {
      product(e_.up[e], other);
      multiply(hidden, other, hidden, tokens * hidden_);
    }
    std::fill_n(result, tokens * out_, 0.0f);
    packed_accumulate(e_.down[e], {nullptr, hidden_}, {hidden, tokens, hidden_}, result, out_,
                      scratch_ + at_.sums, threads_);
    add_result(first, last, 0, out_);
  }

  /// Threads share out the columns of the hidden layer, then those of the result.
  void by_panels(size_t e, size_t first, size_t last) const {
    const size_t tokens = last - first, in_stride = in_ + kPad, stride = hidden_ + kPad;
    const float** rows = at<const float*>(at_.pointers);
    const float** hidden_rows = rows + rows_;
    float *gathered = floats(at_.gathered), *hidden = floats(at_.hidden),
          *other = floats(at_.other), *result = floats(at_.result);
    for (size_t i = 0; i < tokens; ++i) {
      rows[i] = gathered + i * in_stride;
      hidden_rows[i] = hidden + i * stride;
    }
#pragma omp parallel num_threads(threads_) if (threads_ > 1)
    {
      const size_t part = static_cast<size_t>(omp_get_thread_num()),
                   parts = static_cast<size_t>(omp_get_num_threads());
      for (size_t i = tokens * part / parts; i < tokens * (part + 1) / parts; ++i)
        std::memcpy(gathered + i * in_stride, x_ + token_of(first + i) * in_, in_ * sizeof(float));
#pragma omp barrier
      const size_t from = column_part(hidden_, part, parts),
                   to = column_part(hidden_, part + 1, parts);
      panels(e_.gated() ? e_.gate_panels[e] : e_.up_panels[e], in_, rows, tokens, hidden, stride,
             from, to);
      if (e_.gated()) panels(e_.up_panels[e], in_, rows, tokens, other, stride, from, to);
      for (size_t i = 0; i < tokens && to > from; ++i) {
        float* h = hidden + i * stride + from;
        activate(e_.activation, h, h, to - from);
        if (e_.gated()) multiply(h, other + i * stride + from, h, to - from);
      }
#pragma omp barrier
      const size_t begin = column_part(out_, part, parts), end = column_part(out_, part + 1, parts);
      panels(e_.down_panels[e], hidden_, hidden_rows, tokens, result, out_, begin, end);
      add_result(first, last, begin, end);
    }
  }

  static void panels(const Buffer& weight, size_t depth, const float* const* x, size_t tokens,
                     float* out, size_t stride, size_t from, size_t to) {
    if (from == to) return;
    const PanelRun run{0, static_cast<int64_t>(depth)};
    PanelCall call;
    call.panel_stride = static_cast<int64_t>(depth) * kPanel;
    call.weight = weight.floats() + static_cast<int64_t>(from) / kPanel * call.panel_stride;
    call.outputs = static_cast<int64_t>(to - from);
    call.runs = {&run, 1};
    call.x = x;
    call.pixels = static_cast<int64_t>(tokens);
    call.out = out + from;
    call.out_stride = static_cast<int64_t>(stride);
    panel_products(call);
  }

  void count_work(size_t e, size_t tokens) const {
    if (!work_) return;
    const auto matrix = [&](const PackedMatrix& m) {
      work_->macs += static_cast<int64_t>(tokens) * m.rows * m.columns;
      work_->bytes += m.rows * m.row_bytes();
    };
    matrix(e_.up[e]);
    if (e_.gated()) matrix(e_.gate[e]);
    matrix(e_.down[e]);
    work_->bytes += static_cast<int64_t>(tokens * (in_ + out_)) * kFloat;
  }

  const Experts& e_;
  const Places at_;
  std::byte* scratch_;
  const int threads_;
  Work* work_;
  const float* x_;
  float* y_;
  const size_t rows_, in_, hidden_, out_;
};

/// Panels of `matrix`, or of its transpose.
Buffer panels_of(const PackedMatrix& m, bool transposed) {
  std::vector<float> values(static_cast<size_t>(checked_mul(m.rows, m.columns, "expert weights")));
  bundle::unpack(m, values);
  if (!transposed) return pack_panels(values, m.rows, m.columns);
  std::vector<float> turned(values.size());
  transpose(values.data(), turned.data(), 1, static_cast<size_t>(m.rows),
            static_cast<size_t>(m.columns));
  return pack_panels(turned, m.columns, m.rows);
}

}  // namespace

static_assert(bundle::kGroup == kPanel, "column_part() gives whole panels");

void make_expert_panels(Experts& e) {
  const auto is_f32 = [](const PackedMatrix& m) { return m.format == Format::f32; };
  if (e.kind != DotKind::f32 || !is_f32(e.up[0]) || !is_f32(e.down[0]) ||
      (e.gated() && !is_f32(e.gate[0])))
    return;
  for (size_t i = 0; i < e.count(); ++i) {
    e.up_panels.push_back(panels_of(e.up[i], false));
    if (e.gated()) e.gate_panels.push_back(panels_of(e.gate[i], false));
    e.down_panels.push_back(panels_of(e.down[i], true));
  }
}

bool expert_panels_pay(const Experts& e, int64_t rows) {
  return rows * static_cast<int64_t>(e.top_k) >=
         static_cast<int64_t>(kPanelsFrom) * static_cast<int64_t>(e.count()) / 2;
}

int64_t experts_scratch(const Experts& e, int64_t rows, int threads) {
  return Places(e, rows, threads).end;
}

void run_experts(const Experts& e, const float* x, const float* logits, float* y, size_t rows,
                 std::byte* scratch, int threads, Work* work) {
  if (rows > 0) Run(e, x, logits, y, rows, scratch, threads, work).all();
}

}  // namespace sluice::engine
