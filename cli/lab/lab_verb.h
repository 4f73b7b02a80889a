// What the verbs that use LibTorch share.
#pragma once
#include <c10/core/Device.h>

#include <functional>
#include <string>

#include "cli/verb.h"
#include "sluice/base/json_fwd.h"

namespace sluice::cli {

/// Sets LibTorch up (fast sgemm, threads) and runs `verb`; LibTorch's exceptions leave it as
/// sluice::Error.
int with_libtorch(const Globals& globals, const std::function<int()>& verb);

/// "cpu", "cuda", "cuda:1". Throws Error{usage} for other words, Error{unsupported} when LibTorch
/// sees no such device.
c10::Device parse_device(const std::string& text);

/// Refuses an output path that cannot be written before hours are spent on what goes into it, and
/// lets Ctrl-C clean up beside it.
void prepare_output(const std::string& path);

/// The scalars of a report as "kept 0.5, layers 3": enough for one line of a table.
std::string one_line(const Json& report);

}  // namespace sluice::cli
