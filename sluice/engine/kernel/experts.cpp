#include "sluice/engine/kernel/experts.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "sluice/base/shape.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/expert_groups.h"
#include "sluice/engine/kernel/packed_accumulate.h"
#include "sluice/engine/kernel/packed_tiles.h"
#include "sluice/engine/kernel/panel.h"
#include "sluice/engine/kernel/reduce.h"

namespace sluice::engine {
namespace {

using bundle::Format;
using bundle::PackedMatrix;

constexpr size_t kTokens = kMaxDotBatch;
constexpr int64_t kFloat = static_cast<int64_t>(sizeof(float));
// Groups of so many tokens take the panels, see active_rows_bench.cpp.
constexpr size_t kPanelsFrom = 3;
// So many tokens at a time: their hidden layer stays in the second-level cache. Whole tiles of
// every vector width.
constexpr size_t kPanelTokens = 112;
// Weights of so many inputs at a time (64 KB a panel; the whole 1024: up to 3% more time, 6% with
// AVX2).
constexpr int64_t kExpertDepth = 512;
// Floats between rows that are multiplied together: rows that lie a power of two apart would share
// one set of the first-level cache.
constexpr int64_t kPad = 16;

/// Groups of more than kTokens go through AMX tiles as a whole.
bool takes_tiles(const Experts& e) {
  return e.kind == DotKind::i8 && tiles_usable() && tiles_apply(e.up[0]) &&
         (!e.gated() || tiles_apply(e.gate[0]));
}

/// Tokens that one thread computes at a time.
size_t most_tokens(const Experts& e, size_t rows) {
  if (takes_tiles(e)) return rows;
  return std::min(rows, e.up_panels.empty() ? kTokens : kPanelTokens);
}

struct Places {
  // Shared: routing, jobs, results by place (one thread: of a job), scratch of the dot products.
  int64_t groups = 0, jobs = 0, order = 0, loads = 0, result = 0, dot = 0, sums = 0;
  // Of each thread, relative to lanes + its number * lane_bytes.
  int64_t lanes = 0, lane_bytes = 0, pointers = 0, hidden = 0, other = 0, gathered = 0;
  int64_t end = 0;

