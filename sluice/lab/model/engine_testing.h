// For tests: a model beside the engine. Only where there is one (SLUICE_HAS_ENGINE).
#pragma once
#include "sluice/engine/graph/network.h"
#include "sluice/lab/model/testing.h"

namespace sluice::lab::testing {

/// Relative error of the engine's outputs for `x` to the bricks'.
inline double engine_error(Model& model, const at::Tensor& x) {
  bundle::Builder builder;
  lower(model, builder);
  std::vector<std::byte> bytes = builder.bytes();
  const engine::Network network(bundle::Bundle::parse(bytes, "test", {}));
  engine::Session session(network, {.batch = x.size(0), .threads = 1});
  const at::Tensor expected = run(model, x);
  at::Tensor found = at::empty_like(expected);
  session.run({x.data_ptr<float>(), static_cast<size_t>(x.numel())},
              {found.data_ptr<float>(), static_cast<size_t>(found.numel())});
  return relative_error(found, expected);
}

}  // namespace sluice::lab::testing
