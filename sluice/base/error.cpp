#include "sluice/base/error.h"

namespace sluice {

std::string_view code_name(Code code) noexcept {
  switch (code) {
    case Code::usage:
      return "usage";
    case Code::io:
      return "io";
    case Code::format:
      return "format";
    case Code::shape:
      return "shape";
    case Code::dtype:
      return "dtype";
    case Code::missing:
      return "missing";
    case Code::unsupported:
      return "unsupported";
    case Code::limit:
      return "limit";
    case Code::config:
      return "config";
    case Code::numeric:
      return "numeric";
    case Code::state:
      return "state";
    case Code::internal:
      return "internal";
  }
  return "unknown";
}

void check_failed(const char* condition, const char* file, int line) {
  // The source tree's own place is noise in a message: keep what follows the last "sluice/".
  std::string_view place = file;
  if (const size_t at = place.rfind("sluice/"); at != std::string_view::npos) {
    place = place.substr(at);
  }
  fail(Code::internal, "bug in Sluice: {} does not hold at {}:{}; please report it", condition,
       place, line);
}

}  // namespace sluice
