// Ctrl-C in the middle of a write: the file that was there stays, and nothing half-written is left
// beside it.
#pragma once
#include <string>

namespace sluice::cli {

/// Call before writing `path` (a file, or a directory that files go into). From then on SIGINT,
/// SIGTERM and SIGHUP remove this process's temporary files (base/file.h: `<file>.tmp.<pid>.<n>`)
/// there before they end it.
void clean_up_on_interrupt(const std::string& path);

}  // namespace sluice::cli
