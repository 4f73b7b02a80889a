// Any bytes as an IDX file, plain or gzipped: reading may only throw Error, and the shape fits the
// data.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "fuzz/refusal.h"
#include "sluice/data/idx.h"

using namespace sluice;
using namespace sluice::data;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const IdxArray array = parse_idx(std::as_bytes(std::span(data, size)), "input", 1 << 20);
    if (numel(array.shape) != static_cast<int64_t>(array.bytes.size()) || array.shape.empty()) {
      std::abort();
    }
  } catch (const Error& error) {
    check_refusal(error);
  }
  return 0;
}
