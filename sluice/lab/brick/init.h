// First values of parameters.
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace sluice::lab {

class Brick;

/// While one lives, bricks built by this thread leave their random parameters unset: their values
/// are about to be copied in (clone, loading), so nothing is drawn from the default generator.
class WithoutInit {
 public:
  WithoutInit();
  ~WithoutInit();
  WithoutInit(const WithoutInit&) = delete;
  WithoutInit& operator=(const WithoutInit&) = delete;
  static bool active();
};

/// Uniform in +-1/sqrt(fan_in), as torch.nn.Linear and Conv2d; zeros under WithoutInit.
at::Tensor initial_uniform(at::IntArrayRef sizes, int64_t fan_in);

/// Draws every convolution's and linear layer's weights below `root` anew from (seed, path) and
/// zeroes their biases; embeddings and learned rows are normal with deviation 0.02; norms, masks
/// and gates keep their values. `scheme`: "kaiming_normal" (fan-out for convolutions, fan-in for
/// linear layers, gain sqrt 2; He et al. 2015), "glorot_normal" (Glorot & Bengio 2010), "uniform"
/// (+-1/sqrt(fan_in), biases too). Throws Error{config} for another scheme.
void initialize(Brick& root, const std::string& scheme, uint64_t seed);

/// The same for one tensor, on any device: numbers are drawn on the CPU so that they do not depend
/// on it.
void fill_normal(at::Tensor& tensor, double std, uint64_t seed);
void fill_uniform(at::Tensor& tensor, double bound, uint64_t seed);

}  // namespace sluice::lab
