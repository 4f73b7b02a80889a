#include "sluice/engine/kernel/sparse_ffn.h"

#include <algorithm>
#include <cstring>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/elementwise.h"

namespace sluice::engine {
namespace {

using Source = SparseFfn::Source;
constexpr int64_t kFfnTokens = static_cast<int64_t>(kMaxTokens);

bool from_first(const SparseFfn& f) {
  return f.source == Source::first || f.source == Source::activated;
}

/// Where everything lies in the scratch, in bytes.
struct FfnPlaces {
  int64_t lists = 0, hidden = 0, other = 0, full = 0, scores = 0, code = 0, input = 0, sums = 0,
          end = 0;

  FfnPlaces(const SparseFfn& f, int threads) {
    const int64_t neurons = f.up.rows, floats = static_cast<int64_t>(sizeof(float)) * kFfnTokens;
    const auto take = [&](int64_t bytes) {
      const int64_t at = end;
      end += align_up(bytes);
      return at;
    };
    lists = take(ActiveRows::scratch_bytes(kFfnTokens, neurons));
    hidden = take(floats * neurons);
    if (f.gated()) other = take(floats * neurons);
    if (from_first(f)) full = take(floats * neurons);
    if (f.source == Source::predictor || f.source == Source::activated)
      scores = take(floats * neurons);
    int64_t most = ActiveInput::scratch_bytes(f.up.format, f.kind, f.up.columns, kFfnTokens);
    if (f.gated())
      most = std::max(
          most, ActiveInput::scratch_bytes(f.gate.format, f.kind, f.gate.columns, kFfnTokens));
    if (f.source == Source::predictor) {
      code = take(floats * f.predictor_a.rows);
      most = std::max(
          {most, dot_scratch_bytes(f.predictor_a.format, f.kind, f.up.columns, kFfnTokens),
           dot_scratch_bytes(f.predictor_b.format, f.kind, f.predictor_a.rows, kFfnTokens)});
    }
    input = take(most);
    sums = take(packed_accumulate_scratch(f.down, threads));
  }
};

/// One chunk of up to kMaxTokens tokens.
class Chunk {
 public:
  Chunk(const SparseFfn& ffn, const float* x, const float* scores, float* y, size_t tokens,
        std::byte* scratch, int threads, Work* work)
      : f_(ffn),
        at_(ffn, threads),
        scratch_(scratch),
        threads_(threads),
        work_(work),
        x_(x),
        scores_(scores),
        y_(y),
        tokens_(tokens),
        neurons_(static_cast<size_t>(ffn.up.rows)),
        in_(static_cast<size_t>(ffn.inputs())),
        out_(static_cast<size_t>(ffn.down.columns)) {
    active_.bind(scratch + at_.lists, kMaxTokens, neurons_);
    active_.tokens = tokens;
  }

  void run() {
    for (size_t t = 0; t < tokens_; ++t) {
      if (f_.down_bias) {
        std::memcpy(y_ + t * out_, f_.down_bias, out_ * sizeof(float));
      } else {
        std::fill_n(y_ + t * out_, out_, 0.0f);
      }
    }
    choose();
    float* hidden = floats(at_.hidden);
    first(hidden);
    if (f_.gated()) multiply_other(hidden);
    accumulate_active(f_.down, active_, hidden, y_, out_, scratch_ + at_.sums, threads_);
    count_active(f_.down, active_, work_);
    if (work_) work_->bytes += static_cast<int64_t>(tokens_ * (in_ + out_) * sizeof(float));
  }

 private:
  float* floats(int64_t place) const { return reinterpret_cast<float*>(scratch_ + place); }
  const bundle::PackedMatrix& first_matrix() const { return f_.gated() ? f_.gate : f_.up; }
  const float* first_bias() const { return f_.gated() ? f_.gate_bias : f_.up_bias; }

  void dense(const bundle::PackedMatrix& m, const float* x, int64_t stride, float* out) {
    const DotInput input =
        prepare_dot(m, f_.kind, x, stride, static_cast<int64_t>(tokens_), scratch_ + at_.input);
    packed_dot(m, input, out, m.rows, threads_);
    if (!work_) return;
    work_->macs += static_cast<int64_t>(tokens_) * m.rows * m.columns;
    work_->bytes += m.rows * m.row_bytes();
  }

