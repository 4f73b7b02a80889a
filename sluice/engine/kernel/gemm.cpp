#include "sluice/engine/kernel/gemm.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/elementwise.h"
#include "sluice/engine/kernel/gemm_panels.h"
#include "sluice/engine/kernel/gemm_rows.h"
#include "sluice/engine/kernel/packed_dot_path.h"
#include "sluice/engine/kernel/packed_tiles.h"
#include "sluice/engine/kernel/threads.h"

namespace sluice::engine {
namespace {

using bundle::Format;
using bundle::PackedMatrix;

// For 2048 x 2048 on one thread (Zen 5, AVX-512 VNNI): at 12 rows oneDNN's integer and bf16
// products take half and a third of packed_dot's time.
constexpr int64_t kProductRows = 9, kTileRows = 9;
// Less than this is done by one thread before two have met.
constexpr int64_t kParallelMacs = 1 << 17;
// A strip of packed weights beside eight rows of activations in the second-level cache.
constexpr int64_t kDotStrip = 256 << 10;
// A strip of unpacked weights that the f32 product packs once more. The product packs x once a
// call, too: strips are as large as x is, within these bounds (512 rows of bf16 with AVX2: strips
// of 1 MB took 1.2 of the f32 time, of 4 MB 1.08).
constexpr int64_t kUnpackedStrip = 1 << 20, kUnpackedStripMost = 1 << 22;

struct Layer {
  PackedMatrix weight;
  DotKind kind;
  std::vector<float> bias;
  std::vector<float> scales;  ///< of the rows, where oneDNN multiplies integers
  Activation activation;
  bool adds;
  int threads;
  int64_t samples, each;
  Kernel product;  ///< oneDNN's
};

bool whole_product(const PackedLinear& layer, int64_t rows) {
  const bool i8 = layer.kind == DotKind::i8 && layer.weight.format == Format::i8,
             bf16 = layer.kind == DotKind::bf16 && layer.weight.format == Format::bf16;
  return rows >= kProductRows && (i8 || bf16) &&
         onednn::product_usable(i8 ? onednn::ProductType::i8 : onednn::ProductType::bf16);
}

/// Rows from which unpacked strips are faster.
int64_t unpacked_from(const PackedLinear& layer) {
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  const Format format = layer.weight.format;
  const bool floats = format == Format::f32 || format == Format::bf16;
  if (layer.kind == DotKind::i8 && !floats) {
    // Products of int8 beat those of floats where one instruction does four of them (VNNI) or two
    // (AVX2: 0.3 to 0.7 of the time at 16 rows; two planes of bits 1.0 at 64 and 1.2 at 192).
    if (dot_vnni_usable()) return kNever;
    if (!chosen_target_has_avx2()) return 16;
    return format == Format::binary2 ? 128 : kNever;
  }
  // Where packed_dot takes as long as unpacking to f32 (f32, bf16: as panels) and multiplying, for
  // 4096 x 4096 on one thread of a Zen 5: 128 rows of most formats take 19 to 25 ms and 23 to 26
  // with AVX-512, 32 rows 9 to 12 and 10 to 12 with AVX2 (gemm_bench.cpp). Two planes of bits take
  // twice as long as one.
  if (dot_vnni_usable()) {
    return format == Format::f32       ? 32
           : format == Format::bf16    ? 80
           : format == Format::binary2 ? 96
                                       : 128;
  }
  if (!chosen_target_has_avx2() || format == Format::binary2) return 16;
  return floats ? 48 : 32;
}

/// Panels take less time than unpacked strips and oneDNN: 4096 x 4096 with AVX2 0.85 to 0.97 of it
/// for 16 to 512 rows, with AVX-512 (Zen 4) 0.86 to 0.95 for 128 and 512.
bool panels_pay(const PackedLinear& layer) {
  return panels_apply(layer.weight, layer.kind) && chosen_target_has_avx2();
}

/// f32 rows of the matrix as a product can read them where they lie.
const float* plain_rows(const PackedMatrix& w) {
  const bool plain = w.format == Format::f32 &&
                     w.code_stride == w.columns * static_cast<int64_t>(sizeof(float)) &&
                     reinterpret_cast<uintptr_t>(w.codes) % alignof(float) == 0;
  return plain ? reinterpret_cast<const float*>(w.codes) : nullptr;
}

/// Bias, other addend and activation over rows x outputs.
void finish(const Layer& layer, float* y, const float* other, int64_t rows) {
  const size_t out = static_cast<size_t>(layer.weight.rows),
               count = static_cast<size_t>(rows) * out;
  if (!layer.bias.empty()) {
    const Activation kind = other ? Activation::none : layer.activation;
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
      add(y + r * out, layer.bias.data(), kind, y + r * out, out);
  }
  if (other) {
    add(y, other, layer.activation, y, count);
  } else if (layer.bias.empty() && layer.activation != Activation::none) {
    activate(layer.activation, y, y, count);
  }
}

int64_t strips_of(int64_t rows, int64_t row_bytes, int64_t strip_bytes, int threads) {
  const int64_t by_cache = (rows * row_bytes + strip_bytes - 1) / strip_bytes;
  const int64_t strips = std::max<int64_t>(by_cache, threads);
  return std::min(rows, (strips + threads - 1) / threads * threads);
}

// ---------------------------------------------------------------- packed_dot

int64_t dot_scratch(const Layer& layer, int64_t rows) {
  return dot_scratch_bytes(layer.weight.format, layer.kind, layer.weight.columns, rows);
}

void run_dot(const Layer& layer, const float* x, float* y, std::byte* scratch, int64_t rows) {
  const PackedMatrix& w = layer.weight;
  const int64_t chunks = (rows + kMaxDotBatch - 1) / kMaxDotBatch;
  if (chunks == 0) return;
  const int64_t bytes = dot_scratch_bytes(w.format, layer.kind, w.columns, kMaxDotBatch);
  const auto input = [&](int64_t chunk) {
    const int64_t first = chunk * kMaxDotBatch;
    return std::pair(first, std::min(kMaxDotBatch, rows - first));
  };
  const auto prepare = [&](int64_t chunk) {
    const auto [first, batch] = input(chunk);
    return prepare_dot(w, layer.kind, x + first * w.columns, w.columns, batch,
                       scratch + chunk * bytes);
  };
  const int threads = rows * w.rows * w.columns < kParallelMacs ? 1 : layer.threads;
  if (chunks == 1) return packed_dot(w, prepare(0), y, w.rows, threads);
  for_each_of(chunks, threads, prepare);
  DotInput shape = prepare_dot(w, layer.kind, x, w.columns, 0, scratch);
  const int64_t strips = strips_of(w.rows, w.row_bytes(), kDotStrip, threads);
  for_each_of(strips, threads, [&](int64_t s) {
    const int64_t from = w.rows * s / strips, to = w.rows * (s + 1) / strips;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const auto [first, batch] = input(chunk);
      DotInput now = shape;
      now.batch = batch;
      now.data = scratch + chunk * bytes;
      packed_dot_range(w, now, from, to, y + first * w.rows + from, w.rows);
    }
  });
}

// ---------------------------------------------------------------- tiles

void run_tiles(const Layer& layer, const float* x, float* y, std::byte* scratch, int64_t rows) {
  multiply_tiles(layer.weight, x, rows, y, scratch, layer.threads);
}

// ---------------------------------------------------------------- panels

void run_panels(const Layer& layer, const float* x, float* y, std::byte* scratch, int64_t rows) {
  multiply_panels(layer.weight, layer.kind, x, rows, y, scratch, layer.threads);
}

// ---------------------------------------------------------------- unpacked strips

struct UnpackedPlan {
  int64_t strip_rows, strip_bytes, x_bytes, scale_bytes;
  int64_t total(int threads) const { return x_bytes + scale_bytes + threads * strip_bytes; }
};

UnpackedPlan unpacked_plan(const Layer& layer, int64_t rows) {
  const PackedMatrix& w = layer.weight;
  const int64_t row_bytes = checked_mul(w.columns, sizeof(float), "weights");
  const bool plain = plain_rows(w) != nullptr;
  const int64_t strips = plain ? std::min<int64_t>(w.rows, layer.threads)
                               : strips_of(w.rows, row_bytes,
                                           std::clamp(checked_mul(rows, row_bytes, "activations"),
                                                      kUnpackedStrip, kUnpackedStripMost),
                                           layer.threads);
  UnpackedPlan plan{};
  plan.strip_rows = (w.rows + strips - 1) / strips;
  plan.strip_bytes = plain ? 0 : align_up(checked_mul(plan.strip_rows, row_bytes, "scratch"));
  const bool rounds = layer.kind != DotKind::f32;
  plan.x_bytes = rounds ? align_up(checked_mul(rows, row_bytes, "scratch")) : 0;
  plan.scale_bytes = layer.kind == DotKind::i8 ? align_up(4 * rows) : 0;
  return plan;
}

void run_unpacked(const Layer& layer, const float* x, float* y, std::byte* scratch, int64_t rows) {
  const PackedMatrix& w = layer.weight;
  const UnpackedPlan plan = unpacked_plan(layer, rows);
  if (rows == 0) return;
  // Each strip's product runs on the thread that unpacked it.
  const ThreadScope scope(layer.threads);
  float* scales = reinterpret_cast<float*>(scratch + plan.x_bytes);
  if (layer.kind != DotKind::f32) {
    float* rounded = reinterpret_cast<float*>(scratch);
    for_each_of(rows, layer.threads, [&](int64_t r) {
      const float scale =
          round_row(layer.kind, x + r * w.columns, w.columns, rounded + r * w.columns);
      if (layer.kind == DotKind::i8) scales[r] = scale;
    });
    x = rounded;
  }
  const int64_t strips = (w.rows + plan.strip_rows - 1) / plan.strip_rows;
  std::byte* const buffers = scratch + plan.x_bytes + plan.scale_bytes;
  const int threads = layer.threads;
  const auto run_lane = [&](int64_t lane) {
    float* strip = reinterpret_cast<float*>(buffers + lane * plan.strip_bytes);
    for (int64_t s = lane; s < strips; s += threads) {
      const int64_t first = s * plan.strip_rows, count = std::min(plan.strip_rows, w.rows - first);
      const float* values = plain_rows(w);
      if (values) {
        values += first * w.columns;
      } else {
        unpack_rows(w, first, count, strip);
        values = strip;
      }
      onednn::multiply_rows(x, values, rows, w.columns, count, y + first, w.rows);
    }
  };
  for_each_of(threads, threads, run_lane);
  if (layer.kind == DotKind::i8) {
    for (int64_t r = 0; r < rows; ++r)
      scale_all(y + r * w.rows, scales[r], y + r * w.rows, static_cast<size_t>(w.rows));
  }
}

// ---------------------------------------------------------------- whole products of oneDNN

struct ProductPlan {
  int64_t x_bytes, scale_bytes;
};

ProductPlan product_plan(const Layer& layer, int64_t rows) {
  const int64_t each = layer.kind == DotKind::i8 ? 1 : 2;
  return {
      align_up(checked_mul(rows, checked_mul(layer.weight.columns, each, "scratch"), "scratch")),
      align_up(4 * rows)};
}

Kernel product_kernel(std::shared_ptr<Layer> layer, int64_t rows, bool integers) {
  const ProductPlan plan = product_plan(*layer, rows);
  Kernel kernel;
  kernel.name = layer->product.name + (integers ? " s8" : " bf16");
  kernel.scratch_bytes = plan.x_bytes + plan.scale_bytes + layer->product.scratch_bytes;
  kernel.bind = [layer, rows, plan, integers](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* other = layer->adds ? b.inputs[1] : nullptr;
    float* y = b.output;
    std::byte* const converted = b.scratch;
    float* const scales = reinterpret_cast<float*>(b.scratch + plan.x_bytes);
    float* input = reinterpret_cast<float*>(converted);
    Binding inner;
    inner.inputs = {&input, 1};
    inner.output = y;
    inner.scratch = b.scratch + plan.x_bytes + plan.scale_bytes;
    return [=, product = layer->product.bind(inner)] {
      const int64_t columns = layer->weight.columns, out = layer->weight.rows;
      const int threads = layer->threads;
      for_each_of(rows, threads, [&](int64_t r) {
        if (integers) {
          scales[r] = quantize_row(x + r * columns, columns,
                                   reinterpret_cast<int8_t*>(converted) + r * columns);
        } else {
          bf16_row(x + r * columns, columns, reinterpret_cast<uint16_t*>(converted) + r * columns);
        }
      });
      product();
      if (!integers) return finish(*layer, y, other, rows);
      const float* bias = layer->bias.empty() ? nullptr : layer->bias.data();
      for_each_of(rows, threads, [&](int64_t r) {
        scale_sums(y + r * out, scales[r], layer->scales.data(), bias, out);
        if (other) {
          add(y + r * out, other + r * out, layer->activation, y + r * out,
              static_cast<size_t>(out));
        } else if (layer->activation != Activation::none) {
          activate(layer->activation, y + r * out, y + r * out, static_cast<size_t>(out));
        }
      });
    };
  };
  return kernel;
}

}  // namespace

