// The families of cases, one source file each: cases_<family>.cpp.
#pragma once
#include "sluice/engine/measure/kernel_case.h"

namespace sluice::engine::measure {

std::vector<KernelCase> gemv_cases(const CaseOptions& options);
std::vector<KernelCase> gemm_cases(const CaseOptions& options);
std::vector<KernelCase> conv_cases(const CaseOptions& options);
std::vector<KernelCase> sparse_weight_cases(const CaseOptions& options);
std::vector<KernelCase> conditional_cases(const CaseOptions& options);
std::vector<KernelCase> linear_cases(const CaseOptions& options);
std::vector<KernelCase> sequence_cases(const CaseOptions& options);

}  // namespace sluice::engine::measure
