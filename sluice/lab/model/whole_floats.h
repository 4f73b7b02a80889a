// Comparisons to the last digits on a GPU.
#pragma once

namespace sluice::lab {

/// For its lifetime convolutions of a GPU use whole floats. By default cuDNN rounds their inputs to
/// 10 bits of mantissa (TF32), a relative error of 1e-3: fine for training, too much for outputs
/// that have to be equal. Process-wide, as LibTorch's switch is.
class WholeFloats {
 public:
  WholeFloats();
  ~WholeFloats();
  WholeFloats(const WholeFloats&) = delete;
  WholeFloats& operator=(const WholeFloats&) = delete;

 private:
  bool before_;
};

}  // namespace sluice::lab
