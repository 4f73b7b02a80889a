// Mixed precision: matrix products in bf16, everything that sums in f32.
#pragma once

namespace sluice::lab {

/// Turns LibTorch's autocast to bf16 on CUDA on for its lifetime when `on`. Leave the scope before
/// backward().
class Autocast {
 public:
  explicit Autocast(bool on);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool on_, before_ = false;
};

}  // namespace sluice::lab
