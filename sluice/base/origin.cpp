#include "sluice/base/origin.h"

#include <fmt/core.h>

#include <ctime>

#include "sluice/base/json.h"
#include "sluice/base/machine.h"

namespace sluice {

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

Json machine_json(int threads, const std::string& device) {
  const Machine machine = describe_machine();
  Json json = {{"cpu", machine.cpu},
               {"isa", machine.isa},
               {"threads", threads},
               {"memory", machine.memory_bytes}};
  if (!device.empty()) json["device"] = device;
  return json;
}

}  // namespace sluice
