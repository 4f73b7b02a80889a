// Any bytes as an ONNX model: reading, folding, lowering and writing may only ever throw Error,
// with a message of one line. What is accepted is a bundle that opens.
#include <cstdlib>

#include "fuzz/refusal.h"
#include "sluice/bundle/import/onnx.h"
#include "sluice/bundle/import/onnx/model.h"

using namespace sluice;
using namespace sluice::bundle;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> bytes;
  try {
    const onnx::ModelSource model =
        onnx::parse_model(std::as_bytes(std::span(data, size)), "input", "");
    OnnxOptions options;
    options.folded_elements = 1 << 18;
    Builder builder;
    build_onnx(model, options, builder);
    bytes = builder.bytes();
  } catch (const Error& error) {
    check_refusal(error);
    return 0;
  }
  Bundle::parse(bytes, "imported", {});
  return 0;
}
