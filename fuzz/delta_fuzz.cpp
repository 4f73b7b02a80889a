// Any bytes as a sparse difference: reading may only throw Error; what reads can be applied and
// taken away again, and gives the same numbers back.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "fuzz/refusal.h"
#include "sluice/bundle/delta.h"

using namespace sluice;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file = bundle::SafetensorsFile::parse(std::as_bytes(std::span(data, size)), "input");
    const bundle::SparseDelta delta = bundle::parse_delta(file);
    for (const auto& [name, tensor] : delta.tensors) {
      if (numel(tensor.shape) > 1 << 20) continue;
      std::vector<float> values(static_cast<size_t>(numel(tensor.shape)), 0.5f);
      for (size_t i = 0; i < tensor.index.size(); ++i)
        values[static_cast<size_t>(tensor.index[i])] = tensor.before[i];
      const std::vector<float> before = values;
      bundle::apply_delta(tensor, 1, values, name);
      bundle::apply_delta(tensor, -1, values, name);
      if (std::memcmp(values.data(), before.data(), values.size() * sizeof(float)) != 0)
        std::abort();
    }
  } catch (const Error& error) {
    check_refusal(error);
  }
  return 0;
}
