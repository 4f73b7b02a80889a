#include "cli/output.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "sluice/base/error.h"
#include "sluice/base/json.h"

namespace sluice::cli {

void print(std::string_view text) {
  errno = 0;
  const bool written =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (written) {
    return;
  }
  const int error = errno;
  if (error == EPIPE) {
    std::_Exit(0);  // the reader has seen enough
  }
  fail(Code::io, "cannot write to standard output: {}", std::strerror(error));
}

void print_json(const Json& document) {
  print(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace sluice::cli
