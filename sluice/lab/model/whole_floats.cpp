#include "sluice/lab/model/whole_floats.h"

#include <ATen/Context.h>

namespace sluice::lab {

WholeFloats::WholeFloats() : before_(at::globalContext().allowTF32CuDNN()) {
  at::globalContext().setAllowTF32CuDNN(false);
}

WholeFloats::~WholeFloats() { at::globalContext().setAllowTF32CuDNN(before_); }

}  // namespace sluice::lab