  void choose() {
    const float* from = scores_;
    if (f_.source == Source::predictor) {
      dense(f_.predictor_a, x_, f_.inputs(), floats(at_.code));
      dense(f_.predictor_b, floats(at_.code), f_.predictor_b.columns, floats(at_.scores));
      from = floats(at_.scores);
    } else if (from_first(f_)) {
      float* full = floats(at_.full);
      dense(first_matrix(), x_, f_.inputs(), full);
      for (size_t t = 0; t < tokens_ && first_bias(); ++t)
        add(full + t * neurons_, first_bias(), Activation::none, full + t * neurons_, neurons_);
      from = full;
      if (f_.source == Source::activated) {
        activate(f_.activation, full, floats(at_.scores), tokens_ * neurons_);
        from = floats(at_.scores);
      }
    } else if (f_.source == Source::input && work_) {
      work_->bytes += static_cast<int64_t>(tokens_ * neurons_ * sizeof(float));
    }
    for (size_t t = 0; t < tokens_; ++t) {
      Scores scores;
      scores.n = neurons_;
      if (from) scores.x = from + t * neurons_;
      active_.count[t] =
          f_.select(scores, active_.index + t * neurons_, f_.soft ? &bound_[t] : nullptr);
    }
    active_.settle(f_.up.format);
  }

  /// hidden[t][j] = act(first product of row list(t)[j]), zero where the token has not asked.
  void first(float* hidden) {
    if (from_first(f_)) {
      const float* full = floats(at_.full);
      for (size_t t = 0; t < tokens_; ++t) {
        const int32_t* list = active_.list(t);
        for (size_t j = 0; j < active_.length(t); ++j)
          hidden[t * neurons_ + j] = full[t * neurons_ + static_cast<size_t>(list[j])] - bound_[t];
      }
    } else {
      dots(first_matrix(), x_, first_bias(), hidden);
    }
    for (size_t t = 0; t < tokens_; ++t) {
      float* row = hidden + t * neurons_;
      activate(f_.activation, row, row, active_.length(t));
      for (size_t j = 0; j < active_.length(t) && active_.shared; ++j) {
        if (!active_.asked(t, j)) row[j] = 0;
      }
    }
  }

  void multiply_other(float* hidden) {
    float* other = floats(at_.other);
    dots(f_.up, x_ + f_.split, f_.up_bias, other);
    for (size_t t = 0; t < tokens_; ++t) {
      float* row = hidden + t * neurons_;
      multiply(row, other + t * neurons_, row, active_.length(t));
      // What the token has not asked for may be infinite there: zero again.
      for (size_t j = 0; j < active_.length(t) && active_.shared; ++j) {
        if (!active_.asked(t, j)) row[j] = 0;
      }
    }
  }

  void dots(const bundle::PackedMatrix& m, const float* x, const float* bias, float* out) {
    const ActiveInput input =
        prepare_active(m, f_.kind, x, f_.inputs(), active_, scratch_ + at_.input);
    dot_active(m, input, active_, out, threads_);
    count_active(m, active_, work_);
    if (!bias) return;
    for (size_t t = 0; t < tokens_; ++t) {
      const int32_t* list = active_.list(t);
      for (size_t j = 0; j < active_.length(t); ++j)
        out[t * neurons_ + j] += bias[static_cast<size_t>(list[j])];
    }
  }

  const SparseFfn& f_;
  const FfnPlaces at_;
  std::byte* scratch_;
  const int threads_;
  Work* work_;
  const float *x_, *scores_;
  float* y_;
  const size_t tokens_, neurons_, in_, out_;
  ActiveRows active_;
  float bound_[kMaxTokens] = {};
};

}  // namespace

int64_t sparse_ffn_scratch(const SparseFfn& f, int threads) { return FfnPlaces(f, threads).end; }

void run_sparse_ffn(const SparseFfn& f, const float* x, const float* scores, float* y, size_t rows,
                    std::byte* scratch, int threads, Work* work) {
  for (size_t row = 0; row < rows; row += kMaxTokens) {
    const size_t tokens = std::min(kMaxTokens, rows - row);
    Chunk(f, x + row * static_cast<size_t>(f.inputs()),
          scores ? scores + row * static_cast<size_t>(f.up.rows) : nullptr,
          y + row * static_cast<size_t>(f.down.columns), tokens, scratch, threads, work)
        .run();
  }
}

}  // namespace sluice::engine
