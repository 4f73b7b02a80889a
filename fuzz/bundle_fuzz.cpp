// Any bytes as a bundle, and as an ordinary safetensors file: everything that `sluice inspect
// --check` does may only ever throw Error, with a message of one line.
#include <cstdlib>
#include <string>

#include "fuzz/refusal.h"
#include "sluice/base/json.h"
#include "sluice/bundle/describe.h"

using namespace sluice;
using namespace sluice::bundle;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

template <class F>
void only_errors(F&& call) {
  try {
    call();
  } catch (const Error& error) {
    check_refusal(error);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  only_errors([&] {
    const SafetensorsFile file =
        SafetensorsFile::parse(bytes, "input", {.max_header_bytes = 1 << 20});
    require(!describe_text(file).empty());
    require(!describe_json(file).dump().empty());
    // What was accepted can be written and read again.
    const auto again = safetensors_bytes(file.tensors(), file.metadata());
    const SafetensorsFile copy = SafetensorsFile::parse(again, "copy");
    require(copy.tensors().size() == file.tensors().size() && copy.metadata() == file.metadata());
    for (const TensorView& tensor : file.tensors()) {
      const TensorView& other = copy.at(tensor.name);
      require(other.dtype == tensor.dtype && other.shape == tensor.shape);
      require(std::equal(tensor.bytes.begin(), tensor.bytes.end(), other.bytes.begin(),
                         other.bytes.end()));
    }
  });
  only_errors([&] {
    const Bundle bundle = Bundle::parse(bytes, "input", {});
    require(!describe_text(bundle).empty());
    require(!describe_text(bundle, {.depth = 1, .sparsity = false}).empty());
    require(!describe_json(bundle).dump().empty());
    bundle.verify();
  });
  return 0;
}
