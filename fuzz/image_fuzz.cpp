// Any bytes as an image: decoding may only throw Error, and a decoded image survives resizing.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "fuzz/refusal.h"
#include "sluice/data/image.h"

using namespace sluice;
using namespace sluice::data;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const Image image = decode_image(std::as_bytes(std::span(data, size)), "input", {1 << 16});
    if (image.pixels.size() != static_cast<size_t>(image.width * image.height * image.channels)) {
      std::abort();
    }
    if (to_input(image, 3, 9, 7, 0.5, 0.5).size() != 3 * 9 * 7) {
      std::abort();
    }
  } catch (const Error& error) {
    check_refusal(error);
  }
  return 0;
}