Kernel make_packed_linear(const PackedLinear& from, int64_t samples, int64_t each,
                          onednn::PackCache& cache, const std::string& key, GemmPath path) {
  SLUICE_CHECK(from.bias.empty() || static_cast<int64_t>(from.bias.size()) == from.weight.rows);
  auto layer = std::make_shared<Layer>();
  layer->weight = from.weight;
  layer->kind = from.kind;
  layer->bias.assign(from.bias.begin(), from.bias.end());
  layer->activation = from.activation;
  layer->adds = from.adds;
  layer->threads = std::max(1, from.threads);
  layer->samples = samples;
  layer->each = each;
  const int64_t rows = checked_mul(samples, each, "rows");
  int64_t many = unpacked_from(from);  // rows from which `path` is taken, fewer are dot's
  if (path == GemmPath::dot) {
    many = std::numeric_limits<int64_t>::max();
  } else if (path == GemmPath::unpacked || path == GemmPath::panels) {
    many = 0;
  } else if (path == GemmPath::automatic) {
    if (from.kind == DotKind::i8 && tiles_apply(from.weight) && tiles_usable()) {
      path = GemmPath::tiles;
    } else if (whole_product(from, rows)) {
      path = from.kind == DotKind::i8 ? GemmPath::integers : GemmPath::bf16;
    } else if (panels_pay(from)) {
      path = GemmPath::panels;
    }
  }
  if (path == GemmPath::tiles) many = kTileRows;
  if (path == GemmPath::integers || path == GemmPath::bf16) {
    const bool integers = path == GemmPath::integers;
    const PackedMatrix& w = layer->weight;
    layer->product =
        onednn::make_product(integers ? onednn::ProductType::i8 : onednn::ProductType::bf16, rows,
                             w.columns, w.rows, w.codes, layer->threads, cache, key);
    if (integers) {
      layer->scales.resize(static_cast<size_t>(w.rows));
      std::memcpy(layer->scales.data(), w.scales, layer->scales.size() * sizeof(float));
    }
    return product_kernel(layer, rows, integers);
  }
  // The rows that are there decide, not those that were planned: a prompt and one token are both
  // served by the kernel that suits them.
  const bool tiles = path == GemmPath::tiles, panels = path == GemmPath::panels,
             plans_many = rows >= many;
  const std::string_view how = !plans_many               ? dot_name()
                               : tiles                   ? "sluice gemm amx"
                               : panels                  ? "sluice panels"
                               : plain_rows(from.weight) ? "sluice sgemm"
                                                         : "sluice unpack + sgemm";
  const int64_t dots = std::min(rows, std::max<int64_t>(many - 1, 0));
  Kernel kernel;
  kernel.name = fmt::format("{} {}{}", how, bundle::format_name(from.weight.format),
                            from.kind == DotKind::i8 ? " x i8" : "");
  kernel.scratch_bytes =
      std::max(dot_scratch(*layer, (dots + kMaxDotBatch - 1) / kMaxDotBatch * kMaxDotBatch),
               !plans_many ? 0
               : tiles     ? tiles_scratch_bytes(layer->weight, rows, layer->threads)
               : panels    ? panels_scratch_bytes(layer->weight, rows, layer->threads)
                           : unpacked_plan(*layer, rows).total(layer->threads));
  kernel.counts_rows = true;
  kernel.bind = [layer, many,
                 run_many = tiles    ? run_tiles
                            : panels ? run_panels
                                     : run_unpacked](const Binding& b) -> std::function<void()> {
    const float* x = b.inputs[0];
    const float* other = layer->adds ? b.inputs[1] : nullptr;
    return [=, y = b.output, scratch = b.scratch, live = b.rows] {
      const int64_t count = (live ? live->count : layer->samples) * layer->each;
      (count >= many ? run_many : run_dot)(*layer, x, y, scratch, count);
      finish(*layer, y, other, count);
    };
  };
  return kernel;
}

}  // namespace sluice::engine
