#include "sluice/engine/kernel/instruction_set.h"

#include <hwy/targets.h>

#include <oneapi/dnnl/dnnl.hpp>

#include "sluice/base/error.h"
#include "sluice/base/machine.h"

namespace sluice::engine {

void limit_to_avx2() {
  const std::string isa = describe_machine().isa;
  if (isa != "avx2" && !isa.starts_with("avx512")) {
    fail(Code::unsupported,
         "limiting to avx2: expected a processor that has it, found '{}'; leave the limit out",
         isa);
  }
  if (dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2) != dnnl::status::success) {
    fail(Code::usage, "limiting to avx2: oneDNN has been used already; limit before the first run");
  }
  limit_machine_to_avx2();
#if defined(HWY_AVX2)
  hwy::DisableTargets(HWY_AVX2 - 1);  // better targets are lower bits
#endif
}

}  // namespace sluice::engine
