#include "cli/bench_hook.h"

namespace sluice::cli {
namespace {

LabForwardFactory& registered_factory() {
  static LabForwardFactory factory = nullptr;
  return factory;
}

}  // namespace

bool register_lab_forward(LabForwardFactory factory) {
  registered_factory() = factory;
  return true;
}

LabForwardFactory lab_forward() { return registered_factory(); }

}  // namespace sluice::cli
