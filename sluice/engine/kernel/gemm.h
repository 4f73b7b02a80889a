// Linear layers with packed weights for any number of rows:
//   y = activation(x W^T + bias + other),  x [rows][columns], y [rows][W.rows]
//
//   few rows                        packed_dot: the weights are read once
//   more, int8 activations and AMX  packed_tiles: strips of weights unpacked to int8
//   more, i8 and int8 activations   oneDNN's integer product, scaled behind it (with VNNI)
//   more, bf16 on both sides        oneDNN's bf16 product (with AVX-512)
//   more, others                    packed_dot, eight rows of x at a time over strips of weights
//                                   that stay in the cache
//   many, f32 or bf16 (with AVX2)   blocks of weights unpacked to panels (gemm_panels.h)
//   many, float activations         strips of weights unpacked to f32, then oneDNN's f32 product
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "sluice/bundle/packed.h"
#include "sluice/engine/kernel/kernel.h"
#include "sluice/engine/kernel/onednn.h"
#include "sluice/engine/kernel/packed_dot.h"

namespace sluice::engine {

struct PackedLinear {
  bundle::PackedMatrix weight;  ///< its bytes must outlive the kernel
  DotKind kind = DotKind::f32;
  std::span<const float> bias;  ///< empty or [weight.rows], copied
  Activation activation = Activation::none;
  bool adds = false;  ///< input 1 is `other`
  int threads = 1;
};

enum class GemmPath : uint8_t { automatic, dot, tiles, integers, bf16, unpacked, panels };

/// `samples` times `each` rows of x, or as many as Binding::rows counts where the kernel can
/// (counts_rows: not the two whose whole product is oneDNN's). `key` names the weights in `cache`.
/// Throws Error{limit} when scratch overflows. GemmPath::tiles only where tiles_usable() and
/// tiles_apply(), panels only where panels_apply(), integers and bf16 only where
/// onednn::product_usable().
Kernel make_packed_linear(const PackedLinear& layer, int64_t samples, int64_t each,
                          onednn::PackCache& cache, const std::string& key,
                          GemmPath path = GemmPath::automatic);

}  // namespace sluice::engine
