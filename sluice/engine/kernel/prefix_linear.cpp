#include "sluice/engine/kernel/prefix_linear.h"

#include <algorithm>
#include <memory>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/packed_dot.h"
#include "sluice/engine/kernel/panel.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace {

// A strip of rows times a block of columns stays in the second-level cache while all panels pass.
constexpr int64_t kRowStrip = 112;  // whole tiles of every vector width
constexpr int64_t kDepth = 1024;
constexpr int64_t kPanelGroup = 4;  // what threads share out; a lone row takes four panels at once

struct PrefixLinear {
  int64_t most_rows = 0, each = 1, in = 0, out = 0;
  std::vector<PrefixSize> sizes;
  Buffer weight;                // panels, or
  bundle::PackedMatrix packed;  // codes
  Buffer bias;                  // [panel_outputs(out)]
  bool has_bias = false;
  int threads = 1;
};

PrefixSize size_of(const PrefixLinear& layer, const int64_t* choice) {
  const int64_t last = static_cast<int64_t>(layer.sizes.size()) - 1;
  // A layer of one size has it always.
  const int64_t index = choice && *choice >= 0 ? std::min(*choice, last) : last;
  return layer.sizes[static_cast<size_t>(index)];
}

int64_t rows_of(const PrefixLinear& layer, const LiveRows* live) {
  return live ? live->count * layer.each : layer.most_rows;
}

void count_work(const PrefixLinear& layer, const PrefixSize& size, int64_t all, int64_t row_bytes,
                Work* work) {
  if (!work || all == 0) return;
  work->macs += all * size.rows * size.columns;
  work->bytes += size.rows * row_bytes + 4 * all * (size.columns + layer.out);
}

void clear_rest(const PrefixLinear& layer, const PrefixSize& size, int64_t all, float* y) {
  if (size.rows == layer.out) return;
  for (int64_t r = 0; r < all; ++r)
    std::fill(y + r * layer.out + size.rows, y + (r + 1) * layer.out, 0.0f);
}

/// Outputs [first, last) of a strip of rows, first a multiple of 32.
void compute_panels(const PrefixLinear& layer, const PrefixSize& size, const float* x, float* y,
                    int64_t rows, int64_t first, int64_t last) {
  const float* corners[kRowStrip];
  for (int64_t r = 0; r < rows; ++r) corners[r] = x + r * layer.in;
  PanelCall call;
  call.panel_stride = layer.in * kPanel;
  call.outputs = last - first;
  call.bias = layer.bias.floats() + first;
  call.x = corners;
  call.pixels = rows;
  call.out = y + first;
  call.out_stride = layer.out;
  for (int64_t k = 0; k < size.columns; k += kDepth) {
    const PanelRun run{k, std::min(kDepth, size.columns - k)};
    call.weight = layer.weight.floats() + first / kPanel * call.panel_stride + k * kPanel;
    call.runs = {&run, 1};
    call.accumulate = k > 0;
    panel_products(call);
  }
}

void run_dense(const PrefixLinear& layer, const PrefixSize& size, int64_t all, const float* x,
               float* y) {
  const int64_t group = kPanelGroup * kPanel, groups = (size.rows + group - 1) / group;
  for (int64_t r = 0; r < all; r += kRowStrip) {
    const int64_t rows = std::min(kRowStrip, all - r);
    for_each_of(groups, layer.threads, [&](int64_t g) {
      compute_panels(layer, size, x + r * layer.in, y + r * layer.out, rows, g * group,
                     std::min((g + 1) * group, size.rows));
    });
  }
  clear_rest(layer, size, all, y);
}

