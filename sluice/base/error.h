// The two kinds of failure.
//
// Bad input or environment: throw `Error`, a stable code and a message that names the thing, what
// was expected, what was found, and what to do next. The library never prints and never aborts on
// input; the CLI turns an Error into exit code 1 (2 for Code::usage), the C API into a status.
// Bugs: SLUICE_CHECK, always on; it throws Error{internal} naming the place. Never use it for
// input.
#pragma once
#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace sluice {

/// Stable across versions: scripts and the C API may depend on the numbers and names.
enum class Code : int {
  usage = 1,    ///< the caller's words: unknown verb, option, path pattern, impossible combination
  io = 2,       ///< the system refused: open, read, write, disk full, rename
  format = 3,   ///< a file's bytes break its format
  shape = 4,    ///< sizes that do not fit each other
  dtype = 5,    ///< an element type that does not fit
  missing = 6,  ///< a named tensor, node, data set, package or file is not there
  unsupported = 7,  ///< valid, but not something this build or version can do
  limit = 8,        ///< over a size, depth or budget limit
  config = 9,       ///< a configuration value is wrong
  numeric = 10,     ///< NaN or infinity where a finite number is needed
  state = 11,       ///< called in the wrong order
  internal = 12,    ///< a bug in Sluice
};

/// "usage", "io", ...
std::string_view code_name(Code code) noexcept;

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const noexcept { return code_; }

 private:
  Code code_;
};

/// Throws Error{code} with a formatted message: fail(Code::shape, "{}: expected {}, found {}",
/// ...).
template <class... Args>
[[noreturn]] void fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace sluice

#define SLUICE_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::sluice::check_failed(#condition, __FILE__, __LINE__))
#ifdef NDEBUG
#define SLUICE_DCHECK(condition) void(0)
#else
#define SLUICE_DCHECK(condition) SLUICE_CHECK(condition)
#endif
