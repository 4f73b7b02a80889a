// Any bytes as a token file: reading may only throw Error; what opens can be read to the end, and
// its ids are below its vocabulary. Tried once as they are and once with the checksums put right,
// which no mutation would.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "fuzz/refusal.h"
#include "sluice/base/file.h"
#include "sluice/data/text/token_file.h"

using namespace sluice;

namespace {

void set_u64(std::vector<std::byte>& bytes, size_t at, uint64_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

std::vector<std::byte> with_checksums(std::span<const std::byte> input) {
  std::vector<std::byte> bytes(input.begin(), input.end());
  uint64_t description = 0;
  if (bytes.size() < 64) return bytes;
  std::memcpy(&description, bytes.data() + 32, sizeof description);
  const std::span<const std::byte> rest = std::span(bytes).subspan(64);
  if (description > rest.size()) return bytes;
  set_u64(bytes, 40, xxhash64(rest.first(description)));
  const size_t ids = (description + 7) / 8 * 8;
  if (ids <= rest.size()) set_u64(bytes, 48, xxhash64(rest.subspan(ids)));
  set_u64(bytes, 56, xxhash64(std::span(bytes).first(56)));
  return bytes;
}

void read(std::span<const std::byte> bytes) {
  try {
    const auto file = data::TokenFile::parse(bytes, "input");
    for (const auto split : {data::TextSplit::train, data::TextSplit::held_out}) {
      std::vector<int64_t> ids(static_cast<size_t>(file.count(split)));
      file.read(split, 0, ids);
      for (const int64_t id : ids) {
        if (id < 0 || id >= file.info().vocabulary) std::abort();
      }
    }
  } catch (const Error& error) {
    check_refusal(error);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto input = std::as_bytes(std::span(data, size));
  read(input);
  read(with_checksums(input));
  return 0;
}
