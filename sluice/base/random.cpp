#include "sluice/base/random.h"

namespace sluice {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

uint64_t finalize(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

uint64_t derive_seed(uint64_t seed, std::string_view stream, uint64_t index) {
  uint64_t name = 0xcbf29ce484222325ULL;  // FNV-1a, spread by the finalizer below
  for (const char c : stream) {
    name = (name ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  uint64_t state = finalize(seed + kGolden);
  state = finalize((state ^ name) + kGolden);
  return finalize((state ^ index) + kGolden);
}

}  // namespace sluice