  Places(const Experts& e, int64_t rows, int threads) {
    const int64_t count = static_cast<int64_t>(e.count()), top_k = static_cast<int64_t>(e.top_k);
    const int64_t slots = checked_mul(rows, top_k, "expert slots"),
                  most = static_cast<int64_t>(most_tokens(e, static_cast<size_t>(rows))),
                  most_jobs = count + slots / std::max<int64_t>(1, most);
    const PackedMatrix &up = e.up[0], &down = e.down[0];
    const auto take = [&](int64_t items, int64_t size) {
      const int64_t at = end;
      end =
          checked_add(end, align_up(checked_mul(items, size, "expert scratch")), "expert scratch");
      return at;
    };
    groups = take(ExpertGroups::scratch_bytes(rows, count, top_k), 1);
    jobs = take(most_jobs, static_cast<int64_t>(sizeof(ExpertJob)));
    order = take(most_jobs, kFloat);
    loads = take(threads, static_cast<int64_t>(sizeof(int64_t)));
    const bool by_place = threads > 1 && !e.up_panels.empty();
    result = take(checked_mul(by_place ? slots : most, down.columns, "expert results"), kFloat);
    int64_t bytes = dot_scratch_bytes(up.format, e.kind, up.columns, kTokens);
    if (e.gated())
      bytes = std::max(bytes, dot_scratch_bytes(e.gate[0].format, e.kind, up.columns, kTokens));
    if (takes_tiles(e)) {
      bytes = std::max(bytes, tiles_scratch_bytes(up, rows, threads));
      if (e.gated()) bytes = std::max(bytes, tiles_scratch_bytes(e.gate[0], rows, threads));
    }
    dot = take(bytes, 1);
    sums = take(packed_accumulate_scratch(down, threads), 1);
    lanes = end;
    end = 0;
    pointers = take(2 * most, static_cast<int64_t>(sizeof(float*)));
    hidden = take(checked_mul(most, up.rows + kPad, "hidden"), kFloat);
    if (e.gated()) other = take(checked_mul(most, up.rows + kPad, "hidden"), kFloat);
    gathered = take(checked_mul(most, up.columns + kPad, "gathered rows"), kFloat);
    lane_bytes = end;
    end = checked_add(lanes,
                      checked_mul(lane_bytes, e.up_panels.empty() ? 1 : threads, "expert scratch"),
                      "expert scratch");
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
        out_(static_cast<size_t>(experts.down[0].columns)),
        groups_(scratch + at_.groups, rows, experts.count(), experts.top_k) {
    groups_.route(logits, experts.softmax_first);
    list_jobs();
  }

  void all() {
    const bool panels = std::any_of(jobs_.begin(), jobs_.end(),
                                    [this](const ExpertJob& job) { return takes_panels(job); });
    // Each y adds up by ascending expert. Threads that compute experts of their own leave the
    // results by place and add them up in the end.
    by_place_ = panels && threads_ > 1;
    if (!by_place_) {
      std::fill_n(y_, rows_ * out_, 0.0f);
      for (size_t j = 0; j < jobs_.size(); ++j) run(j, 0, 0, 1);
      return;
    }
    share_jobs(jobs_, threads_, at<int32_t>(at_.order), at<int64_t>(at_.loads));
    for (const ExpertJob& job : jobs_)
      if (!takes_panels(job)) by_dots(job);
#pragma omp parallel num_threads(threads_)
    {
      const size_t me = static_cast<size_t>(omp_get_thread_num()),
                   team = static_cast<size_t>(omp_get_num_threads());  // fewer where nested
      const auto mine = [&](const ExpertJob& job) {
        return job.owner != ExpertJob::kAll && static_cast<size_t>(job.owner) % team == me;
      };
      for (size_t j = 0; j < jobs_.size(); ++j)
        if (mine(jobs_[j]) && takes_panels(jobs_[j])) run(j, me, 0, 1);
      for (size_t j = 0; j < jobs_.size(); ++j) {
        if (jobs_[j].owner == ExpertJob::kAll && takes_panels(jobs_[j])) {
#pragma omp barrier
          run(j, 0, me, team);
        }
      }
#pragma omp barrier
      for (size_t t = rows_ * me / team; t < rows_ * (me + 1) / team; ++t) add_places(t);
    }
  }

 private:
  template <class T>
  T* at(int64_t place) const {
    return reinterpret_cast<T*>(scratch_ + place);
  }
  float* lane_floats(size_t lane, int64_t place) const {
    return at<float>(at_.lanes + static_cast<int64_t>(lane) * at_.lane_bytes + place);
  }
  bool takes_panels(const ExpertJob& job) const {
    return !e_.up_panels.empty() && static_cast<size_t>(job.tokens()) >= kPanelsFrom;
  }
  float* result(const ExpertJob& job) const {
    return at<float>(at_.result) + (by_place_ ? static_cast<size_t>(job.first) * out_ : 0);
  }
  const float* input(const ExpertJob& job, size_t i) const {
    return x_ + static_cast<size_t>(groups_.token[static_cast<size_t>(job.first) + i]) * in_;
  }

  /// By ascending expert.
  void list_jobs() {
    ExpertJob* jobs = at<ExpertJob>(at_.jobs);
    size_t count = 0;
    for (size_t e = 0; e < e_.count(); ++e) {
      const int32_t first = groups_.start[e], tokens = groups_.start[e + 1] - first;
      if (tokens == 0) continue;
      count_work(e, static_cast<size_t>(tokens));
      const int32_t most = static_cast<int32_t>(most_tokens(e_, rows_)),
                    parts = (tokens + most - 1) / most;
      for (int32_t p = 0; p < parts; ++p) {
        jobs[count++] = {static_cast<int32_t>(e), first + tokens * p / parts,
                         first + tokens * (p + 1) / parts};
      }
    }
    jobs_ = {jobs, count};
  }

  /// Part `part` of `parts` of a job, whose threads all come here, in the memory of `lane`.
  void run(size_t j, size_t lane, size_t part, size_t parts) const {
    const ExpertJob& job = jobs_[j];
    if (!takes_panels(job)) return by_dots(job);
    // What this thread reads next.
    const auto next = std::find_if(
        jobs_.begin() + static_cast<std::ptrdiff_t>(j) + 1, jobs_.end(), [&](const ExpertJob& n) {
          return n.owner == job.owner && n.expert != job.expert && takes_panels(n);
        });
    by_panels(job, lane, part, parts, next == jobs_.end() ? nullptr : &*next);
  }

  void add_result(size_t place, const float* result) const {
    add_scaled(result, groups_.weight[place], y_ + static_cast<size_t>(groups_.token[place]) * out_,
               out_);
  }

  void add_places(size_t token) const {
    std::fill_n(y_ + token * out_, out_, 0.0f);
    for (size_t i = 0; i < e_.top_k; ++i) {
      const size_t place = static_cast<size_t>(groups_.places[token * e_.top_k + i]);
      add_result(place, at<float>(at_.result) + place * out_);
    }
  }

  void add_results(const ExpertJob& job) const {
    for (size_t i = 0; i < static_cast<size_t>(job.tokens()); ++i)
      add_result(static_cast<size_t>(job.first) + i, result(job) + i * out_);
  }

  void by_dots(const ExpertJob& job) const {
    const size_t tokens = static_cast<size_t>(job.tokens()), e = static_cast<size_t>(job.expert);
    float *gathered = lane_floats(0, at_.gathered), *hidden = lane_floats(0, at_.hidden),
          *other = lane_floats(0, at_.other), *result = this->result(job);
    for (size_t i = 0; i < tokens; ++i)
      std::memcpy(gathered + i * in_, input(job, i), in_ * sizeof(float));
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
    if (!by_place_) add_results(job);
  }

  /// Threads share out the columns of the hidden layer, then those of the result.
  void by_panels(const ExpertJob& job, size_t lane, size_t part, size_t parts,
                 const ExpertJob* next) const {
    const size_t tokens = static_cast<size_t>(job.tokens()), e = static_cast<size_t>(job.expert),
                 in_stride = in_ + kPad, stride = hidden_ + kPad;
    const float** rows =
        at<const float*>(at_.lanes + static_cast<int64_t>(lane) * at_.lane_bytes + at_.pointers);
    const float** hidden_rows = rows + tokens;
    float *gathered = lane_floats(lane, at_.gathered), *hidden = lane_floats(lane, at_.hidden),
          *other = lane_floats(lane, at_.other), *result = this->result(job);
    const auto meet = [&] {
      if (parts > 1) {
#pragma omp barrier
      }
    };
    for (size_t i = tokens * part / parts; i < tokens * (part + 1) / parts; ++i) {
      rows[i] = gathered + i * in_stride;
      hidden_rows[i] = hidden + i * stride;
      std::memcpy(gathered + i * in_stride, input(job, i), in_ * sizeof(float));
    }
    meet();
    const size_t from = column_part(hidden_, part, parts),
                 to = column_part(hidden_, part + 1, parts);
    const size_t begin = column_part(out_, part, parts), end = column_part(out_, part + 1, parts);
    const auto first_matrix = [&](size_t expert) -> const Buffer& {
      return e_.gated() ? e_.gate_panels[expert] : e_.up_panels[expert];
    };
    const float *down = panel(e_.down_panels[e], hidden_, begin),
                *up = panel(e_.up_panels[e], in_, from),
                *then = next ? panel(first_matrix(static_cast<size_t>(next->expert)), in_, from)
                             : nullptr;
    products(panel(first_matrix(e), in_, from), in_, rows, tokens, hidden + from, stride, to - from,
             e_.gated() ? up : down);
    if (e_.gated()) products(up, in_, rows, tokens, other + from, stride, to - from, down);
    for (size_t i = 0; i < tokens && to > from; ++i) {
      float* h = hidden + i * stride + from;
      activate(e_.activation, h, h, to - from);
      if (e_.gated()) multiply(h, other + i * stride + from, h, to - from);
    }
    meet();
    products(down, hidden_, hidden_rows, tokens, result + begin, out_, end - begin, then);
    if (!by_place_) add_results(job);
  }

  static const float* panel(const Buffer& weight, size_t depth, size_t output) {
    return weight.floats() + output / kPanel * depth * kPanel;
  }

  static void products(const float* weight, size_t depth, const float* const* x, size_t tokens,
                       float* out, size_t stride, size_t outputs, const float* next) {
    if (outputs == 0) return;
    const int64_t all = static_cast<int64_t>(depth);
    PanelCall call;
    call.panel_stride = all * kPanel;
    call.outputs = static_cast<int64_t>(outputs);
    call.x = x;
    call.pixels = static_cast<int64_t>(tokens);
    call.out = out;
    call.out_stride = static_cast<int64_t>(stride);
    for (int64_t k = 0; k < all; k += kExpertDepth) {
      const PanelRun run{k, std::min(kExpertDepth, all - k)};
      call.weight = weight + k * kPanel;
      call.runs = {&run, 1};
      call.accumulate = k > 0;
      call.next = k + kExpertDepth < all ? call.weight + kExpertDepth * kPanel : next;
      panel_products(call);
    }
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
  ExpertGroups groups_;
  std::span<ExpertJob> jobs_;
  bool by_place_ = false;
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
