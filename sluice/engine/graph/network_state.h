// What the sessions of a network share.
#pragma once
#include "sluice/engine/graph/network.h"
#include "sluice/engine/kernel/onednn.h"

namespace sluice::engine {

struct Network::State {
  explicit State(bundle::Bundle b) : bundle(std::move(b)) {}
  bundle::Bundle bundle;
  std::vector<bundle::Value> inputs, outputs;  ///< without those that are carried
  mutable onednn::PackCache packed;            ///< locks itself
};

}  // namespace sluice::engine
