// What networks for text need besides the operators of sequences.
#include "sluice/base/error.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"

namespace sluice::bundle {
namespace {

Shape l2_normalize_shape(const OpInput& in) {
  const double eps = attr_double(in.node.attrs, "eps", 1e-12);
  if (!(eps >= 0 && eps <= 1)) fail(Code::shape, "attribute 'eps': expected 0 to 1, found {}", eps);
  return input(in, 0);
}

}  // namespace

std::vector<Operator> text_operators() {
  return {
      {"l2_normalize", 1, 1, {}, {}, {"eps"}, l2_normalize_shape, no_macs, matrix_rows},
  };
}

}  // namespace sluice::bundle
