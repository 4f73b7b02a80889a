// The only door to oneDNN: the differences between its 2.x and 3.x interfaces stay in onednn.cpp.
// Every make_* creates a primitive for a fixed shape and thread count and packs constant operands
// once.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "sluice/engine/kernel/buffer.h"
#include "sluice/engine/kernel/kernel.h"

namespace sluice::engine::onednn {

/// What happens to a result before it is stored: + other, then the activation, then * factor +
/// offset.
struct Tail {
  enum class Add {
    none,
    accumulate,
    operand
  };  ///< accumulate: the output's memory already holds the other addend
  Add add = Add::none;
  Activation activation = Activation::none;
  float factor = 1, offset = 0;
};

struct ConvShape {
  int64_t samples = 1, groups = 1, in_channels = 1, out_channels = 1;  ///< channels over all groups
  int64_t in_height = 1, in_width = 1, out_height = 1, out_width = 1;
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
};

/// Keeps packed weights alive and lets sessions of one network share them.
class PackCache {
 public:
  PackCache();
  ~PackCache();
  struct State;
  State* state() const { return state_.get(); }

 private:
  std::unique_ptr<State> state_;
};

/// Inputs when bound: x, and the other addend if tail.add is not none. `weight` [O,C/g,kh,kw],
/// `bias` [O] or empty. `key` names the weights in `cache`. Returns nothing when oneDNN has only
/// its reference code for this case (the caller tries another layout) unless `accept_reference`.
std::optional<Kernel> make_conv(const ConvShape& shape, Layout layout, const Tail& tail,
                                std::span<const float> weight, std::span<const float> bias,
                                int threads, PackCache& cache, const std::string& key,
                                bool accept_reference);
/// The same of codes of int8, one sample, channels last: sums of products, exact, times scales_o
/// times a number of each call, + bias. Inputs when bound: the codes of x, that number, and the
/// other addend if tail.add is operand, never accumulate. `weight` is int8 of that shape, any
/// alignment. Nothing where oneDNN has no exact sums of int8 (product_usable()) or only its
/// reference code.
std::optional<Kernel> make_conv_i8(const ConvShape& shape, const Tail& tail,
                                   const std::byte* weight, std::span<const float> scales,
                                   std::span<const float> bias, int threads, PackCache& cache,
                                   const std::string& key);
/// rows x in times weight [out,in] transposed, + bias. `weight_stays`: the weights outlive the
/// kernel, which then reads them where they are if oneDNN takes them in this order.
Kernel make_linear(int64_t rows, int64_t in, int64_t out, const Tail& tail,
                   std::span<const float> weight, std::span<const float> bias, int threads,
                   PackCache& cache, const std::string& key, bool weight_stays = false);
/// The mere product, x W^T: bf16 x bf16 to f32, or s8 x s8 to s32; the pointers of the binding
/// stand for such arrays. `weight` is [out][in] of that type, any alignment.
enum class ProductType : uint8_t { bf16, i8 };
/// Whether oneDNN multiplies them right on this machine: it has no bf16 without AVX-512, and
/// without VNNI its sums of int8 saturate at 16 bits, pair by pair.
bool product_usable(ProductType type);
/// Only where product_usable().
Kernel make_product(ProductType type, int64_t rows, int64_t in, int64_t out,
                    const std::byte* weight, int threads, PackCache& cache, const std::string& key);
/// y[r * y_stride + o] = sum_i x[r][i] weight[o][i], f32, packed on the fly; on the calling thread
/// when it is inside a parallel region.
void multiply_rows(const float* x, const float* weight, int64_t rows, int64_t in, int64_t out,
                   float* y, int64_t y_stride);
/// y [rows][out] = scale a b: a [rows][in], b [in][out], or transposed [out][in]; otherwise as
/// multiply_rows.
void multiply_matrices(const float* a, const float* b, int64_t rows, int64_t in, int64_t out,
                       bool transposed, float scale, float* y);
/// kernel, stride, padding of `shape`; channels are in_channels, and last. Average pooling does not
/// count the padding.
Kernel make_pool(const ConvShape& shape, bool maximum, int threads);

/// True while the calling thread is inside oneDNN: what it allocates there is not ours to avoid.
bool inside();
/// "2.6.3"
std::string version();

}  // namespace sluice::engine::onednn