void run_packed(const PrefixLinear& layer, const PrefixSize& size, int64_t all, const float* x,
                float* y, std::byte* scratch) {
  bundle::PackedMatrix weight = layer.packed.head(size.rows);
  weight.columns = size.columns;
  for (int64_t r = 0; r < all; r += kMaxDotBatch) {
    const int64_t batch = std::min(kMaxDotBatch, all - r);
    const DotInput input =
        prepare_dot(weight, DotKind::f32, x + r * layer.in, layer.in, batch, scratch);
    packed_dot(weight, input, y + r * layer.out, layer.out, layer.threads);
  }
  clear_rest(layer, size, all, y);
  if (!layer.has_bias) return;
  for (int64_t r = 0; r < all; ++r) {
    add(y + r * layer.out, layer.bias.floats(), Activation::none, y + r * layer.out,
        static_cast<size_t>(size.rows));
  }
}

std::shared_ptr<PrefixLinear> common(int64_t rows, int64_t in, int64_t out,
                                     std::span<const float> bias, std::vector<PrefixSize> sizes,
                                     int threads, int64_t each) {
  SLUICE_CHECK(!sizes.empty());
  for (const PrefixSize& size : sizes) {
    SLUICE_CHECK(size.rows >= 1 && size.rows <= out && size.columns >= 1 && size.columns <= in);
  }
  auto layer = std::make_shared<PrefixLinear>();
  layer->most_rows = rows;
  layer->each = each;
  layer->in = in;
  layer->out = out;
  layer->sizes = std::move(sizes);
  layer->threads = threads;
  layer->has_bias = !bias.empty();
  layer->bias = Buffer(panel_outputs(out) * static_cast<int64_t>(sizeof(float)));
  std::copy(bias.begin(), bias.end(), layer->bias.floats());
  return layer;
}

}  // namespace

Kernel make_prefix_linear(int64_t rows, int64_t in, int64_t out, std::span<const float> weight,
                          std::span<const float> bias, std::vector<PrefixSize> sizes, int threads,
                          int64_t each) {
  const auto layer = common(rows, in, out, bias, std::move(sizes), threads, each);
  layer->weight = pack_panels(weight, out, in);
  Kernel kernel;
  kernel.name = "sluice prefix_linear";
  kernel.metered = true;
  kernel.counts_rows = true;
  kernel.bind = [layer](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    float* y = b.output;
    Work* work = b.work;
    const int64_t* choice = b.size;
    const LiveRows* live = b.rows;
    return [=] {
      const int64_t all = rows_of(*layer, live);
      const PrefixSize size = size_of(*layer, choice);
      run_dense(*layer, size, all, x, y);
      count_work(*layer, size, all, size.columns * 4, work);
    };
  };
  return kernel;
}

Kernel make_prefix_linear(int64_t rows, const bundle::PackedMatrix& weight,
                          std::span<const float> bias, std::vector<PrefixSize> sizes, int threads,
                          int64_t each) {
  for (const PrefixSize& size : sizes)
    SLUICE_CHECK(bundle::prefix_columns_fit(weight.format, weight.columns, size.columns));
  const auto layer =
      common(rows, weight.columns, weight.rows, bias, std::move(sizes), threads, each);
  layer->packed = weight;
  Kernel kernel;
  kernel.name = fmt::format("sluice prefix_linear {}", bundle::format_name(weight.format));
  kernel.metered = true;
  kernel.counts_rows = true;
  for (const PrefixSize& size : layer->sizes) {
    kernel.scratch_bytes = std::max(
        kernel.scratch_bytes,
        dot_scratch_bytes(weight.format, DotKind::f32, size.columns, std::min(kMaxDotBatch, rows)));
  }
  kernel.bind = [layer](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    float* y = b.output;
    std::byte* scratch = b.scratch;
    Work* work = b.work;
    const int64_t* choice = b.size;
    const LiveRows* live = b.rows;
    return [=] {
      const int64_t all = rows_of(*layer, live);
      const PrefixSize size = size_of(*layer, choice);
      run_packed(*layer, size, all, x, y, scratch);
      count_work(*layer, size, all,
                 layer->packed.row_bytes() * size.columns / layer->packed.columns, work);
    };
  };
  return kernel;
}

}  // namespace sluice::engine
