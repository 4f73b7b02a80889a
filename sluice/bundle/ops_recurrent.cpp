// Recurrent layers over the rows of a sequence.
#include "sluice/base/error.h"
#include "sluice/bundle/ops_check.h"
#include "sluice/bundle/ops_families.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

struct RecurrentSizes {
  int64_t rows, in, hidden;
};

RecurrentSizes check_recurrent(const OpInput& in, int64_t gates) {
  require_rank(in, 2, "[T,I]");
  const TensorSpec& recurrent = in.tensors.at("recurrent");
  const int64_t hidden = recurrent.shape.size() == 2 ? recurrent.shape[1] : 0;
  if (hidden < 1 || recurrent.shape[0] != checked_mul(gates, hidden, "gates"))
    fail(Code::shape, "recurrent '{}': expected [{} H,H], found {}", printable(recurrent.name),
         gates, to_string(recurrent.shape));
  const RecurrentSizes sizes{input(in, 0)[0], input(in, 0)[1], hidden};
  require_tensor(in, "weight", {gates * hidden, sizes.in});
  require_tensor(in, "bias", {gates * hidden});
  attr_bool(in.node.attrs, "reverse", false);
  for (size_t i = 1; i < in.inputs.size(); ++i)
    if (input(in, i) != Shape{hidden})
      fail(Code::shape, "input {}: expected the state before, [{}], found {}", i, hidden,
           to_string(input(in, i)));
  return sizes;
}

Shape lstm_shape(const OpInput& in) {
  const RecurrentSizes sizes = check_recurrent(in, 4);
  if (in.inputs.size() == 2) fail(Code::shape, "expected x, or x and both states before, h and c");
  return {sizes.rows, attr_bool(in.node.attrs, "cells", false) ? 2 * sizes.hidden : sizes.hidden};
}

Shape gru_shape(const OpInput& in) {
  const RecurrentSizes sizes = check_recurrent(in, 3);
  require_tensor(in, "recurrent_bias", {sizes.hidden});
  attr_bool(in.node.attrs, "reset_before", false);
  return {sizes.rows, sizes.hidden};
}

int64_t recurrent_macs(const OpInput& in, const Shape& output) {
  return checked_mul(output[0],
                     checked_add(numel(in.tensors.at("weight").shape, "weight"),
                                 numel(in.tensors.at("recurrent").shape, "recurrent"), "MACs"),
                     "MACs");
}

}  // namespace

std::vector<Operator> recurrent_operators() {
  return {
      {"lstm",
       1,
       3,
       {"weight", "recurrent"},
       {"bias"},
       {"reverse", "cells"},
       lstm_shape,
       recurrent_macs},
      {"gru",
       1,
       2,
       {"weight", "recurrent"},
       {"bias", "recurrent_bias"},
       {"reverse", "reset_before"},
       gru_shape,
       recurrent_macs},
  };
}

}  // namespace sluice::bundle
