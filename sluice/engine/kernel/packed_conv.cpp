#include "sluice/engine/kernel/packed_conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/gemm_rows.h"

namespace sluice::engine {
namespace {

// Less than this is rounded by one thread before two have met.
constexpr int64_t kParallelRounding = 1 << 15;

/// Where each of `parts` begins in `count` elements, in whole cache lines.
int64_t part_start(int64_t count, int64_t part, int64_t parts) {
  return std::min(count, (count + 63) / 64 * part / parts * 64);
}

struct Rounding {
  float scale = 0, factor = 0;  ///< factor 0: all codes are 0
};

Rounding rounding_of(float largest) {
  const float scale = largest / 127.0f, factor = 1.0f / scale;
  if (std::isnan(scale)) return {scale, 0};
  return scale > 0 && !std::isinf(factor) ? Rounding{scale, factor} : Rounding{};
}

/// bundle::quantize_sample; `largest` has room for one number per thread.
float round_sample(const float* x, int64_t count, int8_t* codes, float* largest, int threads) {
  if (threads <= 1 || count < kParallelRounding) {
    const Rounding rounding = rounding_of(largest_magnitude(x, count));
    if (rounding.factor > 0) {
      quantize_by(x, rounding.factor, count, codes);
    } else {
      std::memset(codes, 0, static_cast<size_t>(count));
    }
    return rounding.scale;
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int part = 0; part < threads; ++part) {
    const int64_t first = part_start(count, part, threads);
    largest[part] = largest_magnitude(x + first, part_start(count, part + 1, threads) - first);
  }
  float most = 0, check = 0;
  for (int part = 0; part < threads; ++part) {
    most = std::max(most, largest[part]);
    check += largest[part] - largest[part];
  }
  const Rounding rounding = rounding_of(check == 0 ? most : std::nanf(""));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int part = 0; part < threads; ++part) {
    const int64_t first = part_start(count, part, threads),
                  many = part_start(count, part + 1, threads) - first;
    if (rounding.factor > 0) {
      quantize_by(x + first, rounding.factor, many, codes + first);
    } else {
      std::memset(codes + first, 0, static_cast<size_t>(many));
    }
  }
  return rounding.scale;
}

}  // namespace

std::optional<Kernel> make_packed_conv(const PackedConv& conv, onednn::PackCache& cache,
                                       const std::string& key) {
  onednn::ConvShape one = conv.shape;
  one.samples = 1;
  std::optional<Kernel> product = onednn::make_conv_i8(one, conv.tail, conv.codes, conv.scales,
                                                       conv.bias, conv.threads, cache, key);
  if (!product) return std::nullopt;
  struct Layer {
    Kernel product;
    int64_t samples, in, out;
    bool adds;
    int threads;
  };
  auto layer = std::make_shared<Layer>();
  layer->product = std::move(*product);
  layer->samples = conv.shape.samples;
  layer->in = one.in_channels * one.in_height * one.in_width;
  layer->out = one.out_channels * one.out_height * one.out_width;
  layer->adds = conv.tail.add != onednn::Tail::Add::none;
  layer->threads = std::max(1, conv.threads);
  // The codes, the scale, the largest of each thread's part.
  const int64_t code_bytes = align_up(layer->in),
                scale_bytes = align_up(int64_t{4} * (1 + layer->threads));
  Kernel kernel;
  kernel.name = layer->product.name;
  kernel.scratch_bytes = code_bytes + scale_bytes + layer->product.scratch_bytes;
  kernel.counts_rows = true;
  kernel.bind = [=](const Binding& b) -> std::function<void()> {
    std::byte* const codes = b.scratch;
    float* const scale = reinterpret_cast<float*>(codes + code_bytes);
    std::vector<std::function<void()>> products;
    for (int64_t s = 0; s < layer->samples; ++s) {
      float* inputs[] = {reinterpret_cast<float*>(codes), scale,
                         layer->adds ? b.inputs[1] + s * layer->out : nullptr};
      Binding inner;
      inner.inputs = inputs;
      inner.output = b.output + s * layer->out;
      inner.scratch = codes + code_bytes + scale_bytes;
      products.push_back(layer->product.bind(inner));
    }
    return [=, x = b.inputs[0], live = b.rows, products = std::move(products)] {
      const int64_t samples = live ? live->count : layer->samples;
      for (int64_t s = 0; s < samples; ++s) {
        *scale = round_sample(x + s * layer->in, layer->in, reinterpret_cast<int8_t*>(codes),
                              scale + 1, layer->threads);
        products[static_cast<size_t>(s)]();
      }
    };
  };
  return kernel;
}

Kernel make_rounded(Kernel conv, int64_t samples, int64_t each, int threads) {
  threads = std::max(1, threads);
  const int64_t value_bytes = align_up(checked_mul(samples, 4 * each, "scratch")),
                code_bytes = align_up(each), largest_bytes = align_up(int64_t{4} * threads);
  Kernel kernel = conv;
  kernel.name += " of int8";
  kernel.scratch_bytes = value_bytes + code_bytes + largest_bytes + conv.scratch_bytes;
  kernel.bind = [=, inner = conv.bind](const Binding& b) -> std::function<void()> {
    float* const values = reinterpret_cast<float*>(b.scratch);
    int8_t* const codes = reinterpret_cast<int8_t*>(b.scratch + value_bytes);
    float* const largest = reinterpret_cast<float*>(b.scratch + value_bytes + code_bytes);
    std::vector<float*> inputs(b.inputs.begin(), b.inputs.end());
    inputs[0] = values;
    Binding rounded = b;
    rounded.inputs = inputs;
    rounded.scratch = b.scratch + value_bytes + code_bytes + largest_bytes;
    return [=, x = b.inputs[0], call = inner(rounded)] {
      for (int64_t s = 0; s < samples; ++s) {
        const float scale = round_sample(x + s * each, each, codes, largest, threads);
        for (int64_t i = 0; i < each; ++i)
          values[s * each + i] = scale * static_cast<float>(codes[i]);
      }
      call();
    };
  };
  return kernel;
}

}  // namespace sluice::engine
